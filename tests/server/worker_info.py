"""What a worker may be told to load, and what a loaded engine may say of itself."""

from server.worker.messages import Load, WorkerInfo

INFO = WorkerInfo(
    "demo",
    "cpu",
    "float32",
    100,
    300,
    [1],
    4,
    None,
    8,
    8,
    0.005,
    {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0.1},
    "dynamic",
    "as asked for",
    "none",
    None,
)

LOAD = Load(
    model="demo",
    heads=None,
    device="cpu",
    dtype="auto",
    max_context=None,
    tree_nodes=None,
    tree="dynamic",
    prompt_lookup=True,
    draft_vocabulary=None,
    recycling=True,
    prefix_cache=None,
    num_threads=None,
    compile=True,
    quantize="none",
    adapter=True,
    runner="auto",
    attention="bucketed",
    record_prompts=False,
    compile_steps=False,
    int8_heads="auto",
    delivery_ms=0.0,
    log_level="info",
    log_format="json",
)

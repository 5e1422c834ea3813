"""What a loaded engine may say of itself."""

from server.worker.messages import WorkerInfo

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

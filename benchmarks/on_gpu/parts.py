"""The parts of the GPU benchmark: each measures one thing on every model shape, prints a table and returns figures."""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.on_gpu.attention import attention_ms, make_case
from benchmarks.on_gpu.demo import demo_part
from benchmarks.on_gpu.driving import GREEDY, Bench, launcher_for
from benchmarks.on_gpu.models import Shape, bytes_per_step, make_backbone, make_heads
from benchmarks.on_gpu.timing import Budget, device_ms
from medusa_core.acceptance import make_rule
from medusa_core.adjustments import Adjustments
from medusa_core.attending import attend_by_length
from medusa_core.config import SpeculationParams
from medusa_core.decoding import accept_and_commit, verify
from medusa_core.errors import EngineError
from medusa_core.runners import EagerRunner, GraphRunner, MakeRunner, prompt_lengths
from medusa_core.runners.prompts import coarse_bucket
from medusa_core.runners.recording import Recording
from medusa_core.runners.row import Row, pack
from medusa_core.sampling import Sampler, SamplingParams

__all__ = ["PARTS", "SHARES", "Setting"]

# Share of the whole time that each part may take.
SHARES = {
    "bandwidth": 0.03,
    "plain": 0.12,
    "nodes": 0.24,
    "context": 0.17,
    "prompts": 0.04,
    "heads": 0.13,
    "compiled": 0.12,
    "attention": 0.04,
    "demo": 0.11,
}
# Tokens per step by nodes with the Medusa authors' head accuracies for Vicuna-7B, independence assumed.
PUBLISHED_TOKENS_PER_STEP = {1: 1.0, 16: 2.22, 32: 2.41, 48: 2.51, 64: 2.58, 96: 2.67, 128: 2.74}
NUM_HEADS = 4
# Rows for what the steps of one measurement may add, at most: 50 steps of a tree that is right as deep as it goes.
ROOM = 512
SAMPLED = {
    "sampled": SamplingParams(0.8, seed=0),
    "top_k": SamplingParams(0.8, top_k=40, seed=0),
    "top_p": SamplingParams(0.8, top_p=0.9, seed=0),
}


@dataclass
class Setting:
    """Where and how large everything is measured."""

    device: torch.device
    dtype: torch.dtype
    shapes: tuple[Shape, ...]
    nodes: tuple[int, ...]
    contexts: tuple[int, ...]
    steps: int
    bandwidth: float | None = None
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def graphs(self) -> MakeRunner:
        """The runner that records, or goes through the same motions where nothing can be recorded."""
        return lambda backbone, cache: GraphRunner(backbone, cache, launcher_for(self.device))


def bandwidth_part(setting: Setting, budget: Budget) -> dict[str, Any]:
    """What the card copies, and from how many rows on a product costs more than reading its matrix."""
    elements = (1 << 30) // 2 if setting.device.type == "cuda" else 1 << 20
    source = torch.zeros(elements, dtype=torch.bfloat16, device=setting.device)
    target = torch.empty_like(source)
    copy_ms = device_ms(lambda: target.copy_(source), setting.device, 10)
    setting.bandwidth = 2 * source.nbytes / (copy_ms / 1e3)
    width, height = (4096, 11008) if setting.device.type == "cuda" else (64, 96)
    weight = torch.randn(height, width, device=setting.device, dtype=setting.dtype)
    products = {}
    for rows in (1, 16, 32, 64, 128, 256):
        if budget.has_room(f"products of {rows} rows"):
            given = torch.randn(rows, width, device=setting.device, dtype=setting.dtype)
            products[rows] = device_ms(
                lambda given=given: torch.nn.functional.linear(given, weight), setting.device, 50
            )
    print(f"copy, read and written: {setting.bandwidth / 1e9:.0f} GB/s")
    for rows, taken in products.items():
        print(f"  {rows:4} rows by {height} x {width}: {1e3 * taken:7.1f} us")
    return {"copy_gb_per_s": setting.bandwidth / 1e9, "product_ms_by_rows": products}


def limit_ms(setting: Setting, backbone: Any, shape: Shape, context: int) -> float | None:
    """The time in which the card's memory delivers what a plain step reads."""
    if setting.bandwidth is None:
        return None
    return 1e3 * bytes_per_step(backbone, shape, context) / setting.bandwidth


def plain_part(setting: Setting, shape: Shape, budget: Budget) -> dict[str, Any]:
    """Steps of one token, against the limit that the memory sets; by transformers' own code and in fewer kernels."""
    context = setting.contexts[0]
    rows = coarse_bucket(context + ROOM)
    backbone = make_backbone(shape, rows, setting.device, setting.dtype)
    limit = limit_ms(setting, backbone, shape, context)
    bench = Bench.around(backbone, None, 1, rows)
    own: dict[str, Any] = {"context": context, "limit_ms": limit}
    for name in ("own code", "fused"):
        if name == "fused":
            backbone.fuse(rows, compiled=False)
        for way, make_runner in (("recorded", setting.graphs), ("ordinary", EagerRunner)):
            if budget.has_room(f"{shape.name} {name} {way}"):
                own[f"{name}, {way}, ms"] = bench.step_ms(make_runner, 1, context, setting.steps)
    own["is_fused"] = backbone.is_fused
    taken = [value for key, value in own.items() if key.endswith(", ms")]
    own["share_of_limit"] = limit / min(taken) if limit is not None and taken else None
    print(f"{shape.name}: " + ", ".join(f"{key} {value:.3g}" for key, value in own.items() if value is not None))
    return own


def nodes_part(setting: Setting, shape: Shape, budget: Budget) -> dict[Any, Any]:
    """Steps by size of the tree, and what they consist of."""
    context = setting.contexts[0]
    rows = coarse_bucket(context + ROOM + max(setting.nodes))
    backbone = make_backbone(shape, rows, setting.device, setting.dtype)
    backbone.fuse(rows, compiled=False)
    bench = Bench.around(backbone, make_heads(backbone, "shared", NUM_HEADS), max(setting.nodes), rows)
    found: dict[int, dict[str, float]] = {}
    for nodes in setting.nodes:
        if budget.has_room(f"{shape.name} {nodes} nodes"):
            found[nodes] = parts_of_a_step(setting, bench, nodes, context)
    for nodes, parts in found.items():
        parts["overhead"] = parts["step_ms"] / found[min(found)]["step_ms"]
        if nodes in PUBLISHED_TOKENS_PER_STEP:
            parts["projected_speed_up"] = PUBLISHED_TOKENS_PER_STEP[nodes] / parts["overhead"]
    for nodes in sorted({1, max(found, default=1)} & found.keys()):
        if budget.has_room(f"{shape.name} ordinary {nodes} nodes"):
            found[nodes]["ordinary_ms"] = bench.step_ms(EagerRunner, nodes, context, setting.steps)
    show(shape.name, found)
    return found


def parts_of_a_step(setting: Setting, bench: Bench, nodes: int, context: int) -> dict[str, float]:
    """A recorded step as the host sees it, and its parts by the device's clock."""
    step_ms = bench.step_ms(setting.graphs, nodes, context, setting.steps)
    alone = replay_ms(setting, bench, nodes, context)
    return {
        "step_ms": step_ms,
        "device_ms": alone["step"],
        "forward_ms": alone["forward"],
        "draft_ms": alone["draft"],
        "tail_ms": alone["step"] - alone["forward"] - alone["heads"],
        "host_gap_ms": step_ms - alone["step"],
    }


@torch.inference_mode()
def replay_ms(setting: Setting, bench: Bench, nodes: int, context: int) -> dict[str, float]:
    """Milliseconds of a step and of its parts, each recorded alone and replayed back to back."""
    rule = make_rule(Sampler.of_request(GREEDY, setting.device), SpeculationParams())
    adjustments = Adjustments.of_request(GREEDY, [], (), bench.backbone.vocab_size, setting.device)
    state, drafter = bench.state(context, GREEDY), bench.drafter(nodes, context)
    rows = min(bench.cache.rows, coarse_bucket(context + max(nodes, drafter.max_depth + 1)))
    tree = drafter.draft(state)

    def step() -> Row:
        # the state is left as it is, so that every time is the same step
        drafted = drafter.draft(state)
        verified = verify(bench.backbone, bench.cache, drafted, state.past, rows)
        accepted, _ = accept_and_commit(bench.cache, adjustments, rule, verified, None, state)
        drafter.learn(state, verified.tree, accepted.path, verified.forward.logits)
        return pack(accepted, drafted, None)

    heads = bench.heads
    parts: dict[str, Callable[[], Any]] = {
        "step": step,
        "forward": lambda: verify(bench.backbone, bench.cache, tree, state.past, rows).forward,
        "draft": lambda: drafter.draft(state),
    }
    if heads is not None and nodes > 1:
        parts["heads"] = lambda: heads(state.hidden)
    found = {"heads": 0.0}
    for name, work in parts.items():
        recording = Recording(launcher_for(setting.device), work, name)
        for _ in range(4):
            recording.run()
        found[name] = device_ms(recording.run, setting.device, setting.steps)
    return found


def context_part(setting: Setting, shape: Shape, budget: Budget) -> dict[str, Any]:
    """Steps behind longer and longer contexts."""
    rows = coarse_bucket(max(setting.contexts) + ROOM)
    backbone = make_backbone(shape, rows, setting.device, setting.dtype)
    backbone.fuse(rows, compiled=False)
    nodes = (1, 64 if 64 in setting.nodes else max(setting.nodes))
    bench = Bench.around(backbone, make_heads(backbone, "shared", NUM_HEADS), max(nodes), rows)
    found: dict[int, dict[str, Any]] = {
        context: {"limit_ms": limit_ms(setting, backbone, shape, context)} for context in setting.contexts
    }
    kernels: dict[str, list[str]] = {}
    for way in ("bucketed", "device_length"):
        if way == "device_length" and not attend_by_length(backbone):
            kernels[way] = ["does not give what buckets give, or does not run; the log says why"]
            continue
        for context, own in found.items():
            for count in nodes:
                if budget.has_room(f"{shape.name} {way}, {count} nodes behind {context}"):
                    own[f"{way}, {count}"] = bench.step_ms(setting.graphs, count, context, setting.steps)
        kernels[way] = bench.attention_kernels(max(nodes), setting.contexts[-1])
    show(f"{shape.name}, milliseconds of a step by context, way to read the cache and nodes", found)
    for way, names in kernels.items():
        print(f"  attention, {way}: {', '.join(names)}")
    return {"by_context": found, "attention_kernels": kernels}


def prompts_part(setting: Setting, shape: Shape, budget: Budget) -> dict[Any, Any]:
    """Prompts in ordinary passes and in recorded ones that are filled up."""
    chunk = 512 if setting.device.type == "cuda" else 32
    lengths = prompt_lengths(chunk) if setting.device.type == "cuda" else (8, chunk)
    rows = coarse_bucket(2 * chunk)
    backbone = make_backbone(shape, rows, setting.device, setting.dtype)
    backbone.fuse(rows, compiled=False)
    found: dict[int, dict[str, float]] = {}
    cache = backbone.new_cache(rows)
    runner = setting.graphs(backbone, cache)
    ways = {"ordinary": runner.prompts(()), "recorded": runner.prompts(lengths)}
    for length in (lengths[0] // 2, lengths[0], lengths[-1] // 2 + 1, lengths[-1]):
        found[length] = {}
        piece = [place % shape.vocab for place in range(length)]
        for name, prompts in ways.items():
            if budget.has_room(f"{shape.name} {name} prompt of {length}"):
                for _ in range(4):
                    prompts.compute(piece, 0, False)
                found[length][f"{name}, ms"] = device_ms(
                    lambda prompts=prompts, piece=piece: prompts.compute(piece, 0, False), setting.device, 5
                )
    show(f"{shape.name}, milliseconds of a prompt by its tokens", found)
    return found


def heads_part(setting: Setting, shape: Shape, budget: Budget) -> dict[Any, Any]:
    """Steps by what the heads draft with, and of sampled requests."""
    context, nodes = setting.contexts[0], 64 if 64 in setting.nodes else max(setting.nodes)
    rows = coarse_bucket(context + ROOM + nodes)
    backbone = make_backbone(shape, rows, setting.device, setting.dtype)
    backbone.fuse(rows, compiled=False)
    found: dict[str, dict[str, float | None]] = {}
    for kind in ("shared", "own", "16k tokens", "int8"):
        if not budget.has_room(f"{shape.name} {kind}"):
            continue
        heads = make_heads(backbone, kind, NUM_HEADS)
        if heads is None:
            found[kind] = {"step_ms": None}
            continue
        bench = Bench.around(backbone, heads, nodes, rows)
        found[kind] = {"step_ms": bench.step_ms(setting.graphs, nodes, context, setting.steps)}
        for name, sampling in SAMPLED.items():
            if kind == "shared" and budget.has_room(f"{shape.name} {name}"):
                found[kind][f"{name}_ms"] = bench.step_ms(setting.graphs, nodes, context, setting.steps, sampling)
        del bench, heads
        release(setting)
    show(f"{shape.name}, {nodes} nodes", found)
    return found


def compiled_part(setting: Setting, shape: Shape, budget: Budget) -> dict[Any, Any]:
    """Steps whose pass is compiled before it is recorded; compiling takes long, so of the last shape alone."""
    context, found = setting.contexts[0], dict[str, dict[str, Any]]()
    if shape is not setting.shapes[-1]:
        return {}
    largest = 64 if 64 in setting.nodes else max(setting.nodes)
    rows = coarse_bucket(context + ROOM + largest)
    for is_fused in (True, False):
        backbone = make_backbone(shape, rows, setting.device, setting.dtype)
        if is_fused:
            backbone.fuse(rows, compiled=False)
        compiled = backbone.compile_steps("inductor" if setting.device.type == "cuda" else "eager")
        bench = Bench.around(backbone, make_heads(backbone, "shared", NUM_HEADS), largest, rows)
        for nodes in (1, largest) if is_fused else (largest,):
            name = f"{'fused' if is_fused else 'own code'}, {nodes} nodes"
            if budget.has_room(f"{shape.name} compiled, {name}"):
                started = time.monotonic()
                try:
                    step_ms = bench.step_ms(setting.graphs, nodes, context, setting.steps)
                except EngineError as error:  # what was compiled cannot be recorded
                    found[name] = {"does_not_run": str(error).strip().splitlines()[0][:200]}
                    continue
                seconds = time.monotonic() - started
                found[name] = {"step_ms": step_ms, "seconds": seconds, "is_compiled": compiled.is_compiled}
        del backbone, bench, compiled
        release(setting)
    show(f"{shape.name}, compiled", found)
    return found


def attention_part(setting: Setting, shape: Shape, budget: Budget) -> dict[str, Any]:
    """One layer's attention behind longer and longer contexts, by each kernel there is."""
    result: dict[str, Any] = {}
    for nodes in (1, max(size for size in setting.nodes if size <= 64)):
        name, found = f"{shape.name}, {nodes} nodes", {}
        for context in setting.contexts:
            if budget.has_room(f"{name} behind {context}"):
                rows = coarse_bucket(context + nodes)
                case = make_case(shape.heads, shape.kv_heads, nodes, context, rows, setting.device)
                found[context] = attention_ms(case, setting.steps)
        show(name, found)
        result[name] = found
    return result


def show(title: str, rows: dict[Any, dict[str, Any]]) -> None:
    """A table: one row for each key, one column for each name."""
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    print(f"{title}\n{'':>12}" + "".join(f"{name:>19}" for name in names))
    for key, row in rows.items():
        cells = (row.get(name) for name in names)
        print(f"{key!s:>12}" + "".join(f"{cell:19.4f}" if isinstance(cell, float) else f"{'-':>19}" for cell in cells))


def release(setting: Setting) -> None:
    """Give the device back what nothing refers to any more."""
    gc.collect()
    if setting.device.type == "cuda":
        torch.cuda.empty_cache()


def by_shape(
    measure: Callable[[Setting, Shape, Budget], dict[Any, Any]],
) -> Callable[[Setting, Budget], dict[str, Any]]:
    """The part that measures one shape after the other; one that does not fit into the device's memory says so."""

    def part(setting: Setting, budget: Budget) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for shape in setting.shapes:
            try:
                found[shape.name] = measure(setting, shape, budget)
            except torch.OutOfMemoryError as error:
                found[shape.name] = {"out_of_memory": str(error).splitlines()[0]}
                print(f"{shape.name}: {found[shape.name]['out_of_memory']}")
            release(setting)
        return found

    return part


PARTS: dict[str, Callable[[Setting, Budget], dict[str, Any]]] = {
    "bandwidth": bandwidth_part,
    "plain": by_shape(plain_part),
    "nodes": by_shape(nodes_part),
    "context": by_shape(context_part),
    "prompts": by_shape(prompts_part),
    "heads": by_shape(heads_part),
    "compiled": by_shape(compiled_part),
    "attention": by_shape(attention_part),
    "demo": lambda setting, budget: demo_part(setting.device, setting.steps, budget),
}

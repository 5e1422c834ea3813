"""Training of heads: what it brings on the demo model, and what it costs over the arithmetic it cannot do without.

Three parts, each on its own or all in a row:

cost     one Medusa-1 step against its parts, interleaved: the base's forward pass, and the heads' forward and backward
         on the same rows. On a GPU a 7B-shaped base with random weights stands in for the demo model.
scratch  the demo model answers prompts of its recipe, new heads are trained on the answers (Medusa-1), and tokens per
         step are counted on the held-out prompts that every figure of the demo is quoted on.
joint    Medusa-2 on the same answers, from the same start, against that.

Seconds of one core are the process's own, so that what else the machine does matters less. Prints tables for people
and one JSON document as the last line. What is trained stays in WORK, and a second run goes on from there.

Usage: python benchmarks/train.py [--parts cost scratch joint] [--work .work/train] [--out FILE]
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from medusa_core.config import EngineConfig, SpeculationParams
from medusa_core.demo.build import corpus_stage, write_lines
from medusa_core.demo.prompts import distillation_prompts, source_texts
from medusa_core.engine import Engine
from medusa_core.evaluation.answers import EnginePeer, tokens_per_step
from medusa_core.evaluation.machine import machine
from medusa_core.evaluation.prompts import default_prompts, read_prompts
from medusa_core.heads import DraftHeads
from medusa_core.sampling import SamplingParams
from medusa_core.text import TextCodec
from medusa_core.training.base import FrozenBase
from medusa_core.training.distill import DistillPlan, distill
from medusa_core.training.encoding import Example
from medusa_core.training.loss import head_nats
from medusa_core.training.medusa1 import HeadsRecipe
from medusa_core.training.packing import Examples, PackedRows
from medusa_core.training.plan import JointPlan, TrainPlan
from medusa_core.training.precision import mixed_precision
from medusa_core.training.scores import judged_rows
from medusa_core.training.trainer import BaseOptions, train
from medusa_core.training.workers import Alone

# Prompts of each kind in the demo's recipe, and the longest answer to each.
ANSWERED = {"invented": (1500, 200), "known": (1200, 200), "beginnings": (2400, 96)}
SOURCE_TEXTS = 400
# The short runs see half of the answers, once in each stage.
DEMO_PLAN = TrainPlan(
    shared_lm_head=False, learning_rate=1e-2, max_length=512, rows_per_pass=4, passes_per_step=1, save_every=50
)
SHORT, LONG = replace(DEMO_PLAN, epochs=1), replace(DEMO_PLAN, epochs=4, rows_per_pass=8)
JOINT = JointPlan(epochs=1, learning_rate=3e-4, heads_rate=15.0, heads_weight=0.2)
COUNTED_NODES = (8, 16, 32)
# A Llama of 7 billion parameters, and what a conversation of public data sets is taken to hold.
SEVEN_BILLION = LlamaConfig(
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    max_position_embeddings=4096,
)
CONVERSATIONS, CONVERSATION_TOKENS = 60_000, 1000


def answers(work: Path, device: str) -> Path:
    """What the demo model says to prompts of its recipe, with a few texts by people."""
    path = work / "answers.jsonl"
    if path.exists():
        return path
    corpus = corpus_stage(work)
    lines: list[dict[str, Any]] = []
    for kind, prompts in distillation_prompts(corpus, seed=1).items():
        count, max_tokens = ANSWERED[kind]
        asked, answered = work / f"{kind}.jsonl", work / f"{kind}_answered.jsonl"
        write_lines(asked, prompts[:: max(1, len(prompts) // count)][:count])
        distill("demo", asked, answered, DistillPlan(max_tokens=max_tokens, batch_size=128), device)
        lines += [json.loads(line) for line in answered.read_text(encoding="utf-8").splitlines()]
    lines += list(source_texts(corpus, seed=1))[:SOURCE_TEXTS]
    write_lines(work / "half.jsonl", lines[::2])
    write_lines(path, lines)
    return path


def trained(work: Path, name: str, data: Path, plan: TrainPlan, joint: JointPlan | None, device: str) -> dict[str, Any]:
    """Train, unless that was done before, and count tokens per step on the held-out prompts."""
    out, found = work / name, work / f"{name}.json"
    if found.exists():
        done: dict[str, Any] = json.loads(found.read_text())
        return done
    # of a run that goes on, the seconds are those since then
    resumed = sorted(stage.name for stage in (out / "run").glob("*"))
    started = time.process_time()
    result = train(BaseOptions("demo", device), data, out, plan, joint)
    assert result is not None, "one process leads itself"
    report = result.report.as_json()
    document = {
        "core_seconds": round(time.process_time() - started, 1),
        "stages_resumed": resumed,
        "steps": report["steps"],
        "trained_tokens": report["data"]["tokens"] * plan.epochs,
        "learning_rate": plan.learning_rate,
        "joint": None if joint is None else asdict(joint),
        "held_out": report["held_out"],
        "perplexity": report["perplexity"],
        "tokens_per_step": counted("demo", str(out), device),
    }
    if joint is not None:  # the same heads on the untouched base: what of the gain is the adapter's
        document["tokens_per_step_without_adapter"] = counted("demo", str(out), device, has_adapter=False)
    found.write_text(json.dumps(document) + "\n")
    return document


def counted(model: str, heads: str | None, device: str, has_adapter: bool = True) -> dict[str, float]:
    """Tokens per step on the held-out prompts by nodes, of the heads alone and of heads and lookup in one tree."""
    codec = TextCodec.load(model)
    prompts = read_prompts(default_prompts(model, "--prompts"), codec)
    figures = {}
    for name, has_lookup in (("heads", False), ("merged", True)):
        config = EngineConfig(
            model,
            heads,
            device=device,
            tree_nodes=max(COUNTED_NODES),
            prompt_lookup=has_lookup,
            recycling=has_lookup,
            adapter=has_adapter,
            self_test=False,
        )
        engine = Engine.load(config)
        for nodes in COUNTED_NODES:
            peer = EnginePeer(engine, SpeculationParams(max_nodes=nodes))
            limits = {"chat": 200, "text": 96}
            said = [peer.answer(prompt, SamplingParams(0.0), limits[prompt.kind]) for prompt in prompts]
            figures[f"{name} N={nodes}"] = round(tokens_per_step(said), 3)
    return figures


def cost(device: torch.device, rounds: int) -> dict[str, Any]:
    """One training step against the base's forward pass and the heads' own arithmetic, on the same rows."""
    is_cpu = device.type == "cpu"
    plan = DEMO_PLAN if is_cpu else TrainPlan(rows_per_pass=4, passes_per_step=1)
    base = FrozenBase.load("demo", device) if is_cpu else seven_billion(device)
    generator = torch.Generator().manual_seed(0)
    texts = [
        Example(tuple(torch.randint(5, base.vocab_size, (plan.max_length // 4,), generator=generator).tolist()),
                (True,) * (plan.max_length // 4))
        for _ in range(16 * plan.rows_per_pass)
    ]  # fmt: skip
    rows = PackedRows.pack(Examples.of(texts), plan.max_length, 0)
    heads = DraftHeads.from_base(base.lm_head, plan.num_heads, 1, plan.shared_lm_head).float().to(device)
    recipe = HeadsRecipe(base, heads, rows, rows, plan, Alone(device))
    (optimizer,) = recipe.optimizers()
    batch = rows.batch(0, plan.rows_per_step)
    with mixed_precision(device):
        states, labels = judged_rows(base, batch, plan.num_heads)
    weights = torch.ones(plan.num_heads, device=device) / len(states)

    @torch.no_grad()
    def forward() -> None:
        with mixed_precision(device):
            base.hidden(batch.to(device))

    def arithmetic() -> None:
        with mixed_precision(device):
            for start in range(0, len(states), plan.rows_per_chunk):
                place = slice(start, start + plan.rows_per_chunk)
                (head_nats(heads, states[place], labels[:, place]) * weights).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def step() -> None:
        recipe.accumulate(0)
        torch.nn.utils.clip_grad_norm_(heads.parameters(), plan.gradient_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    parts: dict[str, Callable[[], None]] = {"forward": forward, "heads": arithmetic, "step": step}
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds + 1):
        for name, run in parts.items():
            seconds[name].append(timed(run, device))
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}  # the first ones warm up
    tokens = batch.tokens.numel()
    document: dict[str, Any] = {
        "shape": "demo" if is_cpu else "7B, random weights",
        "tokens": tokens,
        "seconds": medians,
        "over_forward_and_heads": medians["step"] / (medians["forward"] + medians["heads"]),
        "tokens_per_second": tokens / medians["step"],
    }
    if not is_cpu:
        document["peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
        hours = CONVERSATIONS * CONVERSATION_TOKENS * plan.epochs / document["tokens_per_second"] / 3600
        document["projected_hours"] = {
            "hours": hours,
            "assumes": f"{CONVERSATIONS} conversations of {CONVERSATION_TOKENS} tokens, {plan.epochs} passes",
        }
    return document


def timed(run: Callable[[], None], device: torch.device) -> float:
    """Seconds of one call, work on the device included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def seven_billion(device: torch.device) -> FrozenBase:
    """A base of that shape; what its weights are makes no difference to the time."""
    with torch.device(device):
        model = LlamaForCausalLM._from_config(SEVEN_BILLION, dtype=torch.bfloat16)
    tokenizer: Any = None  # nothing is read or written
    return FrozenBase.of("7B", model.requires_grad_(False), tokenizer)


def rows_of(document: dict[str, Any]) -> Iterator[str]:
    """The figures of one trained set of heads, for people."""
    held_out, perplexity = document["held_out"], document["perplexity"]
    yield f"  {document['core_seconds']:.0f} s of one core, {document['steps']} steps"
    yield f"  first guess right: {', '.join(f'{share:.3f}' for share in held_out['top_1'])}"
    steps = document["tokens_per_step"].items()
    yield f"  tokens per step: {', '.join(f'{name} {value:.2f}' for name, value in steps)}"
    if perplexity is not None:
        yield f"  held-out perplexity {perplexity['change_percent']:+.2f} %"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=("cost", "scratch", "long", "joint"), default=["cost", "scratch"])
    parser.add_argument("--work", type=Path, default=Path(".work/train"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="also write the JSON document to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    options.work.mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = {"benchmark": "train", "machine": machine(), "parts": {}}
    parts: dict[str, Any] = document["parts"]
    if "cost" in options.parts:
        parts["cost"] = cost(torch.device(options.device), options.rounds)
        seconds = parts["cost"]["seconds"]
        print(f"one Medusa-1 step of {parts['cost']['tokens']} tokens, {parts['cost']['shape']}")
        print("  " + ", ".join(f"{name} {1e3 * value:.0f} ms" for name, value in seconds.items()))
        print(f"  over forward and heads: {parts['cost']['over_forward_and_heads']:.3f}")
    runs = {"scratch": (SHORT, None, "half.jsonl"), "long": (LONG, None, "answers.jsonl"),
            "joint": (SHORT, JOINT, "half.jsonl")}  # fmt: skip
    for name, (plan, joint, data) in runs.items():
        if name in options.parts:
            answers(options.work, options.device)
            parts[name] = trained(options.work, name, options.work / data, plan, joint, options.device)
            print(name, *rows_of(parts[name]), sep="\n")
    if {"scratch", "long", "joint"} & set(options.parts):
        parts["shipped"] = {"tokens_per_step": counted("demo", None, options.device)}
        print("shipped heads", parts["shipped"]["tokens_per_step"])
    if options.out is not None:
        options.out.write_text(json.dumps(document, indent=2) + "\n")
    print(json.dumps(document))


if __name__ == "__main__":
    main()

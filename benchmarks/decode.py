"""Tokens per step and decode speed of the engine: trees of several sizes, our plain decoding, transformers.generate.

All peers answer the same prompt ids greedily from the same weights. A first pass over all prompts counts tokens per
step and compares the answers, which must be equal token for token in float32. Then the first prompts of each kind are
timed, interleaved prompt by prompt with one thread each, so that what else the machine does falls on all alike.
Prints a table for people and one JSON document as the last line.

Usage: python benchmarks/decode.py [--model demo] [--prompts FILE] [--nodes 1 4 8 16 32 64] [--max-tokens 128]
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers

from medusa_core.config import EngineConfig, SpeculationParams, model_location
from medusa_core.engine import Engine
from medusa_core.generation import GenerationRequest
from medusa_core.sampling import SamplingParams
from medusa_core.text import TextCodec

HELD_OUT = Path(__file__).parent.parent / "medusa_core" / "demo" / "held_out.jsonl"
GENERATE = "transformers.generate"


@dataclass
class Record:
    """What one peer did over all prompts."""

    seconds_per_token: list[float] = field(default_factory=list)  # one per prompt and repeat, decode only
    steps: int = 0
    step_tokens: int = 0
    step_seconds: list[float] = field(default_factory=list)
    by_kind: dict[str, list[int]] = field(default_factory=dict)  # kind of prompt -> [tokens, steps]
    accepted: Counter[str] = field(default_factory=Counter)  # drafts by who proposed them


def read_prompts(path: Path, codec: TextCodec) -> list[tuple[str, list[int]]]:
    """Kind and token ids of every prompt: {"messages": [...]} is a chat, {"text": "..."} is continued as it stands."""
    prompts = []
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        if "messages" in entry:
            prompts.append(("chat", codec.encode_chat(entry["messages"])))
        else:
            prompts.append(("text", codec.encode(entry["text"])))
    return prompts


def ours(engine: Engine, kind: str, prompt: list[int], nodes: int, max_tokens: int, record: Record) -> list[int]:
    """Answer one prompt with a tree of so many nodes; the cache is emptied first, like any other peer's."""
    engine.forget()
    speculation = SpeculationParams(mode="tree", max_nodes=nodes)
    request = GenerationRequest(tuple(prompt), SamplingParams(temperature=0.0), speculation, max_tokens)
    tokens: list[int] = []
    steps = emitted = 0
    started = time.perf_counter()
    for delta in engine.generate(request):
        tokens += delta.tokens
        if delta.step is None:
            started = time.perf_counter()  # decode time starts where prefill has decided the first token
        else:
            steps, emitted = steps + 1, emitted + len(delta.tokens)
            record.step_seconds.append(delta.step.seconds)
            record.accepted.update(delta.step.accepted)
    if emitted:
        record.seconds_per_token.append((time.perf_counter() - started) / emitted)
    record.steps, record.step_tokens = record.steps + steps, record.step_tokens + emitted
    counts = record.by_kind.setdefault(kind, [0, 0])
    counts[0], counts[1] = counts[0] + emitted, counts[1] + steps
    return tokens


class FirstTokenClock(transformers.generation.streamers.BaseStreamer):
    """Notes when generate hands out its first new token, which is where decode time starts."""

    def __init__(self) -> None:
        self.calls, self.started = 0, 0.0

    def put(self, value: torch.Tensor) -> None:
        """Called with the prompt, then with every new token."""
        self.calls += 1
        if self.calls == 2:
            self.started = time.perf_counter()

    def end(self) -> None:
        """Called once at the end."""


def theirs(model: transformers.PreTrainedModel, prompt: list[int], max_tokens: int, record: Record) -> list[int]:
    """Answer one prompt with transformers.generate."""
    clock = FirstTokenClock()
    output = model.generate(
        torch.tensor([prompt]), max_new_tokens=max_tokens, do_sample=False, streamer=clock, pad_token_id=0
    )
    tokens = output[0, len(prompt) :].tolist()
    if len(tokens) > 1:
        record.seconds_per_token.append((time.perf_counter() - clock.started) / (len(tokens) - 1))
    return tokens


def quantiles(values: list[float]) -> dict[str, float]:
    """Median with the 10th and 90th percentile."""
    ordered = sorted(values)
    at = [ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))] for share in (0.1, 0.9)]
    return {"median": statistics.median(ordered), "p10": at[0], "p90": at[1]}


def machine() -> dict[str, object]:
    """What ran where: processor, versions, revision."""
    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    revision = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "revision": revision.stdout.strip() or None,
        "load_average": os.getloadavg()[0],
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--heads")
    parser.add_argument("--prompts", type=Path, default=HELD_OUT)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 4, 8, 16, 32, 64])
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--timed", type=int, default=8, help="prompts of each kind that are timed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="also write the JSON document to this file")
    options = parser.parse_args()

    torch.set_num_threads(1)
    largest = max(options.nodes)
    engine = Engine.load(EngineConfig(options.model, options.heads, tree_nodes=largest, num_threads=1, device="cpu"))
    codec = TextCodec.load(options.model)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        model_location(options.model), dtype=torch.float32, trust_remote_code=False
    )
    prompts = read_prompts(options.prompts, codec)
    kinds = {kind: [prompt for of, prompt in prompts if of == kind] for kind in dict(prompts)}
    timed = [(kind, prompt) for kind, found in kinds.items() for prompt in found[: options.timed]]

    def answer_all(chosen: list[tuple[str, list[int]]], peers: dict[str, Record]) -> dict[str, int]:
        """Let every peer answer every prompt; returns how many answers differ from transformers', by peer."""
        differing: dict[str, int] = {}
        for kind, prompt in chosen:
            expected = theirs(model, prompt, options.max_tokens, peers[GENERATE])
            for nodes in options.nodes:
                name = f"N={nodes}"
                if ours(engine, kind, prompt, nodes, options.max_tokens, peers[name]) != expected:
                    differing[name] = differing.get(name, 0) + 1
        return differing

    names = [*(f"N={nodes}" for nodes in options.nodes), GENERATE]
    counted, peers = {name: Record() for name in names}, {name: Record() for name in names}
    differing = answer_all(prompts, counted)  # also the warm-up of every peer
    for _ in range(options.repeats):
        answer_all(timed, peers)

    plain = statistics.median(peers["N=1"].seconds_per_token) if "N=1" in peers else None
    generate = statistics.median(peers[GENERATE].seconds_per_token)
    rows = []
    for name, record in peers.items():
        speed = quantiles([1 / seconds for seconds in record.seconds_per_token])
        per_token = statistics.median(record.seconds_per_token)
        rows.append(
            {
                "peer": name,
                "tokens_per_second": speed,
                "tokens_per_step": counted[name].step_tokens / counted[name].steps if counted[name].steps else None,
                "tokens_per_step_by_kind": {kind: t / s for kind, (t, s) in counted[name].by_kind.items() if s},
                "accepted_by_source": dict(counted[name].accepted),
                "step_ms": 1e3 * statistics.median(record.step_seconds) if record.step_seconds else None,
                "over_plain": plain / per_token if plain is not None else None,
                "over_generate": generate / per_token,
            }
        )
    print(f"{'peer':24}{'tok/s':>9}{'tok/step':>10}{'step ms':>9}{'x plain':>9}{'x generate':>12}")
    for row in rows:
        figures = [row["tokens_per_step"], row["step_ms"], row["over_plain"], row["over_generate"]]
        cells = "".join(
            f"{value:>{width}.2f}" if value is not None else " " * (width - 1) + "-"
            for value, width in zip(figures, (10, 9, 9, 12), strict=True)
        )
        print(f"{row['peer']:24}{row['tokens_per_second']['median']:>9.1f}{cells}")
    print("answers differing from transformers.generate:", differing or "none")
    document = {
        "benchmark": "decode",
        "model": options.model,
        "dtype": engine.info.dtype,
        "prompts": {kind: len(found) for kind, found in kinds.items()},
        "timed_prompts": len(timed),
        "max_tokens": options.max_tokens,
        "repeats": options.repeats,
        "machine": machine(),
        "answers_differing": differing,
        "peers": rows,
    }
    if options.out is not None:
        options.out.write_text(json.dumps(document, indent=2) + "\n")
    print(json.dumps(document))


if __name__ == "__main__":
    main()

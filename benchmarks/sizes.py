"""What choosing the size of each step's tree brings: auto beside plain decoding and trees of fixed sizes.

Workloads are the demo model's held-out prompts and long documents made of them, greedy and at a high temperature, where
little is guessed, and forms that a schema prescribes in part. Everybody answers each prompt in turn, with a seed where
tokens are drawn, so that the text is always the same. Decoding is timed by the time that its thread ran, which other
programs disturb little. Prints a table and one JSON document as the last line.

Usage: python benchmarks/sizes.py [--model demo] [--fixed 8 16] [--prompts 30] [--max-tokens 128] [--repeats 2]
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from medusa_core.config import EngineConfig, SpeculationParams
from medusa_core.constraints import Grammar
from medusa_core.engine import Engine
from medusa_core.evaluation.machine import machine
from medusa_core.evaluation.prompts import default_prompts, fitting, read_prompts
from medusa_core.generation import GenerationRequest
from medusa_core.sampling import SamplingParams
from medusa_core.text import TextCodec

HOT = 1.5
PART = {"kind": {"enum": ["module", "function", "class"]}, "lines": {"type": "integer", "maximum": 500}}
FORM = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "parts": {
            "type": "array",
            "minItems": 2,
            "maxItems": 4,
            "items": {"type": "object", "properties": PART, "required": [*PART], "additionalProperties": False},
        },
        "description": {"type": "string", "maxLength": 30},
    },
    "required": ["name", "parts", "description"],
    "additionalProperties": False,
}
LONG_DOCUMENTS = 6

Prompt = tuple[int, ...]


@dataclass
class Total:
    """What one way of speculating took for a workload; `nodes` of its trees in all."""

    seconds: float = 0.0
    tokens: int = 0
    steps: int = 0
    nodes: int = 0


@dataclass
class Workload:
    """Prompts that are answered in the same way, and what that took by who answered."""

    name: str
    prompts: Sequence[Prompt]
    sampling: SamplingParams
    grammar: str | None = None
    totals: dict[str, Total] = field(default_factory=dict)

    def speed(self, way: str) -> float:
        """Over plain decoding, in which all write the same text."""
        return self.totals["off"].seconds / self.totals[way].seconds


def workloads(prompts: Sequence[Prompt], max_context: int, max_tokens: int, count: int) -> list[Workload]:
    """Ordinary and long prompts, greedy and hot; a long one is several joined. Then forms, greedy and at 1."""
    room = max_context - max_tokens
    joined = sum(prompts, ())
    starts = [max(0, len(joined) - room) * number // (LONG_DOCUMENTS - 1) for number in range(LONG_DOCUMENTS)]
    long = [joined[start : start + room] for start in starts]
    chosen = prompts[:: max(1, len(prompts) // count)][:count]
    greedy, hot = SamplingParams(0.0), SamplingParams(HOT, seed=1)
    kinds = {"ordinary": chosen, "long": [document for document in long if document]}
    form = Grammar.json_schema(FORM, is_lenient=False).text
    return [
        Workload(f"{kind}, {name}", found, sampling)
        for kind, found in kinds.items()
        for name, sampling in (("greedy", greedy), (f"temperature {HOT}", hot))
    ] + [
        Workload("form, greedy", chosen, greedy, form),
        Workload("form, temperature 1", chosen, SamplingParams(1.0, seed=1), form),
    ]


def answer(engine: Engine, work: Workload, prompt: Prompt, way: SpeculationParams, limit: int) -> Total:
    """One answer from an empty cache; the prompt's time is left out."""
    engine.forget()
    found, started = Total(), 0.0
    for delta in engine.generate(GenerationRequest(prompt, work.sampling, way, limit, grammar=work.grammar)):
        if delta.step is None:
            started = time.thread_time()
            continue
        found.tokens += len(delta.tokens)
        found.steps += 1
        found.nodes += delta.step.num_nodes
    found.seconds = time.thread_time() - started
    return found


def measure(engine: Engine, work: Workload, fixed: Sequence[int], limit: int, repeats: int) -> None:
    """Let everybody answer every prompt in turn, and add it up."""
    ways = {"off": SpeculationParams("off"), "auto": SpeculationParams("auto")}
    ways |= {f"N={nodes}": SpeculationParams("tree", nodes) for nodes in fixed}
    for _ in range(repeats):
        for prompt in work.prompts:
            for name, way in ways.items():
                found = answer(engine, work, prompt, way, limit)
                total = work.totals.setdefault(name, Total())
                total.seconds += found.seconds
                total.tokens += found.tokens
                total.steps += found.steps
                total.nodes += found.nodes


def print_table(found: Sequence[Workload]) -> None:
    """The ways of each workload, one a line."""
    print(f"{'workload':30}{'way':>6}{'x plain':>9}{'tok/step':>10}{'nodes':>7}")
    for work in found:
        for way, total in work.totals.items():
            per_step, nodes = total.tokens / total.steps, total.nodes / total.steps
            print(f"{work.name:30}{way:>6}{work.speed(way):>9.3f}{per_step:>10.2f}{nodes:>7.1f}")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--fixed", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--prompts", type=int, default=30, help="ordinary prompts that are answered")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path, help="also write the JSON document to this file")
    options = parser.parse_args()

    engine = Engine.load(EngineConfig(options.model, num_threads=1, device="cpu"))
    read = read_prompts(default_prompts("demo", "--prompts"), TextCodec.load(options.model))
    prompts = [prompt.tokens for prompt in fitting(read, engine.info.max_context, options.max_tokens)]
    found = workloads(prompts, engine.info.max_context, options.max_tokens, options.prompts)
    for work in found:
        measure(engine, work, options.fixed, options.max_tokens, options.repeats)
    print_table(found)
    document = {
        "benchmark": "sizes",
        "machine": machine(),
        "model": options.model,
        "tree_sizes": engine.info.tree_sizes,
        "workloads": [
            {
                "name": work.name,
                "over_plain": {way: work.speed(way) for way in work.totals},
                "totals": {way: asdict(total) for way, total in work.totals.items()},
            }
            for work in found
        ],
    }
    if options.out is not None:
        options.out.write_text(json.dumps(document, indent=2) + "\n")
    print(json.dumps(document))


if __name__ == "__main__":
    main()

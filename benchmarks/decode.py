"""Tokens per step and decode speed of the engine: trees of several sizes, our plain decoding, transformers.generate.

All peers answer the same prompt ids greedily from the same weights, as medusa_core/evaluation/bench.py has them. Our
answers must equal transformers' token for token in float32. Everybody runs with one thread. Prints a table for people
and one JSON document as the last line.

Usage: python benchmarks/decode.py [--model demo] [--prompts FILE] [--nodes 1 4 8 16 32 64] [--max-tokens 128]
"""

import argparse
import json
from pathlib import Path

import torch

from medusa_core.config import EngineConfig, SpeculationParams
from medusa_core.engine import Engine
from medusa_core.evaluation.answers import EnginePeer
from medusa_core.evaluation.bench import BenchPlan, Contestant, compare
from medusa_core.evaluation.generate import GeneratePeer
from medusa_core.evaluation.prompts import default_prompts, fitting, read_prompts
from medusa_core.evaluation.report import BenchReport
from medusa_core.text import TextCodec


def contestants(engine: Engine, nodes: list[int]) -> list[Contestant]:
    """transformers.generate, whose texts are the reference, and our engine with trees of several sizes."""
    found = [Contestant("transformers.generate", "transformers", None, GeneratePeer.load(engine.info))]
    for count in nodes:
        peer = EnginePeer(engine, SpeculationParams(mode="tree", max_nodes=count))
        found.append(Contestant(f"N={count}", "plain" if count == 1 else "dynamic", count, peer))
    return found


def print_table(report: BenchReport) -> None:
    """The peers, one a line."""
    print(f"{'peer':24}{'tok/s':>9}{'tok/step':>10}{'step ms':>9}{'x plain':>9}{'x generate':>12}")
    for result in report.peers:
        figures = [result.tokens_per_step, result.step_ms, result.over_plain, result.over_generate]
        cells = "".join(
            f"{value:>{width}.2f}" if value is not None else " " * (width - 1) + "-"
            for value, width in zip(figures, (10, 9, 9, 12), strict=True)
        )
        print(f"{result.peer:24}{result.tokens_per_second.median:>9.1f}{cells}")
    differing = report.document()["answers_differing"]
    print("answers differing from transformers.generate:", differing if differing else "none")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--heads")
    parser.add_argument("--prompts", type=Path, help="left out: the demo model's held-out prompts")
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 4, 8, 16, 32, 64])
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--timed", type=int, default=8, help="prompts of each kind that are timed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="also write the JSON document to this file")
    options = parser.parse_args()

    torch.set_num_threads(1)
    largest = max(options.nodes)
    engine = Engine.load(EngineConfig(options.model, options.heads, tree_nodes=largest, num_threads=1, device="cpu"))
    path = options.prompts if options.prompts is not None else default_prompts("demo", "--prompts")
    prompts = read_prompts(path, TextCodec.load(options.model))
    chosen = fitting(prompts, engine.info.max_context, options.max_tokens)
    plan = BenchPlan(max_tokens=options.max_tokens, timed_prompts=options.timed, repeats=options.repeats)
    report = compare(engine, contestants(engine, options.nodes), chosen, plan, len(prompts) - len(chosen))
    print_table(report)
    document = json.dumps(report.document())
    if options.out is not None:
        options.out.write_text(json.dumps(report.document(), indent=2) + "\n")
    print(document)


if __name__ == "__main__":
    main()

"""Time per step of this checkout against another one: what a change costs a request that uses none of it.

Both run the same prompts, greedily, alternating process by process with one thread each. Prints a table for people and
one JSON document as the last line.

Usage: git worktree add ../before REVISION; python benchmarks/step.py --against ../before [--rounds 3] [--out FILE]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent.parent
HELD_OUT = HERE / "medusa_core" / "demo" / "held_out.jsonl"
NODES = (1, 8)
PROMPTS_OF_EACH_KIND, MAX_TOKENS, REPEATS = 5, 96, 3


def measure() -> dict[int, float]:
    """Median milliseconds of a step by tree nodes, with the packages that this process finds first."""
    from medusa_core import Engine, EngineConfig, GenerationRequest, SamplingParams, SpeculationParams
    from medusa_core.text import TextCodec

    engine = Engine.load(EngineConfig("demo", tree_nodes=max(NODES), num_threads=1, device="cpu"))
    codec = TextCodec.load("demo")
    held_out = [json.loads(line) for line in HELD_OUT.read_text().splitlines()]
    kinds = [[entry for entry in held_out if kind in entry] for kind in ("messages", "text")]
    prompts = [
        tuple(codec.encode_chat(entry["messages"]) if "messages" in entry else codec.encode(entry["text"]))
        for kind in kinds
        for entry in kind[:PROMPTS_OF_EACH_KIND]
    ]
    seconds: dict[int, list[float]] = {nodes: [] for nodes in NODES}
    for repeat in range(REPEATS):
        for prompt in prompts:
            for nodes in NODES:
                engine.forget()
                speculation = SpeculationParams("tree", nodes)
                request = GenerationRequest(prompt, SamplingParams(temperature=0.0), speculation, MAX_TOKENS)
                for delta in engine.generate(request):
                    if delta.step is not None and repeat > 0:  # the first round warms up
                        seconds[nodes].append(delta.step.seconds)
    return {nodes: 1e3 * statistics.median(found) for nodes, found in seconds.items()}


def measured_in(checkout: Path) -> dict[str, float]:
    """What `measure` finds in a process of its own that runs the code of a checkout."""
    command = [sys.executable, __file__, "--measure"]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    ended = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return found


def revision_of(checkout: Path) -> str:
    """The commit that is checked out."""
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="another checkout of this project")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="also write the JSON document to this file")
    parser.add_argument("--measure", action="store_true", help="measure this process alone")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure()))
        return
    from medusa_core.evaluation.machine import machine  # here: a measured checkout may be older than it

    checkouts = {"before": options.against.resolve(), "after": HERE.resolve()}
    rounds = [{name: measured_in(checkout) for name, checkout in checkouts.items()} for _ in range(options.rounds)]
    medians = {
        name: {nodes: statistics.median(one[name][nodes] for one in rounds) for nodes in rounds[0][name]}
        for name in checkouts
    }
    print(f"{'nodes':>6}{'before ms':>11}{'after ms':>10}{'ratio':>7}")
    for nodes in medians["after"]:
        before, after = medians["before"][nodes], medians["after"][nodes]
        print(f"{nodes:>6}{before:>11.2f}{after:>10.2f}{after / before:>7.3f}")
    document = {
        "benchmark": "step",
        "revisions": {name: revision_of(checkout) for name, checkout in checkouts.items()},
        "machine": machine(),
        "rounds": rounds,
        "median_step_ms": medians,
    }
    if options.out is not None:
        options.out.write_text(json.dumps(document, indent=2) + "\n")
    print(json.dumps(document))


if __name__ == "__main__":
    main()

"""What a GPU makes of a step: one command of under nine minutes, for any CUDA machine with torch and transformers.

Parts, each within its share of the time (what does not fit is named):
  bandwidth  what the card copies per second, reading and writing; products of M rows by a large matrix
  plain      7B- and 8B-shaped random bf16 models: a step of one token, and what share of the bandwidth limit it reaches
  nodes      the same models: steps by nodes of the tree, overhead over plain, ordinary against recorded steps, and what
             is neither forward pass nor heads (the kernel tail) nor the device's (the host gap)
  context    steps by context, the cache read by buckets and by length, with the attention kernels that ran
  prompts    prompts in ordinary passes and in recorded ones that are filled up
  heads      steps by what the heads draft with
  compiled   steps whose forward pass was compiled by inductor before it was recorded
  attention  one layer's attention by context, by the kernels there are, and by length
  demo       the shipped model end to end: recorded equals ordinary in float32, and where answers part in bfloat16

Random weights say how long steps take, not how many tokens they bring: speed-ups made of both are called projected.
Prints tables and one JSON document as the last line. `--smoke` runs every part, tiny, on a CPU, where a stand-in takes
the place of CUDA graphs.

Usage: python -m benchmarks.gpu [--parts plain,nodes] [--seconds 500] [--out FILE] [--smoke]
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.on_gpu.models import SHAPES, SMOKE
from benchmarks.on_gpu.parts import PARTS, SHARES, Setting
from benchmarks.on_gpu.timing import Budget
from medusa_core.evaluation.machine import machine
from medusa_core.evaluation.spread import rounded


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark; without arguments, by those of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="which, separated by commas")
    parser.add_argument("--seconds", type=float, default=500.0, help="for all parts together")
    parser.add_argument("--out", type=Path, help="also write the JSON document to this file")
    parser.add_argument("--smoke", action="store_true", help="tiny, on the CPU, to see that everything runs")
    options = parser.parse_args(arguments)
    if options.smoke:
        setting = Setting(torch.device("cpu"), torch.float32, SMOKE, (1, 4), (64, 300), 2)
    elif torch.cuda.is_available():
        nodes = (1, 16, 32, 48, 64, 96, 128)
        setting = Setting(torch.device("cuda"), torch.bfloat16, SHAPES, nodes, (512, 2048, 8192), 40)
    else:
        parser.error("there is no CUDA device; --smoke shows on a CPU that everything runs")
    chosen = [name for name in PARTS if name in options.parts.split(",")]
    if setting.bandwidth is None and "bandwidth" not in chosen:
        chosen.insert(0, "bandwidth")  # what the others are compared with
    whole = sum(SHARES[name] for name in chosen)
    for name in chosen:
        started, budget = time.monotonic(), Budget(options.seconds * SHARES[name] / whole)
        print(f"\n== {name}")
        found = PARTS[name](setting, budget)
        seconds = time.monotonic() - started
        setting.found[name] = {**found, "left_out": budget.left_out, "seconds": seconds}
    document = {"benchmark": "gpu", "smoke": options.smoke, "machine": machine(), "parts": rounded(setting.found)}
    text = json.dumps(document)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()

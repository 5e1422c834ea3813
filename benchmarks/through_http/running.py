"""What the programs that measure through HTTP share: their options, their sets of prompts, one comparison each."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.llama_cpp import WORK
from benchmarks.through_http.asking import StreamPeer
from benchmarks.through_http.comparing import ask_in_turn, limits_of
from benchmarks.through_http.figures import Found, figures_of
from benchmarks.through_http.others import QUIET, busy_cores
from benchmarks.through_http.showing import document_of, print_table, write_document
from benchmarks.through_http.starting import CONTEXT, Model
from medusa_core.config import model_location
from medusa_core.evaluation.prompts import Prompt, default_prompts, fitting, of_each_kind, read_prompts
from medusa_core.sampling import SamplingParams
from medusa_core.text import TextCodec

__all__ = [
    "COPY_HEAVY",
    "HELD_OUT",
    "HELD_OUT_SAMPLED",
    "PromptSet",
    "finish",
    "parser_of",
    "run",
    "started",
    "stop_tokens",
]


# Before any of our own processes is there.
LISTENING_S = 3.0


@dataclass(frozen=True)
class PromptSet:
    """Prompts, and how they are answered; without a file they are the demo model's held-out ones."""

    name: str
    file: Path | None
    temperature: float


HELD_OUT = PromptSet("held-out prompts", None, 0.0)
COPY_HEAVY = PromptSet("copy-heavy prompts", Path(__file__).parents[1] / "prompts" / "copy_heavy.jsonl", 0.0)
HELD_OUT_SAMPLED = PromptSet("held-out prompts, temperature 1", None, 1.0)


def parser_of(description: str | None, timed: int) -> argparse.ArgumentParser:
    """The options of a comparison."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--heads")
    parser.add_argument("--nodes", type=int, default=8, help="of every tree but the automatic one's")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--timed", type=int, default=timed, help="prompts of each kind in each set")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", type=Path, default=WORK, help="for logs, and where llama.cpp was built")
    parser.add_argument("--out", type=Path, help="also write the JSON document to this file")
    return parser


def started(options: argparse.Namespace) -> Model:
    """The model that is asked for, with its tokenizer and the tokens that end an answer; readies this process."""
    torch.set_num_threads(1)
    options.others_busy = busy_cores(LISTENING_S)
    if options.others_busy is not None and options.others_busy > QUIET:
        print(f"others use {options.others_busy:.1f} cores of this machine; take these figures again when it is quiet")
    options.work.mkdir(parents=True, exist_ok=True)
    stops = stop_tokens(Path(model_location(options.model)))
    return Model(options.model, options.heads, options.nodes, TextCodec.load(options.model), stops)


def stop_tokens(folder: Path) -> frozenset[int]:
    """The tokens that end an answer, as the checkpoint's files name them."""
    found: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        if (folder / name).exists():
            told = json.loads((folder / name).read_text(encoding="utf-8")).get("eos_token_id")
            found.update([told] if isinstance(told, int) else told if told is not None else [])
    return frozenset(found)


def run(
    model: Model, peers: Mapping[str, StreamPeer], prompt_set: PromptSet, options: argparse.Namespace, reference: str
) -> Found:
    """Let all peers answer one set of prompts in turn, and show what came of it.

    reference: the peer whose texts the others' are compared with.
    """
    prompts = _prompts(model, prompt_set, options.timed, options.max_tokens)
    limits = limits_of(model.folder, prompts, options.max_tokens)
    sampling = SamplingParams(temperature=prompt_set.temperature, seed=0)
    answers = ask_in_turn(peers, prompts, sampling, options.max_tokens, options.repeats, _watch)
    _watch("")
    found = Found(prompt_set.name, limits, figures_of(answers, reference, limits))
    print_table(found.name, found.figures)
    return found


def _prompts(model: Model, prompt_set: PromptSet, timed: int, max_tokens: int) -> list[Prompt]:
    """The first prompts of each kind that leave room for an answer."""
    file = prompt_set.file if prompt_set.file is not None else default_prompts("demo", "--prompts")
    return of_each_kind(fitting(read_prompts(file, model.codec), CONTEXT, max_tokens), timed)


def _watch(stage: str) -> None:
    """One line for somebody who waits."""
    print(f"\r{stage:70}\r", end="", file=sys.stderr, flush=True)


def finish(benchmark: str, found: Sequence[Found], options: argparse.Namespace, facts: Mapping[str, Any]) -> None:
    """The JSON document, as the last line and in a file where one is asked for."""
    names = ("model", "heads", "nodes", "max_tokens", "repeats", "others_busy")
    chosen = {name: getattr(options, name) for name in names}
    document = document_of(benchmark, found, {**chosen, "dtype": "float32", **facts})
    if options.out is not None:
        write_document(document, options.out)
    print(json.dumps(document))

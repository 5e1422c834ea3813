"""Pick prompts whose own plain answer repeats what stands in them, from what the demo model was never trained on.

Two forms are tried on all held-out material: a definition of a held-out file that begins a second time, as it is or
under a new name, for a text to continue; and a question about a held-out name asked again behind its documentation. The
demo model is too small to repeat at will, so most of these prompts do not make it copy. Kept are those whose greedy
answer takes at least PICKED of its different spans of SPAN tokens from the prompt. Trees change no answer, and what
they make of a prompt plays no part.

Usage: python benchmarks/prompts/pick_copying.py --out benchmarks/prompts/copy_heavy.jsonl
"""

import argparse
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from medusa_core.config import EngineConfig
from medusa_core.demo.corpus import Corpus, build_corpus
from medusa_core.engine import Engine
from medusa_core.generation import GenerationRequest
from medusa_core.sampling import SamplingParams
from medusa_core.text import TextCodec

SPAN, PICKED, FEWEST_SPANS = 4, 0.45, 16
MAX_TOKENS, LONGEST_PROMPT = 96, 800
DEFINITION_TOKENS = (50, 350)
SHORTEST_ANSWER = 150


def definitions(corpus: Corpus, codec: TextCodec) -> Iterator[str]:
    """Functions, methods and heads of classes of held-out files."""
    for document in corpus.documents:
        if not document.held_out or not document.path.endswith(".py"):
            continue
        lines = document.text.splitlines(keepends=True)
        starts = [index for index, line in enumerate(lines) if re.match(r"\s*(def |class |async def )", line)]
        for start, end in itertools.pairwise([*starts, len(lines)]):
            piece = "".join(lines[start:end]).rstrip() + "\n"
            if DEFINITION_TOKENS[0] <= len(codec.encode(piece)) <= DEFINITION_TOKENS[1]:
                yield piece


def begun_again(piece: str) -> Iterator[dict[str, Any]]:
    """A definition and its first two lines again: as they are, under a new name, and for the third time."""
    beginning = "".join(piece.splitlines(keepends=True)[:2])
    name = re.search(r"(?:def|class) (\w+)", piece)
    assert name is not None
    yield {"text": f"{piece}\n{beginning}"}
    yield {"text": f"{piece}\n{beginning.replace(name[1], f'new_{name[1]}', 1)}"}
    yield {"text": f"{piece}\n{piece}\n{beginning}"}


def candidates(corpus: Corpus, codec: TextCodec) -> Iterator[list[dict[str, Any]]]:
    """Prompts about one thing each, of which the one that is copied from most may be kept."""
    for piece in definitions(corpus, codec):
        yield list(begun_again(piece))
    for entry in corpus.entries:
        if entry.held_out and entry.kind != "topic" and len(entry.answer) > SHORTEST_ANSWER:
            question = {"role": "user", "content": f"What does {entry.name} do?"}
            yield [{"messages": [question, {"role": "assistant", "content": entry.answer}, question]}]


def copied(prompt: tuple[int, ...], answer: list[int]) -> float:
    """Share of the answer's different spans that stand in the prompt; 0 for answers with hardly any."""
    spans, there = (
        {tuple(tokens[place : place + SPAN]) for place in range(len(tokens) - SPAN + 1)} for tokens in (answer, prompt)
    )
    return len(spans & there) / len(spans) if len(spans) >= FEWEST_SPANS else 0.0


def main() -> None:
    """Pick them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    engine, codec = Engine.load(EngineConfig("demo", num_threads=1, device="cpu")), TextCodec.load("demo")

    def share(entry: dict[str, Any]) -> float:
        tokens = tuple(codec.encode_chat(entry["messages"]) if "messages" in entry else codec.encode(entry["text"]))
        if len(tokens) > LONGEST_PROMPT:
            return 0.0
        request = GenerationRequest(tokens, SamplingParams(temperature=0.0), max_tokens=MAX_TOKENS)
        return copied(tokens, [token for delta in engine.generate(request) for token in delta.tokens])

    picked = []
    for about_one in candidates(build_corpus(), codec):
        best, entry = max(((share(entry), entry) for entry in about_one), key=lambda pair: pair[0])
        if best >= PICKED:
            picked.append({**entry, "copied": round(best, 2)})
            print(f"{best:.2f}", json.dumps(entry)[:80])
    picked.sort(key=lambda entry: -entry["copied"])
    options.out.write_text("".join(json.dumps(entry) + "\n" for entry in picked), encoding="utf-8")
    print(len(picked), "prompts")


if __name__ == "__main__":
    main()

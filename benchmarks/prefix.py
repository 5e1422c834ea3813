"""Time to the first token of a chat turn, by what the engine holds of its history.

The model talks with itself about held-out questions until a history has so many tokens; then the next question is put
to it again and again, interleaved over lengths and over what was computed before: nothing, this conversation, this one
and another after it, or the very prompt. All answers must be the same. Prints a table for people and one JSON document
as the last line.

Usage: python benchmarks/prefix.py [--model demo] [--device cpu] [--lengths 512 1024 1536] [--rounds 9] [--out FILE]
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medusa_core.config import EngineConfig
from medusa_core.engine import Engine
from medusa_core.evaluation.machine import machine
from medusa_core.evaluation.spread import spread
from medusa_core.generation import GenerationRequest
from medusa_core.sampling import SamplingParams
from medusa_core.text import TextCodec

HELD_OUT = Path(__file__).parent.parent / "medusa_core" / "demo" / "held_out.jsonl"
GREEDY = SamplingParams(temperature=0.0)
NOTHING = "nothing"


@dataclass(frozen=True)
class Talk:
    """A conversation: what was computed of it so far, and the prompt of its next turn."""

    history: tuple[int, ...]
    turn: tuple[int, ...]


def answer(engine: Engine, prompt: Sequence[int], max_tokens: int) -> list[int]:
    """A whole answer."""
    request = GenerationRequest(tuple(prompt), GREEDY, max_tokens=max_tokens)
    return [token for delta in engine.generate(request) for token in delta.tokens]


def talk(engine: Engine, codec: TextCodec, questions: Iterator[str], length: int) -> Talk:
    """Question and answer in turn, until the history has so many tokens."""
    messages: list[dict[str, Any]] = []
    history: list[int] = []
    while len(history) < length:
        messages.append({"role": "user", "content": next(questions)})
        prompt = codec.encode_chat(messages)
        tokens = answer(engine, prompt, 96)
        history = [*prompt, *tokens]
        messages.append({"role": "assistant", "content": codec.decode(tokens)})
    messages.append({"role": "user", "content": next(questions)})
    return Talk(tuple(history), tuple(codec.encode_chat(messages)))


def first_token(engine: Engine, prompt: tuple[int, ...]) -> tuple[float, int, int]:
    """Seconds to the first token, the prompt's tokens that were held, and that token."""
    started = time.perf_counter()
    deltas = engine.generate(GenerationRequest(prompt, GREEDY, max_tokens=1))
    first = next(deltas)
    seconds = time.perf_counter() - started
    deltas.close()
    assert first.prompt is not None
    return seconds, first.prompt.cached_tokens, first.tokens[0]


def cases(engine: Engine, one: Talk, other: Talk) -> dict[str, Callable[[], None]]:
    """What happens before the turn that is timed, behind an engine that has forgotten everything."""

    def computed(*prompts: tuple[int, ...]) -> Callable[[], None]:
        def compute() -> None:
            for prompt in prompts:
                answer(engine, prompt, 1)

        return compute

    return {
        NOTHING: computed(),
        "its history": computed(one.history),
        "another after it": computed(one.history, other.history),
        # both were saved before, so that the exchange costs what it will cost from now on
        "two in turn": computed(one.history, other.history, one.history, other.turn),
        "the very prompt": computed(one.turn),
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--heads")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 1536])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, help="also write the JSON document to this file")
    options = parser.parse_args()

    engine = Engine.load(EngineConfig(options.model, options.heads, device=options.device, num_threads=1))
    codec = TextCodec.load(options.model)
    lines = [json.loads(line) for line in HELD_OUT.read_text().splitlines()]
    asked = [entry["messages"][0]["content"] for entry in lines if "messages" in entry]
    talks = {}
    for length in options.lengths:
        # two conversations about different things: what they share is the template's beginning
        halves = asked[::2], asked[1::2]
        talks[length] = [talk(engine, codec, iter([*half, *half, *half]), length) for half in halves]

    seconds: dict[tuple[int, str], list[float]] = {}
    held: dict[tuple[int, str], int] = {}
    for round_ in range(options.rounds + 1):
        for length, (one, other) in talks.items():
            tokens = set()
            for case, prepare in cases(engine, one, other).items():
                engine.forget()
                prepare()
                took, cached, token = first_token(engine, one.turn)
                tokens.add(token)
                held[length, case] = cached
                if round_ > 0:  # the first round warms up
                    seconds.setdefault((length, case), []).append(took)
            assert len(tokens) == 1, "the first token depends on what was held"

    rows = []
    for (length, case), took in seconds.items():
        found = spread(took)
        rows.append(
            {
                "history": len(talks[length][0].history),
                "prompt": len(talks[length][0].turn),
                "computed_before": case,
                "cached_tokens": held[length, case],
                "first_token_ms": asdict(spread(1e3 * value for value in took)),
                "of_uncached": found.median / spread(seconds[length, NOTHING]).median,
            }
        )
    print(f"{'history':>7}{'prompt':>8}  {'computed before':20}{'cached':>7}{'ms':>9}{'of uncached':>13}")
    for row in rows:
        print(
            f"{row['history']:>7}{row['prompt']:>8}  {row['computed_before']:20}{row['cached_tokens']:>7}"
            f"{row['first_token_ms']['median']:>9.2f}{row['of_uncached']:>13.3f}"
        )
    document = {
        "benchmark": "prefix",
        "model": options.model,
        "dtype": engine.info.dtype,
        "rounds": options.rounds,
        "machine": machine(),
        "turns": rows,
    }
    if options.out is not None:
        options.out.write_text(json.dumps(document, indent=2) + "\n")
    print(json.dumps(document))


if __name__ == "__main__":
    main()

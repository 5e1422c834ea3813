"""What request features cost: time per step with each of them over the step without, on one machine in one run.

Every feature answers the same prompts with the same tree size, interleaved prompt by prompt with one thread, so that
what else the machine does falls on all alike. A feature may change the text, and with it how deep a step goes, so the
figure is the median over steps, not over answers. Prints a table for people and one JSON document as the last line.

Usage: python benchmarks/features.py [--model demo] [--nodes 8] [--max-tokens 96] [--repeats 5] [--out FILE]
"""

import argparse
import json
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from medusa_core.config import EngineConfig, SpeculationParams
from medusa_core.constraints import Grammar
from medusa_core.engine import Engine
from medusa_core.evaluation.machine import machine
from medusa_core.evaluation.prompts import default_prompts, of_each_kind, read_prompts
from medusa_core.evaluation.spread import spread
from medusa_core.generation import GenerationRequest
from medusa_core.sampling import SamplingParams
from medusa_core.text import TextCodec

# A record such as an assistant fills in: names are forced, values are free.
RECORD = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 24},
        "kind": {"enum": ["module", "class", "function", "method"]},
        "summary": {"type": "string", "maxLength": 80},
        "arguments": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 4},
        "public": {"type": "boolean"},
    },
    "required": ["name", "kind", "summary", "arguments", "public"],
    "additionalProperties": False,
}


@dataclass
class Record:
    """What one feature cost over all prompts."""

    step_seconds: list[float] = field(default_factory=list)
    tokens: int = 0
    accepted: Counter[str] = field(default_factory=Counter)


def features(
    answers: dict[tuple[int, ...], tuple[int, ...]],
) -> dict[str, Callable[[GenerationRequest], GenerationRequest]]:
    """What each feature changes in a request; `answers` are the plain ones, by prompt."""

    def sampled(**values: object) -> Callable[[GenerationRequest], GenerationRequest]:
        return lambda request: replace(request, sampling=replace(request.sampling, **values))  # type: ignore[arg-type]

    def edited(request: GenerationRequest) -> GenerationRequest:
        """A prediction as an editor sends it: the answer with a few tokens changed."""
        answer = answers[request.prompt]
        return replace(request, prediction=(*answer[:20], *answer[22:60], *answer[50:52], *answer[60:]))

    return {
        "nothing": lambda request: request,
        "temperature 1": sampled(temperature=1.0, seed=1),
        "penalties": sampled(presence_penalty=0.5, frequency_penalty=0.3, repetition_penalty=1.1),
        "logit_bias": sampled(logit_bias=((5, -1.0), (6, 1.0))),
        "logprobs 5": lambda request: replace(request, top_logprobs=5),
        "prediction": edited,
        "json_schema": lambda request: replace(request, grammar=Grammar.json_schema(RECORD, is_lenient=False).text),
    }


def answer(engine: Engine, request: GenerationRequest, record: Record) -> tuple[int, ...]:
    """One answer, its steps timed; the cache is emptied first."""
    engine.forget()
    tokens: list[int] = []
    for delta in engine.generate(request):
        tokens += delta.tokens
        if delta.step is not None:
            record.step_seconds.append(delta.step.seconds)
            record.tokens += len(delta.tokens)
            record.accepted.update(delta.step.accepted)
    return tuple(tokens)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--prompts", type=Path, default=default_prompts("demo", "--prompts"))
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--timed", type=int, default=8, help="prompts of each kind")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="also write the JSON document to this file")
    options = parser.parse_args()

    torch.set_num_threads(1)
    engine = Engine.load(EngineConfig(options.model, tree_nodes=options.nodes, num_threads=1, device="cpu"))
    prompts = of_each_kind(read_prompts(options.prompts, TextCodec.load(options.model)), options.timed)
    requests = [
        GenerationRequest(prompt.tokens, SamplingParams(temperature=0.0), max_tokens=options.max_tokens)
        for prompt in prompts
    ]
    off = SpeculationParams(mode="off")
    answers = {request.prompt: answer(engine, request, Record()) for request in requests}
    changes = features(answers)
    trees, plain = ({name: Record() for name in changes} for _ in range(2))
    for repeat in range(options.repeats + 1):
        for request in requests:
            for name, change in changes.items():
                found = answer(engine, change(request), trees[name] if repeat > 0 else Record())
                if repeat > 0:
                    continue
                # the first round warms up, and checks that the tree changed nothing
                unspeculated = answer(engine, replace(change(request), speculation=off), plain[name])
                assert found == unspeculated, f"{name}: the tree's answer differs from the plain one"

    base = statistics.median(trees["nothing"].step_seconds)
    plain_base = statistics.median(plain["nothing"].step_seconds)
    rows = []
    for name, record in trees.items():
        milliseconds = asdict(spread(1e3 * seconds for seconds in record.step_seconds))
        rows.append(
            {
                "feature": name,
                "step_ms": milliseconds,
                "over_nothing": milliseconds["median"] / (1e3 * base),
                "plain_over_nothing": statistics.median(plain[name].step_seconds) / plain_base,
                "tokens_per_step": record.tokens / len(record.step_seconds),
                "accepted_by_source": dict(record.accepted),
            }
        )
    print(f"{'feature':16}{'step ms':>9}{'x nothing':>11}{'x, plain':>10}{'tok/step':>10}")
    for row in rows:
        print(
            f"{row['feature']:16}{row['step_ms']['median']:>9.2f}{row['over_nothing']:>11.3f}"
            f"{row['plain_over_nothing']:>10.3f}{row['tokens_per_step']:>10.2f}"
        )
    document = {
        "benchmark": "features",
        "model": options.model,
        "dtype": engine.info.dtype,
        "tree_nodes": options.nodes,
        "prompts": len(requests),
        "max_tokens": options.max_tokens,
        "repeats": options.repeats,
        "machine": machine(),
        "features": rows,
    }
    if options.out is not None:
        options.out.write_text(json.dumps(document, indent=2) + "\n")
    print(json.dumps(document))


if __name__ == "__main__":
    main()

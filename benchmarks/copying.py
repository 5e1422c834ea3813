"""Trees on answers that copy: tokens per step and speed where a true edit or quotation is written, word for word.

The demo model is too small to edit or to quote, so the answers here are given: the backbone computes every node as it
does, and then says the given text's next token. Draft heads read the model's own hidden states on that text, lookup
reads the prompt, trees, acceptance and times are those of any answer. The texts are held-out: functions with a name
changed throughout ("edit this function"), and documentation quoted in an answer ("summarise with quotes"). What the
model writes of itself is measured by benchmarks/serve.py. Prints a table and one JSON document as the last line.

Usage: python benchmarks/copying.py [--nodes 8 16] [--timed 8] [--repeats 3] [--out FILE]
"""

import argparse
import json
import re
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.prompts.pick_copying import definitions
from medusa_core.backbone import Backbone, Forward
from medusa_core.config import EngineConfig, SpeculationParams
from medusa_core.demo.corpus import Corpus, build_corpus
from medusa_core.engine import Engine
from medusa_core.evaluation.machine import machine
from medusa_core.generation import GenerationRequest
from medusa_core.kv_cache import KVCache
from medusa_core.sampling import SamplingParams
from medusa_core.text import TextCodec
from medusa_core.tree import CandidateTree

# Far above any logit, so that the given token is the likeliest one.
CERTAIN = 1e4
SHORTEST_QUOTATION = 200


@dataclass(frozen=True)
class Task:
    """A prompt and the answer that is written to it."""

    kind: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]


class ScriptedBackbone:
    """A model that writes what it is given, and computes all it would have computed.

    script: [T] int64, the token of every position from the prompt's first; None lets the model write of itself.
    """

    def __init__(self, inner: Backbone) -> None:
        self._inner = inner
        self.hidden_size, self.vocab_size = inner.hidden_size, inner.vocab_size
        self.max_positions, self.device, self.has_buckets = inner.max_positions, inner.device, inner.has_buckets
        self.script: Tensor | None = None

    def new_cache(self, rows: int) -> KVCache:
        """See Backbone.new_cache."""
        return self._inner.new_cache(rows)

    def forward(
        self, tree: CandidateTree, past: Tensor, cache: KVCache, visible_rows: int, keep: Tensor | None = None
    ) -> Forward:
        """See Backbone.forward; logits [N, V], or [R, V] of the nodes `keep`."""
        computed = self._inner.forward(tree, past, cache, visible_rows, keep)
        if self.script is None:
            return computed
        positions = past + (tree.depth[keep] if keep is not None else tree.depth) + 1
        following = self.script[positions.clamp(max=self.script.numel() - 1)]
        certain = torch.full((following.numel(), 1), CERTAIN, dtype=computed.logits.dtype, device=self.device)
        return Forward(computed.hidden, computed.logits.scatter(1, following[:, None], certain))


def edits(corpus: Corpus, codec: TextCodec) -> Iterator[Task]:
    """Functions of held-out files, and the same with their commonest name of five letters or more changed."""
    for piece in definitions(corpus, codec):
        names = re.findall(r"\b[a-z_]{5,}\b", piece)
        name = statistics.mode(names) if names else None
        if name is None or names.count(name) < 2:
            continue
        edited = re.sub(rf"\b{name}\b", f"new_{name}", piece)
        yield Task("edits", tuple(codec.encode(piece + "\n")), tuple(codec.encode(edited)))


def quotations(corpus: Corpus, codec: TextCodec) -> Iterator[Task]:
    """Documentation of held-out names, and an answer that says what it is and quotes it sentence by sentence."""
    for entry in corpus.entries:
        prose = entry.answer.split("```\n\n", 1)[-1]
        if not entry.held_out or entry.kind == "topic" or len(prose) < SHORTEST_QUOTATION:
            continue
        sentences = re.split(r"(?<=\.)\s+", prose.strip())
        quoted = " It goes on: ".join(f'"{sentence}"' for sentence in sentences)
        messages = [{"role": "user", "content": f"{prose}\n\nWhat does {entry.name} do? Quote the text."}]
        answer = f"The documentation of {entry.name} says: {quoted}"
        yield Task("quotations", tuple(codec.encode_chat(messages)), tuple(codec.encode(answer)))


class ScriptedEngine(Engine):
    """An engine whose answers are given."""

    def __init__(self, backbone: Backbone, *parts: Any, **more: Any) -> None:
        """The engine's own parts, but for the backbone, which is told what to say."""
        self._scripted = ScriptedBackbone(backbone)
        super().__init__(self._scripted, *parts, **more)

    def write(self, task: Task, nodes: int) -> tuple[float, int]:
        """Seconds of decoding and steps of one answer, drafted by trees of so many nodes; 1 decodes plainly."""
        self._scripted.script = torch.tensor([*task.prompt, *task.answer])
        self.forget()
        speculation = SpeculationParams("tree" if nodes > 1 else "off", nodes)
        request = GenerationRequest(
            task.prompt, SamplingParams(temperature=0.0), speculation, len(task.answer), ignore_eos=True
        )
        written: list[int] = []
        started, steps = time.perf_counter(), 0
        for delta in self.generate(request):
            written += delta.tokens
            if delta.step is None:
                started = time.perf_counter()
            else:
                steps += 1
        assert tuple(written) == task.answer, "the given text was not written"
        return time.perf_counter() - started, steps


@dataclass(frozen=True)
class Row:
    """What one way of drafting brought on tasks of one kind.

    tokens_per_step: bonus included; over_plain: speed by plain decoding's, over_heads: by that of the heads alone.
    """

    kind: str
    drafts: str
    nodes: int
    tokens_per_step: float
    step_ms: float
    over_plain: float
    over_heads: float


def measure(engines: dict[str, ScriptedEngine], tasks: Sequence[Task], nodes: int, repeats: int) -> list[Row]:
    """All ways in turn, task by task; of each task's repeats the median counts."""
    ways = {"plain": (engines["merged"], 1), **{name: (engine, nodes) for name, engine in engines.items()}}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    steps = dict.fromkeys(ways, 0)
    for task in tasks:
        runs = [{name: engine.write(task, size) for name, (engine, size) in ways.items()} for _ in range(repeats)]
        for name in ways:
            seconds[name].append(statistics.median(run[name][0] for run in runs))
            steps[name] += runs[0][name][1]
    tokens = sum(len(task.answer) - 1 for task in tasks)
    total = {name: sum(found) for name, found in seconds.items()}
    return [
        Row(
            kind=tasks[0].kind,
            drafts=name,
            nodes=size,
            tokens_per_step=tokens / steps[name],
            step_ms=1e3 * total[name] / steps[name],
            over_plain=total["plain"] / total[name],
            over_heads=total["heads only"] / total[name],
        )
        for name, (_, size) in ways.items()
    ]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--timed", type=int, default=8, help="tasks of each kind, evenly taken from all there are")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="also write the JSON document to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    corpus, codec, largest = build_corpus(), TextCodec.load("demo"), max(options.nodes)
    engines = {
        name: ScriptedEngine.load(
            EngineConfig(tree_nodes=largest, num_threads=1, device="cpu", prompt_lookup=merges, recycling=merges)
        )
        for name, merges in (("heads only", False), ("merged", True))
    }
    rows = []
    for kind in (edits, quotations):
        every = list(kind(corpus, codec))
        tasks = every[:: max(1, len(every) // options.timed)][: options.timed]
        for nodes in options.nodes:
            rows += measure(engines, tasks, nodes, options.repeats)
    print(f"{'answers':12}{'drafts':12}{'N':>4}{'tok/step':>10}{'step ms':>9}{'x plain':>9}{'x heads':>9}")
    for row in rows:
        print(
            f"{row.kind:12}{row.drafts:12}{row.nodes:>4}{row.tokens_per_step:>10.2f}{row.step_ms:>9.2f}"
            f"{row.over_plain:>9.2f}{row.over_heads:>9.2f}"
        )
    document = {
        "benchmark": "copying",
        "model": "demo",
        "tasks": options.timed,
        "repeats": options.repeats,
        "machine": machine(),
        "rows": [asdict(row) for row in rows],
    }
    if options.out is not None:
        options.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(document))


if __name__ == "__main__":
    main()

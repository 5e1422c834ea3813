"""What a comparison found, as a value, as JSON and as pictures."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from medusa_core.errors import CheckpointError
from medusa_core.evaluation.spread import Spread
from medusa_core.pictures import BenchPoint, save, speed_by_nodes, step_latency

__all__ = ["BenchReport", "PeerKind", "PeerResult", "write_report"]

PeerKind = Literal["plain", "static", "dynamic", "transformers"]


@dataclass(frozen=True)
class PeerResult:
    """What one peer did.

    tokens_per_second:       of decoding, prefill left out, over the timed answers.
    tokens_per_step:         emitted tokens by verifying passes, bonus included, over all prompts.
    tokens_per_step_by_kind: the same for conversations and for texts.
    acceptance_length:       accepted draft tokens of one step, bonus not included.
    accepted_by_source:      accepted draft tokens by who drafted them.
    step_ms:                 median of one whole step; None, like all about steps, for a peer that does not tell.
    overhead:                median step by the median plain step.
    over_plain:              speed by our own plain decoding's; over_generate: by transformers'.
    identity:                tokens per step by overhead, by the speed-up: 1 where all that costs time was measured.
    differing:               answers that are not the first peer's, token for token.
    """

    peer: str
    kind: PeerKind
    nodes: int | None
    tokens_per_second: Spread
    tokens_per_step: float | None
    tokens_per_step_by_kind: Mapping[str, float]
    acceptance_length: float | None
    accepted_by_source: Mapping[str, int]
    step_ms: float | None
    step_ms_spread: Spread | None
    overhead: float | None
    over_plain: float | None
    over_generate: float | None
    identity: float | None
    differing: int


@dataclass(frozen=True)
class BenchReport:
    """Everything that was measured, and where.

    prompts:   how many of each kind were counted; `skipped` ones left no room for an answer.
    reference: the peer whose texts the others' are compared with.
    """

    model: str
    heads: str | None
    dtype: str
    prompts: Mapping[str, int]
    skipped: int
    timed_prompts: int
    max_tokens: int
    repeats: int
    temperature: float
    machine: Mapping[str, object]
    reference: str
    peers: tuple[PeerResult, ...]

    def document(self) -> dict[str, Any]:
        """The report as JSON holds it."""
        differing = {result.peer: result.differing for result in self.peers if result.differing > 0}
        return {"benchmark": "decode", **asdict(self), "answers_differing": differing}


def write_report(report: BenchReport, out: Path) -> None:
    """The report as `bench.json`, with pictures of speed and step time; every file is whole or not there."""
    partial = out / "bench.json.partial"
    try:
        partial.write_text(json.dumps(report.document(), indent=2) + "\n", encoding="utf-8")
        os.replace(partial, out / "bench.json")
    except OSError as error:
        raise CheckpointError(f"cannot write to {out}: {error.strerror}; choose another folder") from error
    points = {
        kind: [
            BenchPoint(result.nodes, result.tokens_per_step, result.over_plain, result.step_ms)
            for result in report.peers
            if result.kind in ("plain", kind)
            and result.nodes is not None
            and result.tokens_per_step is not None
            and result.over_plain is not None
            and result.step_ms is not None
        ]
        for kind in ("dynamic", "static")
    }
    drawn = {f"{kind} tree": line for kind, line in points.items() if len(line) > 1}
    if drawn:
        save(speed_by_nodes(drawn, report.model), out / "speed.png")
        latency = {name: {point.nodes: point.step_ms / 1e3 for point in line} for name, line in drawn.items()}
        save(step_latency(latency, report.model), out / "latency.png")

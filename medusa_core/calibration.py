"""What is known about a set of draft heads on one model: how often each rank is right, and how sure to be of it.

A plain value, read from and written to `calibration.json` beside the heads. Knows neither tensors nor devices.
"""

import heapq
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from medusa_core.errors import CheckpointError

__all__ = ["Calibration"]


@dataclass(frozen=True)
class Calibration:
    """Measured facts about K heads.

    accuracies:   [K][R], share of samples in which the true token was the head's guess of exactly this rank.
    samples:      [K], what each head's shares are divided by; later heads see fewer positions.
    temperatures: [K], divide each head's logits so that its probabilities can be believed.
    latency_s:    seconds of one step by the number of tree nodes, when measured.
    """

    accuracies: tuple[tuple[float, ...], ...]
    samples: tuple[int, ...]
    temperatures: tuple[float, ...]
    latency_s: Mapping[int, float] | None = None

    def __post_init__(self) -> None:
        if not len(self.accuracies) == len(self.samples) == len(self.temperatures):
            raise CheckpointError("a calibration needs accuracies, samples and a temperature for every head")
        for head, shares in enumerate(self.accuracies, start=1):
            if any(not 0.0 <= share <= 1.0 for share in shares) or math.fsum(shares) > 1.0 + 1e-6:
                raise CheckpointError(f"the accuracies of head {head} are not shares of one whole: {list(shares)}")
        if any(not 0.0 < temperature < math.inf for temperature in self.temperatures):
            raise CheckpointError(f"temperatures must be positive and finite, got {list(self.temperatures)}")
        if self.latency_s is not None:
            object.__setattr__(self, "latency_s", MappingProxyType(dict(self.latency_s)))

    @property
    def num_heads(self) -> int:
        """K."""
        return len(self.accuracies)

    def expected_tokens_per_step(self, num_nodes: int) -> float:
        """Tokens per step, bonus included, of the best static tree with so many nodes (root included).

        Takes the heads as independent, as Medusa (arXiv:2401.10774), "Optimized Tree Construction", does.
        """
        expected = 1.0
        waiting: list[tuple[float, tuple[int, ...]]] = []
        self._offer(waiting, 1.0, (), 0)
        for _ in range(num_nodes - 1):
            if not waiting:
                break
            negative, path = heapq.heappop(waiting)
            expected -= negative
            depth, rank = len(path), path[-1]
            above = -negative / self.accuracies[depth - 1][rank]
            self._offer(waiting, above, path[:-1], rank + 1)
            self._offer(waiting, -negative, path, 0)
        return expected

    def _offer(
        self, waiting: list[tuple[float, tuple[int, ...]]], above: float, parent: tuple[int, ...], rank: int
    ) -> None:
        """Put the child of this rank in line, when there is such a head and rank and it is ever right."""
        depth = len(parent)
        if depth < self.num_heads and rank < len(self.accuracies[depth]) and self.accuracies[depth][rank] > 0.0:
            heapq.heappush(waiting, (-above * self.accuracies[depth][rank], (*parent, rank)))

    def save(self, path: Path) -> None:
        """Write as JSON; the file is whole or not there."""
        content: dict[str, Any] = {
            "accuracies": [[round(share, 6) for share in shares] for shares in self.accuracies],
            "samples": list(self.samples),
            "temperatures": [round(temperature, 4) for temperature in self.temperatures],
        }
        if self.latency_s is not None:
            content["latency_s"] = {str(nodes): seconds for nodes, seconds in sorted(self.latency_s.items())}
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote; CheckpointError names the field that is missing, unknown or malformed."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read as a calibration: {error}") from error
        if not isinstance(content, dict):
            raise CheckpointError(f"{path} is not a calibration: expected a JSON object")
        known = {field.name for field in fields(cls)}
        for name in sorted(content.keys() - known):
            raise CheckpointError(
                f"{path} has the unknown field {name!r}; a calibration has {', '.join(sorted(known))}"
            )
        for name in sorted(known - {"latency_s"} - content.keys()):
            raise CheckpointError(f"{path} lacks the field {name!r}")
        try:
            latency = content.get("latency_s")
            return cls(
                accuracies=tuple(tuple(float(share) for share in shares) for shares in content["accuracies"]),
                samples=tuple(int(count) for count in content["samples"]),
                temperatures=tuple(float(temperature) for temperature in content["temperatures"]),
                latency_s=None if latency is None else {int(nodes): float(s) for nodes, s in latency.items()},
            )
        except (TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{path} is malformed: {error}") from error

"""What is known about a set of draft heads on one model: how often each rank is right, and what a step costs where.

A plain value, read from and written to `calibration.json` beside the heads. Knows neither tensors nor devices. From it
follow the best fixed shape of a tree, and the number of nodes that gives most tokens per second.
"""

import heapq
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from medusa_core.errors import CheckpointError

__all__ = ["CALIBRATION_FILE", "Calibration", "LatencyCurve", "Paths", "Place", "choose_nodes"]

CALIBRATION_FILE = "calibration.json"

# A tree as the paths of ranks of its nodes, root left out, parents first.
Paths = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Place:
    """Where seconds were measured; only where all of it agrees do they say anything.

    device:       the name of the processor or of the card.
    threads:      of the CPU; None on a card.
    quantization: how the base model's weights are stored, `none` as they are.
    kernels:      what computed the passes; None where nobody noted it, as in older files.
    """

    device: str
    dtype: str
    threads: int | None
    quantization: str
    kernels: str | None = None


@dataclass(frozen=True)
class LatencyCurve:
    """Seconds of one whole step by tree nodes N, drafting with the heads and building the tree included.

    context:    tokens in the cache while it was measured.
    is_sampled: whether tokens were drawn at a temperature, which takes longer than taking the likeliest.
    """

    place: Place
    context: int
    seconds: Mapping[int, float]
    is_sampled: bool = False

    def __post_init__(self) -> None:
        if not self.seconds or any(
            nodes < 1 or not 0.0 < seconds < math.inf for nodes, seconds in self.seconds.items()
        ):
            raise CheckpointError(f"a latency curve needs positive seconds by tree nodes, got {dict(self.seconds)}")
        object.__setattr__(self, "seconds", MappingProxyType(dict(self.seconds)))


@dataclass(frozen=True)
class Calibration:
    """Measured facts about K heads.

    accuracies:      [K][R], share of samples in which the true token was the head's guess of exactly this rank.
    samples:         [K], what each head's shares are divided by; later heads see fewer positions.
    temperatures:    [K], divide each head's logits so that its probabilities can be believed.
    latency:         what a step costs, at each place where somebody measured it, a curve for each context, greedy
                     or sampled.
    trees:           the best static tree by its nodes N, root included in N and left out of the paths.
    tokens_per_step: bonus included, by N, counted on real prompts with dynamic trees.
    """

    accuracies: tuple[tuple[float, ...], ...]
    samples: tuple[int, ...]
    temperatures: tuple[float, ...]
    latency: tuple[LatencyCurve, ...] = ()
    trees: Mapping[int, Paths] = field(default_factory=dict)
    tokens_per_step: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not len(self.accuracies) == len(self.samples) == len(self.temperatures):
            raise CheckpointError("a calibration needs accuracies, samples and a temperature for every head")
        for head, shares in enumerate(self.accuracies, start=1):
            if any(not 0.0 <= share <= 1.0 for share in shares) or math.fsum(shares) > 1.0 + 1e-6:
                raise CheckpointError(f"the accuracies of head {head} are not shares of one whole: {list(shares)}")
        if any(not 0.0 < temperature < math.inf for temperature in self.temperatures):
            raise CheckpointError(f"temperatures must be positive and finite, got {list(self.temperatures)}")
        for nodes, paths in self.trees.items():
            _check_tree(nodes, paths, self.num_heads)
        if any(nodes < 1 or not 1.0 <= tokens < math.inf for nodes, tokens in self.tokens_per_step.items()):
            raise CheckpointError(f"every step emits a token at least, got {dict(self.tokens_per_step)} by nodes")
        object.__setattr__(self, "trees", MappingProxyType(dict(self.trees)))
        object.__setattr__(self, "tokens_per_step", MappingProxyType(dict(self.tokens_per_step)))

    @property
    def num_heads(self) -> int:
        """K."""
        return len(self.accuracies)

    def expected_tokens_per_step(self, num_nodes: int) -> float:
        """Tokens per step, bonus included, of the best static tree with so many nodes (root included).

        Takes the heads as independent, as Medusa (arXiv:2401.10774), "Optimized Tree Construction", does.
        """
        return 1.0 + math.fsum(probability for _, probability in self._likeliest_nodes(num_nodes - 1))

    def best_tree(self, num_nodes: int) -> Paths:
        """Paths of the static tree with most expected tokens per step, breadth first.

        It has fewer than `num_nodes` nodes (root included) where no further guess was ever right.
        """
        paths = (path for path, _ in self._likeliest_nodes(num_nodes - 1))
        return tuple(sorted(paths, key=lambda path: (len(path), path)))

    def static_tree(self, num_nodes: int) -> Paths:
        """The stored tree of so many nodes, or else the best one."""
        return self.trees[num_nodes] if num_nodes in self.trees else self.best_tree(num_nodes)

    def probability(self, path: tuple[int, ...]) -> float:
        """How likely the node at this path is on the path the model takes, its heads taken as independent."""
        return math.prod(self.accuracies[depth][rank] for depth, rank in enumerate(path))

    def curves_at(self, place: Place) -> tuple[LatencyCurve, ...]:
        """What a step costs at this very place: greedy ones first, the shortest context first; empty where unknown."""
        found = (curve for curve in self.latency if curve.place == place)
        return tuple(sorted(found, key=lambda curve: (curve.is_sampled, curve.context)))

    def curve_at(self, place: Place) -> LatencyCurve | None:
        """What a greedy step costs at this very place behind the shortest context, if that was ever measured."""
        return next(iter(self.curves_at(place)), None)

    def best_nodes(self, curve: LatencyCurve) -> int:
        """The number of nodes with most tokens per second; the smallest of equals.

        Counted tokens per step decide where there are any, else those expected of the heads alone.
        """
        counted = self.tokens_per_step.keys() & curve.seconds.keys()
        candidates = sorted(counted) if counted else sorted(curve.seconds)
        return max(candidates, key=lambda nodes: self.tokens_at(nodes) / curve.seconds[nodes])

    def tokens_at(self, num_nodes: int) -> float:
        """Tokens per step, bonus included: counted ones where there are any for this size, else expected ones."""
        if num_nodes in self.tokens_per_step:
            return self.tokens_per_step[num_nodes]
        return self.expected_tokens_per_step(num_nodes)

    def with_latency(self, *curves: LatencyCurve) -> Self:
        """The same with more curves, in place of earlier ones from the same places."""
        measured = {curve.place for curve in curves}
        others = tuple(other for other in self.latency if other.place not in measured)
        return replace(self, latency=(*others, *curves))

    def _likeliest_nodes(self, count: int) -> Iterator[tuple[tuple[int, ...], float]]:
        """The likeliest nodes with their probability, best first, so that a parent always precedes its children.

        Greedy growth: the next node is a child of one that is there, or its next sibling.
        """
        waiting: list[tuple[float, tuple[int, ...]]] = []
        self._offer(waiting, 1.0, (), 0)
        for _ in range(count):
            if not waiting:
                return
            negative, path = heapq.heappop(waiting)
            yield path, -negative
            self._offer(waiting, self.probability(path[:-1]), path[:-1], path[-1] + 1)
            self._offer(waiting, -negative, path, 0)

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
        if self.latency:
            content["latency"] = [
                {
                    **asdict(curve.place),
                    "context": curve.context,
                    "sampled": curve.is_sampled,
                    "seconds": _by_size(curve.seconds),
                }
                for curve in self.latency
            ]
        if self.trees:
            content["trees"] = _by_size(self.trees)
        if self.tokens_per_step:
            content["tokens_per_step"] = _by_size(self.tokens_per_step)
        partial = path.with_name(path.name + ".partial")
        try:
            partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            os.replace(partial, path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise CheckpointError(
                f"cannot write {path}: {error.strerror}; free the disk or choose another folder"
            ) from error

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
        needed = {field.name for field in fields(cls) if field.default is field.default_factory is MISSING}
        for name in sorted(needed - content.keys()):
            raise CheckpointError(f"{path} lacks the field {name!r}")
        try:
            return cls(
                accuracies=tuple(tuple(float(share) for share in shares) for shares in content["accuracies"]),
                samples=tuple(int(count) for count in content["samples"]),
                temperatures=tuple(float(temperature) for temperature in content["temperatures"]),
                latency=tuple(_curve(entry) for entry in content.get("latency", ())),
                trees={
                    int(nodes): tuple(tuple(int(rank) for rank in ranks) for ranks in paths)
                    for nodes, paths in content.get("trees", {}).items()
                },
                tokens_per_step={
                    int(nodes): float(tokens) for nodes, tokens in content.get("tokens_per_step", {}).items()
                },
            )
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{path} is malformed: {type(error).__name__}: {error}") from error


def choose_nodes(calibration: Calibration | None, place: Place, default: int) -> tuple[int, str]:
    """How many nodes the trees shall have at this place, and why; the default where nothing was measured there."""
    if calibration is None or not calibration.latency:
        return default, "the default; `medusa calibrate` measures the best size"
    curve = calibration.curve_at(place)
    if curve is None:
        threads = "" if place.threads is None else f", threads: {place.threads}"
        kernels = "" if place.kernels is None else f", kernels: {place.kernels}"
        here = f"{place.device}, {place.dtype}{threads}, quantisation: {place.quantization}{kernels}"
        return default, f"the default; the latencies beside the heads were not measured here ({here})"
    nodes = calibration.best_nodes(curve)
    figures = f"{calibration.tokens_at(nodes):.2f} tokens per step of {1e3 * curve.seconds[nodes]:.2f} ms"
    return nodes, f"most tokens per second as measured on this device: {figures}"


def _check_tree(nodes: int, paths: Paths, num_heads: int) -> None:
    """Raise CheckpointError unless the paths are a tree of at most so many nodes that the heads can fill."""
    known: set[tuple[int, ...]] = {()}
    for path in paths:
        if not 0 < len(path) <= num_heads or path[:-1] not in known or path in known or path[-1] < 0:
            raise CheckpointError(
                f"the tree of {nodes} nodes is none for {num_heads} heads: the path {list(path)} stands twice, "
                "lacks its parent or is too deep"
            )
        known.add(path)
    if len(known) > nodes:
        raise CheckpointError(f"the tree of {nodes} nodes has {len(known)}")


def _by_size(values: Mapping[int, Any]) -> dict[str, Any]:
    """What is stored by number of nodes, smallest first; JSON's keys are strings."""
    return {str(nodes): value for nodes, value in sorted(values.items())}


def _curve(entry: Mapping[str, Any]) -> LatencyCurve:
    """One curve as `save` wrote it; KeyError names what is missing, ValueError what is too much."""
    place = Place(
        device=str(entry["device"]),
        dtype=str(entry["dtype"]),
        threads=None if entry["threads"] is None else int(entry["threads"]),
        quantization=str(entry["quantization"]),
        kernels=None if entry.get("kernels") is None else str(entry["kernels"]),
    )
    unknown = sorted(entry.keys() - {*asdict(place), "context", "sampled", "seconds"})
    if unknown:
        raise ValueError(f"a latency curve has the unknown field {unknown[0]!r}")
    seconds = {int(nodes): float(taken) for nodes, taken in entry["seconds"].items()}
    # files from before that was measured hold greedy steps
    return LatencyCurve(place, int(entry["context"]), seconds, bool(entry.get("sampled", False)))

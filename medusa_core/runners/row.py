"""All that a step tells the host, in one row of integers, so that one small copy brings it over."""

import math
import struct
from collections import Counter
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from medusa_core.acceptance import Acceptance
from medusa_core.decoding import Logprobs
from medusa_core.runners.runner import DraftedNode, StepDetail, StepResult, TokenLogprobs
from medusa_core.tree import SOURCES, CandidateTree

__all__ = ["Layout", "Row", "pack"]


@dataclass(frozen=True)
class Layout:
    """What lies where in a row; known on the host before the step has run.

    places:       P, entries of the path.
    num_nodes:    N.
    num_guesses:  K, heads whose guesses are reported.
    alternatives: k, how many are reported beside each token's log-probability; None reports none at all.
    is_watched:   whether the tree itself is told, too.
    """

    places: int
    num_nodes: int
    num_guesses: int
    alternatives: int | None
    is_watched: bool

    def read(self, row: list[int]) -> StepResult:
        """The values of a row as what they mean."""
        values = iter(row)

        def take(length: int) -> list[int]:
            return list(islice(values, length))

        (count,), path, tokens = take(1), take(self.places), take(self.places)
        used, source, guesses = take(self.num_nodes), take(self.num_nodes), take(self.num_guesses)
        names = [SOURCES[index] for index in source]
        drafted = Counter(name for name, is_used in zip(names[1:], used[1:], strict=True) if is_used)
        detail = None
        if self.is_watched:
            nodes = _Nodes(take(self.num_nodes), take(self.num_nodes), take(self.num_nodes), take(self.num_nodes))
            detail = nodes.detail(used, names, path[1:count], tokens[:count])
        return StepResult(
            tokens=tokens[:count],
            drafted=dict(drafted),
            accepted=[names[node] for node in path[1:count]],
            num_nodes=self.num_nodes,
            path=path[1:count],
            head_hits=[guess == token for guess, token in zip(guesses, tokens[:count], strict=False)],
            logprobs=self._logprobs(list(values))[:count] if self.alternatives is not None else None,
            phases={},
            detail=detail,
        )

    def _logprobs(self, values: list[int]) -> list[TokenLogprobs]:
        """What stands behind all else: P log-probabilities as bits, then k tokens and k of their bits for each."""
        alternatives = self.alternatives if self.alternatives is not None else 0
        chosen, others = _floats(values[: self.places]), values[self.places :]
        tokens, likeliest = others[: len(others) // 2], _floats(others[len(others) // 2 :])
        ranked = iter(zip(tokens, likeliest, strict=True))
        return [TokenLogprobs(logprob, tuple(islice(ranked, alternatives))) for logprob in chosen]


@dataclass(frozen=True)
class _Nodes:
    """What a row tells of the slots of a tree beside who drafted them."""

    tokens: list[int]
    parents: list[int]
    ranks: list[int]
    scores: list[int]

    def detail(self, used: list[int], names: list[str], path: list[int], emitted: list[int]) -> StepDetail:
        """The used slots as nodes, which are counted anew."""
        slots = [slot for slot, is_used in enumerate(used) if is_used]
        place, scores = {slot: index for index, slot in enumerate(slots)}, _floats(self.scores)
        nodes = [DraftedNode(self.tokens[0], None, 0, None, None, 1.0)]
        for slot in slots[1:]:
            parent, name = place[self.parents[slot]], names[slot]
            rank = self.ranks[slot] if name == "heads" else None
            depth = nodes[parent].depth + 1
            nodes.append(DraftedNode(self.tokens[slot], parent, depth, name, rank, math.exp(scores[slot])))
        return StepDetail(tuple(nodes), tuple(place[slot] for slot in path), tuple(emitted))


@dataclass(frozen=True)
class Row:
    """A step's outcome on the device, [R] int64, and how to read it where it is copied to."""

    values: Tensor
    layout: Layout


def pack(accepted: Acceptance, tree: CandidateTree, logprobs: Logprobs | None) -> Row:
    """A step's outcome as one row [R] on the device, and the tree where that has a ranking to look at.

    logprobs: of the tokens along the path, as many as there are places on it.
    """
    guesses = tree.guesses if tree.guesses is not None else tree.tokens[:0]
    parts = [accepted.count[None], accepted.path, accepted.tokens, tree.used.long(), tree.source, guesses]
    if tree.ranking is not None:
        parts += [tree.tokens, tree.parent, tree.ranking.ranks, _bits(tree.ranking.scores)]
    alternatives = None
    if logprobs is not None:
        parts += [_bits(logprobs.chosen), logprobs.tokens.flatten(), _bits(logprobs.values.flatten())]
        alternatives = logprobs.tokens.shape[1]
    is_watched = tree.ranking is not None
    layout = Layout(accepted.path.shape[0], tree.num_nodes, guesses.shape[0], alternatives, is_watched)
    return Row(torch.cat(parts), layout)


def _bits(values: Tensor) -> Tensor:
    """The bits of float32 values [T] as int64 [T]."""
    return values.view(torch.int32).long()


def _floats(bits: list[int]) -> list[float]:
    return list(struct.unpack(f"{len(bits)}f", struct.pack(f"{len(bits)}i", *bits)))

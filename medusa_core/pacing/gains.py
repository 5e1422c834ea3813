"""How many tokens trees of several sizes bring, as averages that follow what is accepted."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from medusa_core.calibration import Calibration

__all__ = ["Gains", "echoed_tokens", "expected_tokens"]

# Tokens up to which the ratio of two averages is not believed: it would be one of two small numbers.
_FEW = 0.25
# Most steps that one observation stands for.
_MOST_STEPS = 7
# Tokens per step where nobody counted any: what public heads bring (Medusa-1, 7B), and recycling and lookup without
# heads, rather less than published (Spec-Bench: 2.7 with trees of 80 nodes). A size that was expected to bring too much
# is soon found out, since larger trees tell of smaller ones, and not the other way round.
_WITH_HEADS = {1: 1.0, 2: 1.5, 4: 1.85, 8: 2.04, 16: 2.22, 32: 2.41, 64: 2.58}
_WITHOUT_HEADS = {1: 1.0, 2: 1.4, 4: 1.7, 8: 1.95, 16: 2.15, 32: 2.3, 64: 2.4}

# Chance that a token which lookup foresees behind four known ones is right, given that those above it are.
_ECHOED = 0.9


class Gains:
    """Tokens per step by the size of the tree, bonus included; mutable.

    A tree's nodes are ranked, so a step with a large tree tells what each smaller one would have brought. What a
    larger one would have brought it does not tell: that is taken to rise and fall with what the smaller ones bring, in
    the proportion in which both stood when it was last seen.
    """

    def __init__(self, tokens: Mapping[int, float], rate: float) -> None:
        """Begin with these tokens per step by size, 1 among them; each observation weighs `rate`."""
        self.sizes = tuple(sorted(tokens))
        self._rate = rate
        ordered = [tokens[size] for size in self.sizes]
        # what the nodes between a size and the next smaller one bring, and what the smaller tree brought meanwhile
        self._added = [max(0.0, larger - smaller) for smaller, larger in pairwise(ordered)]
        self._below = [smaller - 1.0 for smaller in ordered[:-1]]
        self._steps = 0
        self._seen = [0] * len(self._added)  # the last step with a tree that large
        self._tokens: dict[int, float] | None = None  # what to expect, until it changes

    def observe(self, num_nodes: int, path: Sequence[int]) -> None:
        """Of a tree of so many nodes these were accepted, root left out."""
        self._steps += 1
        for index, (smaller, size) in enumerate(pairwise(self.sizes)):
            if size > num_nodes:
                break
            below = sum(node < smaller for node in path)
            added = sum(node < size for node in path) - below
            # what is seen seldom stands for the steps in between as well, as far as one step can
            weight = 1.0 - (1.0 - self._rate) ** min(self._steps - self._seen[index], _MOST_STEPS)
            self._added[index] += weight * (added - self._added[index])
            self._below[index] += weight * (below - self._below[index])
            self._seen[index], self._tokens = self._steps, None

    def tokens(self) -> Mapping[int, float]:
        """Tokens per step to expect of each size; the same object as long as nothing else is expected."""
        if self._tokens is None:
            found, gained = {self.sizes[0]: 1.0}, 0.0
            for size, added, below in zip(self.sizes[1:], self._added, self._below, strict=True):
                gained += added * (gained + _FEW) / (below + _FEW)
                found[size] = 1.0 + gained
            self._tokens = found
        return self._tokens


def expected_tokens(sizes: Sequence[int], calibration: Calibration | None, has_heads: bool) -> dict[int, float]:
    """Tokens per step by size as they were counted, else expected.

    A calibration that counted none knows of the heads alone, which others draft beside.
    """
    if calibration is not None and calibration.tokens_per_step:
        return {size: calibration.tokens_at(size) if size > 1 else 1.0 for size in sizes}
    known = _WITH_HEADS if has_heads and calibration is None else _WITHOUT_HEADS
    table = {size: known[max(line for line in known if line <= size)] for size in sizes}
    if calibration is None:
        return table
    return {size: max(tokens, calibration.expected_tokens_per_step(size)) for size, tokens in table.items()}


def echoed_tokens(sizes: Sequence[int], max_depth: int) -> dict[int, float]:
    """Tokens per step to expect where a sequence repeats itself: mostly one branch, as deep as the tree allows."""
    return {size: 1.0 + sum(_ECHOED**depth for depth in range(1, min(size - 1, max_depth) + 1)) for size in sizes}

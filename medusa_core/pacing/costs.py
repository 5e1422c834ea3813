"""What a step costs by the nodes of its tree and the rows of the cache, measured once."""

from collections.abc import Sequence

from medusa_core.calibration import LatencyCurve

__all__ = ["StepCosts"]

# A larger tree that costs hardly more is always the better one: kernels come in steps of rows.
_HARDLY_MORE = 1.02


class StepCosts:
    """Seconds of a step, between the measured contexts and beyond the longest of them along a straight line."""

    def __init__(self, curves: Sequence[LatencyCurve], most_tokens: int, delivery_s: float) -> None:
        """Curves of one place, by different contexts, 1 node in each; a step emits `most_tokens` at most.

        Greedy ones and, where sampling takes a time that matters, a sampled one.

        delivery_s: what every step takes beside what was timed, whatever its size, until its tokens are on their way.
        """
        self.most_tokens, self._delivery_s = most_tokens, delivery_s
        greedy = sorted((curve for curve in curves if not curve.is_sampled), key=lambda curve: curve.context)
        self._short, self._long = greedy[0], greedy[-1]
        self._sampled = next((curve for curve in curves if curve.is_sampled), None)
        known = [curve.seconds.keys() for curve in (self._long, *([self._sampled] if self._sampled else []))]
        measured = sorted(set(self._short.seconds).intersection(*known))
        self.sizes = tuple(nodes for nodes in measured if self._is_worth_it(nodes, measured, most_tokens))

    def _is_worth_it(self, nodes: int, measured: Sequence[int], most_tokens: int) -> bool:
        """Whether there are acceptance rates at which a tree of this size is the fastest, behind a short context."""
        seconds = self._short.seconds
        if nodes == 1:
            return True
        cheaper = any(seconds[larger] <= _HARDLY_MORE * seconds[nodes] for larger in measured if larger > nodes)
        return not cheaper and seconds[nodes] + self._delivery_s < most_tokens * (seconds[1] + self._delivery_s)

    def seconds(self, nodes: int, rows: int, is_sampled: bool) -> float:
        """Seconds of a step with a tree of one of `sizes`, behind so many rows of the cache."""
        greedy = self._delivery_s + self._greedy(nodes, rows)
        if not is_sampled or self._sampled is None:
            return greedy
        return greedy + max(0.0, self._sampled.seconds[nodes] - self._greedy(nodes, self._sampled.context))

    def _greedy(self, nodes: int, rows: int) -> float:
        short, long = self._short.seconds[nodes], self._long.seconds[nodes]
        distance = self._long.context - self._short.context
        if distance == 0 or rows <= self._short.context:
            return short
        # noise must not make long contexts cheaper than short ones
        return short + max(0.0, long - short) * (rows - self._short.context) / distance

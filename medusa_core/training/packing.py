"""Examples as rows of one length: packed whole, several to a row, none of them seeing another.

Positions start again with every example, by which a model tells them apart; what is left of a row is filled with
tokens that stand alone. Which rows a step sees is a function of (seed, step), so a run resumes exactly.
"""

import bisect
import hashlib
import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medusa_core.training.encoding import Example

__all__ = ["Batch", "Examples", "PackedRows"]


@dataclass(frozen=True)
class Batch:
    """What a model reads at once.

    tokens:    [B, T] int64.
    positions: [B, T] int64, from 0 in every example; filling tokens have 0.
    judged:    [B, T] bool, the tokens that a loss may ask for.
    """

    tokens: Tensor
    positions: Tensor
    judged: Tensor

    def to(self, device: torch.device) -> "Batch":
        """The same on a device."""
        return Batch(self.tokens.to(device), self.positions.to(device), self.judged.to(device))

    def split(self, rows: int) -> "list[Batch]":
        """Parts of at most so many rows."""
        starts = range(0, len(self.tokens), rows)
        return [
            Batch(self.tokens[at : at + rows], self.positions[at : at + rows], self.judged[at : at + rows])
            for at in starts
        ]


class Examples(Sequence[Example]):
    """Many examples in five bytes a token, where Python's numbers would take forty."""

    def __init__(self, tokens: NDArray[np.int32], judged: NDArray[np.bool_], ends: NDArray[np.int64]) -> None:
        """All tokens [S] and marks [S] one after another, and where each example ends [E]."""
        self.tokens, self.judged, self.ends = tokens, judged, ends

    @classmethod
    def of(cls, examples: Iterable[Example]) -> Self:
        """Read a stream to its end."""
        tokens, judged, ends = array("i"), bytearray(), array("q")
        for example in examples:
            tokens.extend(example.tokens)
            judged.extend(example.judged)
            ends.append(len(tokens))
        return cls(
            np.frombuffer(tokens, dtype=np.int32) if tokens else np.zeros(0, dtype=np.int32),
            np.frombuffer(bytes(judged), dtype=np.bool_),
            np.frombuffer(ends, dtype=np.int64) if ends else np.zeros(0, dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        place = slice(self.start(index), int(self.ends[index]))
        return Example(tuple(self.tokens[place].tolist()), tuple(self.judged[place].tolist()))

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    def start(self, index: int) -> int:
        """Where an example begins among all tokens."""
        return int(self.ends[index - 1]) if index > 0 else 0

    def chosen(self, indices: Sequence[int]) -> "Examples":
        """Some of the examples, in the order given."""
        return Examples.of(self[index] for index in indices)

    def digest(self) -> str:
        """What tells these examples from any others."""
        hashed = hashlib.sha256(self.tokens.tobytes())
        hashed.update(self.judged.tobytes())
        hashed.update(self.ends.tobytes())
        return hashed.hexdigest()

    def split(self, held_out_percent: float) -> "tuple[Examples, Examples]":
        """Examples to train on and to measure on; a hash of the tokens decides, so equal examples stay together.

        However few there are, one is held out.
        """
        shares = []
        for index in range(len(self)):
            own = self.tokens[self.start(index) : int(self.ends[index])]
            digest = hashlib.sha256(own.astype("<i4").tobytes()).digest()
            shares.append(int.from_bytes(digest[:8], "big") / 2**64 * 100.0)
        limit = max(held_out_percent, math.nextafter(min(shares, default=0.0), math.inf))
        sides: tuple[list[int], list[int]] = ([], [])
        for index, share in enumerate(shares):
            sides[share < limit].append(index)
        return self.chosen(sides[0]), self.chosen(sides[1])


@dataclass(frozen=True)
class PackedRows:
    """Examples laid out in rows of `length` tokens.

    rows: for each row the places (start, end) among the examples' tokens that it holds, one after another.
    """

    examples: Examples
    rows: tuple[tuple[tuple[int, int], ...], ...]
    length: int
    seed: int

    @classmethod
    def pack(cls, examples: Examples, length: int, seed: int, together: bool = True) -> Self:
        """The longest example first, each into the fullest row that still has room; longer ones are cut.

        together: False gives every example a row of its own, for models that cannot tell packed ones apart.
        """
        places = [
            (start, min(int(end), start + length))
            for start, end in zip([0, *examples.ends[:-1].tolist()], examples.ends, strict=False)
        ]
        places.sort(key=lambda place: (place[0] - place[1], place[0]))
        rows: list[list[tuple[int, int]]] = []
        room: list[tuple[int, int]] = []  # what is left in a row, and which; sorted
        for start, end in places:
            at = bisect.bisect_left(room, (end - start, -1)) if together else len(room)
            if at < len(room):
                left, row = room.pop(at)
            else:
                left, row = length, len(rows)
                rows.append([])
            rows[row].append((start, end))
            bisect.insort(room, (left - (end - start), row))
        return cls(examples, tuple(tuple(row) for row in rows), length, seed)

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, step: int, rows: int) -> Batch:
        """What step number `step` sees; all rows once before one comes twice, each pass in an order of its own."""
        places = [divmod(index, len(self)) for index in range(step * rows, (step + 1) * rows)]
        orders = {passes: self._order(passes) for passes in {passes for passes, _ in places}}
        return self.chosen([int(orders[passes][place]) for passes, place in places])

    def in_order(self, rows: int) -> Iterator[Batch]:
        """All rows once, so many at a time, the longest examples first."""
        for start in range(0, len(self), rows):
            yield self.chosen(range(start, min(start + rows, len(self))))

    def chosen(self, rows: Sequence[int]) -> Batch:
        """Some of the rows, shortened to the fullest of them."""
        width = max(sum(end - start for start, end in self.rows[row]) for row in rows)
        tokens = np.zeros((len(rows), width), dtype=np.int64)
        positions = np.zeros((len(rows), width), dtype=np.int64)
        judged = np.zeros((len(rows), width), dtype=np.bool_)
        for line, row in enumerate(rows):
            at = 0
            for start, end in self.rows[row]:
                place = slice(at, at + end - start)
                tokens[line, place] = self.examples.tokens[start:end]
                positions[line, place] = np.arange(end - start)
                judged[line, place] = self.examples.judged[start:end]
                at += end - start
        return Batch(torch.from_numpy(tokens), torch.from_numpy(positions), torch.from_numpy(judged))

    def _order(self, passes: int) -> NDArray[np.int64]:
        """All rows in the order of one pass; made once a step, for a million rows take tens of milliseconds."""
        return np.random.default_rng((self.seed, 1, passes)).permutation(len(self))

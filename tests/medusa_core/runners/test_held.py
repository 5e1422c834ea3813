from dataclasses import dataclass

import torch
from torch import Tensor

from medusa_core.runners.held import fill, hold, signature


@dataclass(frozen=True)
class Inner:
    numbers: Tensor
    name: str


@dataclass(frozen=True)
class Outer:
    inner: Inner
    other: Tensor | None


def value(start: int, length: int = 3, name: str = "a", has_other: bool = True) -> Outer:
    return Outer(Inner(torch.arange(start, start + length), name), torch.tensor(float(start)) if has_other else None)


def test_the_contents_of_tensors_are_no_part_of_a_signature() -> None:
    assert signature(value(1)) == signature(value(5))
    assert hash(signature(value(1))) == hash(signature(value(5)))


def test_shapes_missing_tensors_and_everything_else_are() -> None:
    found = {
        signature(value(1)),
        signature(value(1, 4)),
        signature(value(1, name="b")),
        signature(value(1, 3, "a", False)),
    }

    assert len(found) == 4


def test_filling_changes_what_is_held_where_it_is() -> None:
    given = value(1)
    held = hold(given)
    place = held.inner.numbers.data_ptr()
    fill(held, value(7))

    assert held.inner.numbers.tolist() == [7, 8, 9]
    assert float(held.other if held.other is not None else 0) == 7.0
    assert held.inner.numbers.data_ptr() == place != given.inner.numbers.data_ptr()
    assert given.inner.numbers.tolist() == [1, 2, 3]

import numpy as np
import pytest
import torch

from medusa_core.training.encoding import Example
from medusa_core.training.packing import Examples, PackedRows
from tests.medusa_core.training.cast import base, counting, packed


def of_length(*lengths: int) -> list[Example]:
    return [Example((index + 1,) * length, (True,) * length) for index, length in enumerate(lengths)]


def test_examples_come_back_as_they_went_in() -> None:
    given = [Example((3, 2**30, 0), (True, False, True)), Example((7,), (False,))]

    kept = Examples.of(given)

    assert list(kept) == given
    assert kept.chosen([1])[0] == given[1]
    with pytest.raises(IndexError, match="example 2 of 2"):
        kept[2]


def test_equal_examples_fall_on_the_same_side_of_the_split() -> None:
    trained, held_out = Examples.of(counting() * 2).split(30.0)

    assert len(trained) + len(held_out) == 2 * len(counting())
    assert not {example.tokens for example in trained} & {example.tokens for example in held_out}
    assert len(held_out) > 0


def test_of_few_examples_one_is_held_out() -> None:
    trained, held_out = Examples.of(counting(5)).split(0.001)

    assert (len(trained), len(held_out)) == (4, 1)


def test_a_digest_tells_tokens_marks_and_borders_apart() -> None:
    cases = [
        [Example((1, 2), (True, True))],
        [Example((1, 3), (True, True))],
        [Example((1, 2), (True, False))],
        [Example((1,), (True,)), Example((2,), (True,))],
    ]

    assert len({Examples.of(case).digest() for case in cases}) == len(cases)


def test_every_example_is_whole_in_one_row_and_no_row_is_too_long() -> None:
    rows = packed(*of_length(5, 3, 9, 2, 2, 7, 1), length=10)

    placed = sorted(place for row in rows.rows for place in row)
    assert placed == [(0, 5), (5, 8), (8, 17), (17, 19), (19, 21), (21, 28), (28, 29)]
    assert all(sum(end - start for start, end in row) <= 10 for row in rows.rows)
    assert len(rows) == 3  # 29 tokens, no better is possible


def test_a_longer_example_is_cut() -> None:
    assert packed(*of_length(9), length=4).chosen([0]).tokens.tolist() == [[1, 1, 1, 1]]


def test_positions_start_again_with_every_example_and_filling_stands_alone() -> None:
    batch = packed(*of_length(3, 2), *of_length(4, 1), length=5).chosen([0, 1])

    assert batch.tokens.tolist() == [[1, 1, 1, 1, 2], [1, 1, 1, 2, 2]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 0], [0, 1, 2, 0, 1]]
    shorter = packed(*of_length(4, 3), length=5).chosen([0, 1])
    assert shorter.positions[1].tolist() == [0, 1, 2, 0]
    assert shorter.judged[1].tolist() == [True, True, True, False]


def test_examples_in_one_row_do_not_see_each_other() -> None:
    own = base()
    first, second = Example(tuple(range(5, 14)), (True,) * 9), Example(tuple(range(30, 36)), (True,) * 6)

    together = own.hidden(packed(first, second).chosen([0]))[0]
    apart = [own.hidden(packed(one).chosen([0]))[0] for one in (first, second)]

    torch.testing.assert_close(together, torch.cat(apart))


def test_where_a_model_cannot_tell_them_apart_each_has_a_row_of_its_own() -> None:
    assert len(packed(*of_length(2, 2, 2), length=10, together=False)) == 3


def test_every_row_is_seen_once_before_one_is_seen_twice() -> None:
    rows = packed(*of_length(*[4] * 6), length=4, seed=3)

    seen = [int(row[0]) for step in range(4) for row in rows.batch(step, 3).tokens]

    assert sorted(seen[:6]) == sorted(seen[6:]) == list(range(1, 7))
    assert seen[:6] != seen[6:]


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    texts = of_length(*[4] * 9)
    first, again, other = packed(*texts, length=4), packed(*texts, length=4), packed(*texts, length=4, seed=1)

    assert torch.equal(first.batch(5, 4).tokens, again.batch(5, 4).tokens)
    assert not torch.equal(first.batch(5, 4).tokens, other.batch(5, 4).tokens)


def test_a_batch_splits_into_parts_of_so_many_rows() -> None:
    batch = packed(*of_length(*[4] * 5), length=4).batch(0, 5)

    parts = batch.split(2)

    assert [len(part.tokens) for part in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([part.tokens for part in parts]), batch.tokens)


def test_a_token_takes_five_bytes() -> None:
    kept = Examples.of(counting(10, 16))

    assert kept.tokens.dtype == np.int32
    assert kept.tokens.nbytes + kept.judged.nbytes == 5 * 160


def test_packing_is_quick_for_many_examples() -> None:
    lengths = np.random.default_rng(0).integers(1, 600, 20_000)
    examples = Examples(np.zeros(lengths.sum(), np.int32), np.ones(lengths.sum(), np.bool_), lengths.cumsum())

    rows = PackedRows.pack(examples, 2048, seed=0)

    assert len(rows) * 2048 < 1.01 * lengths.sum() + 2048  # hardly anything is filling

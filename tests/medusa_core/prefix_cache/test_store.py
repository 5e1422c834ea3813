from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medusa_core.backbone import Forward
from medusa_core.kv_cache import KVCache, common_prefix
from medusa_core.prefix_cache import PrefixStore, store_budget
from tests.cast import CPU

ROW = 2 * 4 * 2  # keys and values of one layer with one head of four float16


def holding(tokens: Sequence[int]) -> KVCache:
    """A cache in which each row is its token."""
    cache = KVCache(1, 1, 4, 400, torch.float16, CPU)
    cache.tokens.extend(tokens)
    cache.buffer[..., : len(tokens), :] = torch.tensor(tokens, dtype=torch.float16)[:, None]
    return cache


def found(store: PrefixStore, tokens: Sequence[int], salt: str | None = None) -> list[int]:
    """The tokens whose rows the store gives back."""
    pieces = store.find(salt, tokens)
    assert all(piece.shape[:4] == (2, 1, 1, 1) for piece in pieces)
    rows = torch.cat([*pieces, torch.zeros(2, 1, 1, 1, 0, 4)], dim=4)
    assert torch.equal(rows[0], rows[1])
    return [int(row) for row in rows[0, 0, 0, 0, :, 0]]


def numbers(start: int, length: int) -> list[int]:
    return list(range(start, start + length))


@pytest.mark.parametrize("asked", [0, 1, 5, 63, 64, 65, 128, 149, 150, 200])
def test_the_longest_stored_beginning_is_found_to_the_token(asked: int) -> None:
    store = PrefixStore(1 << 20)
    store.save(None, holding(numbers(0, 150)))

    assert found(store, [*numbers(0, asked), 999, 999]) == numbers(0, min(asked, 150))


def test_what_comes_back_are_copies_that_later_sequences_cannot_change() -> None:
    store, cache = PrefixStore(1 << 20), holding(numbers(0, 100))
    store.save(None, cache)
    cache.buffer.zero_()

    assert found(store, numbers(0, 100)) == numbers(0, 100)


def test_what_two_sequences_begin_with_stands_here_once() -> None:
    store = PrefixStore(1 << 20)
    store.save(None, holding([*numbers(0, 128), *numbers(500, 64)]))
    store.save(None, holding([*numbers(0, 128), *numbers(700, 30)]))

    assert store.num_bytes == ROW * (128 + 64 + 30)
    assert found(store, [*numbers(0, 128), *numbers(500, 64)])[128:] == numbers(500, 64)
    assert found(store, [*numbers(0, 128), *numbers(700, 64)])[128:] == numbers(700, 30)


def test_a_longer_sequence_takes_the_place_of_its_beginning() -> None:
    store = PrefixStore(1 << 20)
    for length in (10, 70, 90, 150, 40):
        store.save(None, holding(numbers(0, length)))

    assert store.num_bytes == ROW * 150
    assert found(store, numbers(0, 200)) == numbers(0, 150)


def test_nothing_is_found_under_another_salt() -> None:
    store = PrefixStore(1 << 20)
    store.save("a", holding(numbers(0, 100)))
    store.remember("a", (0, 1), Forward(torch.zeros(1, 4), torch.zeros(1, 7)))

    assert [found(store, numbers(0, 100), salt) for salt in (None, "b")] == [[], []]
    assert store.recall("b", (0, 1)) is None
    assert len(found(store, numbers(0, 100), "a")) == 100


def test_the_least_recently_used_sequence_is_given_up_from_its_end() -> None:
    store = PrefixStore(ROW * 64 * 5)
    for start in (0, 1000):
        store.save(None, holding(numbers(start, 128)))
    assert len(found(store, numbers(0, 128))) == 128  # used later than the other

    store.save(None, holding(numbers(500, 128)))

    assert len(found(store, numbers(1000, 128))) == 64
    assert len(found(store, numbers(0, 128))) == len(found(store, numbers(500, 128))) == 128


def test_of_a_sequence_beyond_the_budget_the_beginning_is_kept() -> None:
    store = PrefixStore(ROW * 64 * 2 + 1)
    store.save(None, holding(numbers(0, 300)))
    store.save(None, holding(numbers(0, 310)))

    assert found(store, numbers(0, 300)) == numbers(0, 128)


def test_without_a_budget_no_rows_are_kept_but_the_last_prompts_ending_is() -> None:
    store = PrefixStore(0)
    store.save(None, holding(numbers(0, 300)))
    for prompt in ((1,), (2,)):
        store.remember(None, prompt, Forward(torch.full((1, 4), 3.0), torch.full((1, 7), 5.0)))

    last = store.recall(None, (2,))
    assert found(store, numbers(0, 300)) == []
    assert last is not None and last.hidden.tolist() == [[3.0] * 4] and last.logits.tolist() == [[5.0] * 7]
    assert store.recall(None, (1,)) is None


def test_endings_are_copies_few_in_number_and_counted() -> None:
    store, hidden, logits = PrefixStore(1 << 20), torch.zeros(512, 4), torch.zeros(1, 7)
    for token in range(20):
        store.remember(None, (token,), Forward(hidden[-1:], logits))
    hidden.fill_(1.0)

    kept = [last for token in range(20) if (last := store.recall(None, (token,))) is not None]
    assert len(kept) == 8
    assert store.num_bytes == 8 * 4 * (4 + 7)
    assert all(float(last.hidden.sum()) == 0 and last.hidden.untyped_storage().nbytes() == 16 for last in kept)


sequences = st.lists(st.tuples(st.sampled_from([None, "a"]), st.integers(0, 2), st.integers(1, 200)), max_size=12)


@settings(deadline=None, max_examples=60)
@given(sequences, st.integers(0, 500))
def test_whatever_is_saved_what_is_found_is_right_and_within_the_budget(
    saved: list[tuple[str | None, int, int]], budget_rows: int
) -> None:
    store = PrefixStore(ROW * budget_rows)
    written: dict[str | None, list[list[int]]] = {None: [], "a": []}
    for salt, kind, length in saved:
        # sequences of a kind part from each other where a multiple of 50 ends the shorter one
        tokens = [*numbers(600 * kind, length // 50 * 50), *numbers(400, length % 50)]
        store.save(salt, holding(tokens))
        written[salt].append(tokens)

        assert store.num_bytes <= store.budget
        back = found(store, tokens, salt)
        assert back == tokens[: len(back)]
        longest = max(common_prefix(earlier, tokens) for earlier in written[salt])
        assert len(back) <= longest
        assert len(back) == longest or budget_rows < 500


class Full(KVCache):
    """A cache on a device that has no room for copies."""

    def copy_rows(self, start: int, end: int) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_device_without_room_gets_back_what_is_held() -> None:
    store, full = PrefixStore(1 << 20), Full(1, 1, 4, 100, torch.float16, CPU)
    store.save(None, holding(numbers(0, 100)))
    full.tokens.extend(numbers(0, 100)[:64] + numbers(200, 30))

    store.save(None, full)

    assert store.num_bytes == 0
    assert found(store, numbers(0, 100)) == []
    store.save(None, holding(numbers(0, 100)))
    assert len(found(store, numbers(0, 100))) == 100


def test_the_budget_is_what_the_operator_says_and_else_fits_the_device() -> None:
    assert store_budget(3, CPU) == 3 * 2**20
    assert store_budget(0, CPU) == 0
    assert store_budget(None, CPU) == 256 * 2**20


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="the free memory of a CUDA device needs one")
def test_on_cuda_the_budget_is_a_tenth_of_what_is_free() -> None:
    device = torch.device("cuda")

    assert store_budget(None, device) == pytest.approx(torch.cuda.mem_get_info(device)[0] / 10, rel=0.05)

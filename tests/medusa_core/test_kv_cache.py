import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medusa_core.errors import EngineError
from medusa_core.kv_cache import KVCache, common_prefix
from tests.cast import CPU


def numbered(rows: int = 16) -> KVCache:
    """A cache whose every row holds its own number."""
    cache = KVCache(3, 2, 4, rows, torch.float32, CPU)
    cache.buffer.copy_(torch.arange(rows, dtype=torch.float32)[:, None].expand_as(cache.buffer))
    return cache


@given(st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3)))
def test_the_common_prefix_is_the_longest_shared_start(first: list[int], second: list[int]) -> None:
    length = common_prefix(first, second)

    assert first[:length] == second[:length]
    assert length in (len(first), len(second)) or first[length] != second[length]


@settings(deadline=None)
@given(st.integers(0, 6), st.lists(st.integers(0, 5), min_size=1, max_size=5, unique=True).map(sorted))
def test_commit_moves_a_path_to_the_front_of_the_scratch_rows_in_every_layer(past: int, path: list[int]) -> None:
    cache = numbered()
    cache.commit(torch.tensor(past), torch.tensor(path))

    rows = cache.buffer[:, :, 0, :, :, 0]
    expected = torch.tensor([*range(past), *(past + node for node in path)], dtype=torch.float32)
    assert torch.equal(rows[..., : past + len(path)], expected.expand(2, 3, 2, -1))


def test_a_layer_writes_at_the_write_rows_and_shows_the_visible_ones() -> None:
    cache = KVCache(2, 1, 4, 16, torch.float32, CPU)
    cache.prepare(torch.tensor(5), length=3, visible_rows=8)

    keys, values = cache.update(torch.ones(1, 1, 3, 4), 2 * torch.ones(1, 1, 3, 4), 1)

    assert keys.shape == (1, 1, 8, 4)
    assert keys[0, 0, :, 0].tolist() == [0] * 5 + [1] * 3
    assert values[0, 0, 5:, 0].tolist() == [2] * 3
    assert float(cache.buffer[:, 0].abs().sum()) == 0  # the other layer


def test_more_visible_rows_than_there_are_is_an_error_that_says_what_to_raise() -> None:
    with pytest.raises(EngineError, match=r"17 cache rows are needed, 16 were allocated; raise max_context"):
        numbered(16).prepare(torch.tensor(0), 1, 17)


def test_what_is_kept_is_the_beginning() -> None:
    cache = numbered()
    cache.tokens.extend([7, 8, 9])

    cache.keep(2)
    cache.keep(5)

    assert cache.tokens == [7, 8]


def test_copied_rows_outlive_the_buffers_and_come_back_behind_what_is_held() -> None:
    cache = numbered()
    rows = cache.copy_rows(3, 6)
    cache.buffer.zero_()
    cache.tokens.extend([7, 8])

    cache.append([1, 2, 3], rows)

    assert cache.tokens == [7, 8, 1, 2, 3]
    assert cache.buffer[1, 2, 0, 1, :7, 3].tolist() == [0, 0, 3, 4, 5, 0, 0]
    assert torch.equal(cache.buffer[..., 2:5, :], rows)


def test_a_row_takes_keys_and_values_of_all_layers_and_heads() -> None:
    cache = numbered()

    assert cache.bytes_per_row == 2 * 3 * 2 * 4 * 4
    assert cache.copy_rows(0, 5).nbytes == 5 * cache.bytes_per_row

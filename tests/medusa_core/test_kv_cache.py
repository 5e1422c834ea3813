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


@pytest.mark.parametrize(
    ("held", "prompt", "kept"),
    [
        ([1, 2, 3], [1, 2, 3, 4], 3),
        ([1, 2, 3], [1, 2, 9, 4], 2),
        ([1, 2, 3], [1, 2, 3], 2),  # the last prompt token is always computed
        ([1, 2, 3, 4, 5], [1, 2, 3], 2),
        ([], [7], 0),
    ],
)
def test_reuse_keeps_the_common_prefix_but_never_the_last_prompt_token(
    held: list[int], prompt: list[int], kept: int
) -> None:
    cache = numbered()
    cache.tokens.extend(held)

    assert cache.reuse(prompt) == kept
    assert cache.tokens == held[:kept]

from collections.abc import Sequence

import torch
from torch import Tensor

from medusa_core.decoding import OrdinaryPrompts, Prefilled
from medusa_core.kv_cache import KVCache
from medusa_core.prefix_cache import Prefiller, PrefixStore
from tests.cast import CPU, MockBackbone

ROW = 2 * 16 * 8  # keys and values of the mock's one layer, sixteen float64 each


def never() -> bool:
    return False


class Watched(KVCache):
    """A cache that counts the rows copied out of it and into it."""

    out = 0
    back = 0

    def copy_rows(self, start: int, end: int) -> Tensor:
        self.out += end - start
        return super().copy_rows(start, end)

    def append(self, tokens: Sequence[int], rows: Tensor) -> None:
        self.back += len(tokens)
        super().append(tokens, rows)


class Bench:
    """A prefiller whose work can be seen, beside one that always begins anew."""

    def __init__(self, budget: int = 1 << 24, chunk: int = 512) -> None:
        self.backbone = MockBackbone(vocab_size=300)
        self.cache = Watched(1, 1, self.backbone.hidden_size, 512, torch.float64, CPU)
        self.store = PrefixStore(budget)
        self.prefiller = Prefiller(OrdinaryPrompts(self.backbone, self.cache), self.cache, self.store, chunk)

    def compute(self, prompt: Sequence[int], salt: str | None = None, answer: Sequence[int] = ()) -> tuple[int, int]:
        """Rows found and rows computed; the answer's rows are garbage, and stand for those of another model's."""
        before = self.backbone.computed
        found, cached_tokens = self.prefiller.compute(tuple(prompt), salt, None, never)
        computed = self.backbone.computed - before
        self.check(prompt, found)
        KVCache.append(self.cache, answer, torch.zeros(2, 1, 1, 1, len(answer), 16))
        return cached_tokens, computed

    def check(self, prompt: Sequence[int], found: Prefilled | None) -> None:
        fresh = MockBackbone(vocab_size=300)
        cache = fresh.new_cache(512)
        expected, _ = Prefiller(OrdinaryPrompts(fresh, cache), cache, PrefixStore(0), 512).compute(
            tuple(prompt), None, None, never
        )
        assert found is not None and expected is not None
        assert torch.equal(found.last.hidden, expected.last.hidden)
        # one product of many rows rounds otherwise than that of one
        torch.testing.assert_close(found.last.logits, expected.last.logits, rtol=1e-12, atol=1e-12)
        assert self.cache.tokens == list(prompt)
        assert torch.equal(self.cache.buffer[..., : len(prompt), :], cache.buffer[..., : len(prompt), :])


def talk(kind: int, length: int) -> list[int]:
    return [(7 * index + 13 * kind) % 300 for index in range(length)]


def test_two_conversations_in_turn_each_find_their_history() -> None:
    bench = Bench()
    assert [bench.compute(talk(kind, 100)) for kind in (0, 1)] == [(0, 100), (0, 100)]

    turns = [bench.compute(talk(kind, length)) for length in (130, 170, 230) for kind in (0, 1)]

    assert turns == [(100, 30), (100, 30), (130, 40), (130, 40), (170, 60), (170, 60)]


def test_a_sequence_that_goes_on_where_it_is_copies_nothing() -> None:
    bench = Bench()
    for length in (100, 150, 200):
        bench.compute(talk(0, length))

    assert (bench.cache.out, bench.cache.back) == (0, 0)


def test_no_row_is_copied_twice_into_the_store_or_back_where_it_still_is() -> None:
    bench = Bench()
    first, second = talk(0, 200), [*talk(0, 90), *talk(1, 100)]
    bench.compute(first)
    assert bench.compute(second) == (90, 100)
    assert (bench.cache.out, bench.cache.back) == (200, 0)

    assert bench.compute([*first, 5]) == (200, 1)
    # of the second only the blocks that part from the first; of the first what the second does not begin with
    assert (bench.cache.out, bench.cache.back) == (200 + 190 - 64, 110)


def test_few_rows_are_not_worth_a_copy() -> None:
    bench = Bench()
    bench.compute(talk(0, 31))
    bench.compute(talk(1, 31))

    assert bench.compute([*talk(0, 31), 1]) == (0, 32)


def test_the_same_prompt_costs_nothing_though_another_came_between() -> None:
    bench = Bench()
    bench.compute(talk(0, 100), answer=[1, 2, 3])
    assert bench.compute(talk(0, 100)) == (100, 0)
    bench.compute(talk(1, 100))

    assert bench.compute(talk(0, 100), answer=[9] * 50) == (100, 0)
    assert bench.compute(talk(0, 100)) == (100, 0)
    assert bench.compute(talk(0, 99)) == (98, 1)


def test_a_prompt_whose_ending_is_known_but_whose_rows_are_gone_is_computed() -> None:
    bench = Bench(budget=0)
    bench.compute(talk(0, 100))
    assert bench.compute(talk(0, 100)) == (100, 0)
    bench.compute(talk(1, 100))

    assert bench.compute(talk(0, 100)) == (0, 100)


def test_rows_and_endings_stay_with_their_salt() -> None:
    bench = Bench()
    found = [bench.compute(talk(0, 100), salt)[0] for salt in (None, "a", "b", "a", None, "b", "c")]

    assert found == [0, 0, 0, 100, 100, 100, 0]


def test_a_cancelled_prefill_leaves_rows_that_are_found_again() -> None:
    bench = Bench(chunk=40)
    asked = iter([False, False, True])
    found, cached_tokens = bench.prefiller.compute(tuple(talk(0, 200)), None, None, lambda: next(asked))
    assert (found, cached_tokens) == (None, 0)
    bench.compute(talk(1, 100))

    assert bench.compute(talk(0, 200)) == (80, 120)


def test_a_prompt_that_is_scored_is_computed_whole_and_costs_no_other_its_rows() -> None:
    bench = Bench()
    bench.compute(talk(0, 100))
    bench.compute(talk(1, 100))
    for kind in (1, 1):
        before = bench.backbone.computed
        found, cached_tokens = bench.prefiller.compute(tuple(talk(kind, 100)), None, 2, never)
        assert found is not None and (cached_tokens, bench.backbone.computed - before) == (0, 100)
        assert sum(len(part.chosen) for part in found.scores) == 99

    assert bench.compute(talk(1, 100)) == (100, 0)
    assert bench.compute(talk(0, 100)) == (100, 0)


def test_with_room_for_one_conversation_two_in_turn_still_find_theirs() -> None:
    endings = 8 * 8 * (16 + 300)
    bench = Bench(budget=ROW * 192 + endings)
    for kind in (0, 1):
        bench.compute(talk(kind, 150))

    assert [bench.compute(talk(kind, length))[0] for length in (160, 170) for kind in (0, 1)] == [150, 150, 160, 160]
    assert bench.store.num_bytes <= bench.store.budget


def test_what_is_forgotten_is_computed_again() -> None:
    bench = Bench()
    bench.compute(talk(0, 100))
    bench.compute(talk(1, 100))

    bench.prefiller.forget()

    assert bench.store.num_bytes == 0
    assert [bench.compute(talk(kind, 100)) for kind in (1, 0)] == [(0, 100), (0, 100)]

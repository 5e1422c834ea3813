from dataclasses import replace

import torch

from medusa_core.config import SpeculationMode, SpeculationParams
from medusa_core.drafters import (
    Asked,
    Drafter,
    DrafterSource,
    DraftState,
    MedusaDrafter,
    MergedDrafter,
    RootOnly,
)
from medusa_core.heads import DraftHeads
from medusa_core.memory import Memory, kind_of
from medusa_core.tree import SOURCES
from tests.cast import CPU, random_heads

HEADS = random_heads(torch.randn(23, 16, generator=torch.Generator().manual_seed(0)), 3)


def drafter(
    mode: SpeculationMode = "auto",
    heads: DraftHeads | None = HEADS,
    max_nodes: int | None = None,
    prediction: tuple[int, ...] = (),
    has_grammar: bool = False,
    has_lookup: bool = True,
    recycles: bool = False,
) -> Drafter:
    source = DrafterSource(heads, torch.ones(3), 8, 8, has_lookup, CPU, 23 if recycles else None)
    return source.get(Asked(SpeculationParams(mode, max_nodes), prediction, 1, has_grammar))


def test_requests_share_a_drafter_and_with_a_prediction_at_least_its_costly_part() -> None:
    source = DrafterSource(HEADS, torch.ones(3), 8, 8, True, CPU)

    def made(max_nodes: int, prediction: tuple[int, ...] = ()) -> Drafter:
        return source.get(Asked(SpeculationParams(max_nodes=max_nodes), prediction, 1, False))

    def choice(drafter: Drafter) -> set[int]:
        return {id(part) for part in vars(drafter).values() if type(part).__name__ == "BestNodes"}

    assert made(8) is made(8) is not made(4)
    one, other = made(8, (1, 2)), made(8, (3,))
    assert one is not other
    assert choice(one) == choice(other) != choice(made(8))


def test_without_heads_all_decode_plainly_unless_somebody_has_something_to_propose() -> None:
    for mode in ("auto", "tree", "chain"):
        assert isinstance(drafter(mode, heads=None, has_lookup=False), RootOnly)

    assert isinstance(drafter(heads=None), MergedDrafter)
    assert isinstance(drafter(heads=None, has_lookup=False, recycles=True), MergedDrafter)
    assert isinstance(drafter(heads=None, has_lookup=False, prediction=(1, 2)), MergedDrafter)
    assert isinstance(drafter(heads=None, has_lookup=False, has_grammar=True), MergedDrafter)


def test_off_and_a_single_node_are_plain_decoding() -> None:
    assert isinstance(drafter("off", prediction=(1, 2), has_grammar=True), RootOnly)
    assert isinstance(drafter(max_nodes=1), RootOnly)


def test_a_chain_is_a_fixed_shape_of_the_heads() -> None:
    chain = drafter("chain")

    assert isinstance(chain, MedusaDrafter)
    assert (chain.num_nodes, chain.max_depth) == (4, 3)


def test_lookup_reaches_deeper_than_the_heads_unless_it_is_off() -> None:
    assert drafter().max_depth == 7
    assert drafter(has_lookup=False).max_depth == 3


def test_beside_heads_tokens_are_recycled_in_trees_that_have_room_for_it() -> None:
    def sources(num_nodes: int, heads: DraftHeads | None) -> set[str]:
        source = DrafterSource(heads, torch.ones(3), num_nodes, 8, True, CPU, 23)
        drafter = source.get(Asked(SpeculationParams(), (), 1, False))
        memory, state = Memory(23, CPU), DraftState(torch.tensor(5), torch.zeros(16), torch.tensor(2))
        state = replace(state, history=torch.tensor([5, 1, 5, *[0] * 20]), memory=memory)
        assert memory.successors is not None
        memory.successors.kinds.fill_(kind_of("recycling", 7))
        memory.successors.tokens.copy_(torch.arange(8))
        drafted = drafter.draft(state)
        return {SOURCES[index] for index in drafted.source[drafted.used][1:].tolist()}

    assert "recycling" in sources(16, HEADS)
    assert "recycling" not in sources(8, HEADS)
    assert "recycling" in sources(8, None)

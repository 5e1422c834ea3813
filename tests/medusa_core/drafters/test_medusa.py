from dataclasses import replace

import pytest
import torch

from medusa_core.config import SpeculationMode, SpeculationParams
from medusa_core.drafters import Asked, DrafterSource, DraftState, Grammatical, MedusaDrafter, forced_span
from medusa_core.heads import DraftHeads
from medusa_core.tree import TreeTopology
from tests.cast import CPU, MockBackbone, make_engine, random_heads, run

HEADS = random_heads(torch.randn(23, 16, generator=torch.Generator().manual_seed(0)), 3)
HIDDEN = torch.randn(16, generator=torch.Generator().manual_seed(1))
STATE = DraftState(torch.tensor(5), HIDDEN, torch.tensor(12))


def test_a_node_at_depth_d_holds_a_guess_of_head_d() -> None:
    tree = MedusaDrafter.static(HEADS, torch.ones(3), TreeTopology.chain(3)).draft(STATE)

    assert tree.tokens[1:].tolist() == HEADS(HIDDEN).argmax(-1).tolist()


def test_a_topology_deeper_than_the_heads_is_pruned_to_them() -> None:
    drafter = MedusaDrafter.static(HEADS, torch.ones(3), TreeTopology.chain(7))

    assert (drafter.num_nodes, drafter.max_depth) == (4, 3)
    assert drafter.draft(STATE).num_nodes == 4


def test_a_hot_head_loses_nodes_to_the_others() -> None:
    def nodes_at_depth_one(temperatures: list[float]) -> int:
        source = DrafterSource(HEADS, torch.tensor(temperatures), 12, 3, False, CPU)
        tree = source.get(Asked(SpeculationParams(), (), 1, False)).draft(STATE)
        return int((tree.depth == 1).sum())

    # a flat first head offers many equal first tokens; a sharp one spends the nodes below its favourite
    assert nodes_at_depth_one([20.0, 1.0, 1.0]) > nodes_at_depth_one([0.05, 1.0, 1.0])


def test_the_first_head_of_a_chain_guesses_what_the_grammar_allows() -> None:
    allowed = torch.zeros(23, dtype=torch.bool)
    allowed[[7, 9]] = True
    state = replace(STATE, grammar=Grammatical(allowed, forced_span([], 3, CPU)))
    tree = MedusaDrafter.static(HEADS, torch.ones(3), TreeTopology.chain(3)).draft(state)

    assert int(tree.tokens[1]) in (7, 9)
    assert tree.tokens[2:].tolist() == HEADS(HIDDEN).argmax(-1).tolist()[1:]


def test_heads_of_a_truncated_vocabulary_draft_its_tokens_and_of_those_what_the_grammar_allows() -> None:
    ids = torch.tensor([20, 4, 11, 9])
    lm_head = torch.randn(23, 16, generator=torch.Generator().manual_seed(0))
    heads = DraftHeads.from_base(lm_head, 3, token_ids=ids).requires_grad_(False)
    allowed = torch.zeros(23, dtype=torch.bool)
    allowed[[7, 9]] = True

    for mode in ("tree", "chain"):
        drafter = DrafterSource(heads, torch.ones(3), 8, 3, False, CPU).get(
            Asked(SpeculationParams(mode), (), 1, False)
        )
        free = drafter.draft(STATE)
        bound = drafter.draft(replace(STATE, grammar=Grammatical(allowed, forced_span([], 3, CPU))))

        assert set(free.tokens[1:].tolist()) <= set(ids.tolist())
        assert {int(token) for token in bound.tokens[bound.used & (bound.depth == 1)]} == {9}


@pytest.mark.parametrize("mode", ["tree", "chain"])
def test_what_truncated_low_rank_heads_propose_never_changes_the_text(mode: SpeculationMode) -> None:
    model = MockBackbone()
    heads = DraftHeads.from_base(model.lm_head, 3, lm_head_rank=2, token_ids=torch.tensor([20, 4, 11, 9, 2]))
    plain = run(make_engine(MockBackbone()), (3, 1, 4), max_tokens=60)

    written = run(
        make_engine(model, heads.requires_grad_(False)),
        (3, 1, 4),
        max_tokens=60,
        speculation=SpeculationParams(mode),
    )

    assert written == plain

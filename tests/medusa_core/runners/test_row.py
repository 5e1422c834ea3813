from dataclasses import replace

import pytest
import torch

from medusa_core.acceptance import Acceptance
from medusa_core.decoding import Logprobs, logprobs_of
from medusa_core.runners import DraftedNode, StepDetail, TokenLogprobs, to_host
from medusa_core.runners.row import pack
from medusa_core.tree import GRADES, SOURCES, CandidateTree, Ranking, TreeTopology

TREE = CandidateTree.from_topology(TreeTopology.from_paths([(0,), (1,), (1, 0)]), torch.tensor([9, 5, 6, 7]))
ACCEPTED = Acceptance(torch.tensor([0, 2, 0]), torch.tensor([6, 8, 1]), torch.tensor(2))


def test_a_row_tells_what_was_emitted_and_who_drafted_it() -> None:
    row = pack(ACCEPTED, TREE, None)
    result = row.layout.read(row.values.tolist())

    assert result.tokens == [6, 8]
    assert result.path == [2]
    assert result.accepted == [SOURCES[0]]
    assert result.drafted == {SOURCES[0]: 3}
    assert (result.num_nodes, result.head_hits, result.logprobs) == (4, [], None)


def test_log_probabilities_come_over_bit_for_bit() -> None:
    logits = torch.randn(3, 11, generator=torch.Generator().manual_seed(0)) * 30
    logprobs = logprobs_of(logits, ACCEPTED.tokens, 4)
    row = pack(ACCEPTED, TREE, logprobs)

    assert row.values.dtype == torch.int64
    assert row.layout.read(row.values.tolist()).logprobs == to_host(logprobs)[:2]


def test_a_token_may_be_scored_without_alternatives() -> None:
    empty = torch.zeros(3, 0)
    row = pack(ACCEPTED, TREE, Logprobs(torch.tensor([-0.5, -torch.inf, 0.0]), empty.long(), empty))

    assert row.layout.read(row.values.tolist()).logprobs == [TokenLogprobs(-0.5, ()), TokenLogprobs(-torch.inf, ())]


def test_a_row_holds_not_one_number_more_where_nobody_looks_at_the_tree() -> None:
    row = pack(ACCEPTED, TREE, None)

    assert row.values.shape == (1 + 2 * 3 + 2 * 4,)
    assert row.layout.read(row.values.tolist()).detail is None


def test_a_watched_tree_comes_over_without_its_unused_slots() -> None:
    ranking = Ranking(torch.tensor([0.0, -1.0, -0.5, -2.0]), torch.tensor([0, 1, 0, 3]))
    kind = torch.tensor([0, 0, GRADES, 0])
    tree = replace(TREE, used=torch.tensor([True, False, True, True]), kind=kind, ranking=ranking)
    tree = replace(tree, parent=torch.tensor([0, 0, 0, 2]))
    row = pack(ACCEPTED, tree, logprobs_of(torch.zeros(3, 11), ACCEPTED.tokens, 2))
    result = row.layout.read(row.values.tolist())

    assert result.detail == StepDetail(
        nodes=(
            DraftedNode(9, None, 0, None, None, 1.0),
            DraftedNode(6, 0, 1, "lookup", None, pytest.approx(0.60653, abs=1e-5)),
            DraftedNode(7, 1, 2, "heads", 3, pytest.approx(0.13534, abs=1e-5)),
        ),
        path=(1,),
        tokens=(6, 8),
    )
    assert result.logprobs is not None and len(result.logprobs) == 2

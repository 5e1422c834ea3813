import torch

from medusa_core.acceptance import Acceptance
from medusa_core.decoding import Logprobs, logprobs_of
from medusa_core.runners import TokenLogprobs, to_host
from medusa_core.runners.row import pack
from medusa_core.tree import SOURCES, CandidateTree, TreeTopology

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

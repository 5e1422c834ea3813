import torch

from medusa_core.drafters import forced_span
from medusa_core.drafters.grammar import only_allowed
from medusa_core.memory import IMPOSSIBLE, NOTHING, kind_of
from tests.cast import CPU


def test_a_forced_span_is_certain_and_what_lies_behind_it_impossible() -> None:
    branch = forced_span([7, 8], 4, CPU)

    assert branch.tokens.tolist()[:2] == [7, 8]
    assert branch.kinds.tolist() == [kind_of("grammar", 0)] * 2 + [NOTHING] * 2


def test_a_span_longer_than_a_branch_is_cut() -> None:
    assert forced_span([7, 8, 9], 2, CPU).tokens.tolist() == [7, 8]


def test_where_there_is_a_choice_nothing_is_forced() -> None:
    assert forced_span([], 2, CPU).kinds.tolist() == [NOTHING] * 2
    assert forced_span([], 0, CPU).tokens.dtype == torch.long


def test_allowed_tokens_share_the_first_heads_whole_probability() -> None:
    log_probs = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]).log()
    found = only_allowed(log_probs, torch.tensor([False, True, True]))

    assert torch.allclose(found[0, 1:].exp(), torch.tensor([0.6, 0.4]))
    assert found[0, 0] == IMPOSSIBLE
    assert torch.equal(found[1], log_probs[1])
    assert float(found.max()) <= 0.0


def test_a_token_the_heads_think_impossible_is_certain_where_the_grammar_allows_no_other() -> None:
    log_probs = torch.tensor([[0.0, -300.0]])

    assert only_allowed(log_probs, torch.tensor([False, True]))[0].tolist() == [IMPOSSIBLE, 0.0]


def test_heads_none_of_whose_tokens_is_allowed_guess_nothing() -> None:
    log_probs = torch.tensor([[0.5, 0.5], [0.1, 0.9]]).log()

    assert only_allowed(log_probs, torch.tensor([False, False]))[0].tolist() == [IMPOSSIBLE, IMPOSSIBLE]

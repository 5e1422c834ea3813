import pytest

from medusa_core.pacing.account import LIMIT, LIMIT_TOKENS, Account


def test_an_answer_may_lose_the_limit_of_a_hundred_tokens_at_first() -> None:
    account = Account()
    allowed = LIMIT * LIMIT_TOKENS

    assert account.affords(0.99 * allowed, 1.0, 1.0)
    assert not account.affords(1.01 * allowed, 1.0, 1.0)
    assert not account.affords(0.99 * allowed, 1.0, 0.5)


def test_what_was_won_may_be_lost_again_and_longer_answers_may_lose_more() -> None:
    account = Account()
    for _ in range(200):
        account.charge(0.0, 1.0)
    account.credit(10.0)

    assert account.affords(9.9 + LIMIT * 210.0, 1.0, 1.0)
    assert not account.affords(10.1 + LIMIT * 210.0, 1.0, 1.0)


@pytest.mark.parametrize("extra_s", [0.0, -1.0])
def test_what_costs_no_more_than_a_plain_step_is_always_affordable(extra_s: float) -> None:
    account = Account()
    account.charge(100.0, 1.0)

    assert account.affords(extra_s, 1.0, 1.0)

from server.exchange import EXCHANGE, Exchange, Generated, exchange_of
from server.worker.messages import Sampling

SAMPLING = Sampling(0.5, 1.0, None, 0.0, None, 0, 1.0, 0.0, 0.0, [], 0)


def generated(started: float | None, first_token: float | None) -> Generated:
    return Generated("m", SAMPLING, 8, 1, "stop", 5, 0, 8, 3, 2.3, 1.3, 10.0, started, first_token, 14.0)


def test_each_phase_ends_where_the_next_begins() -> None:
    assert generated(11.0, 12.0).phases == {"queue": (10.0, 11.0), "prefill": (11.0, 12.0), "decode": (12.0, 14.0)}


def test_a_request_that_left_early_has_no_later_phase() -> None:
    assert generated(None, None).phases == {"queue": (10.0, 14.0)}
    assert generated(11.0, None).phases == {"queue": (10.0, 11.0), "prefill": (11.0, 14.0)}


def test_a_scope_has_one_exchange() -> None:
    observed = Exchange("id", 1.0)
    alone: dict[str, object] = {}

    assert exchange_of({EXCHANGE: observed}) is observed
    assert exchange_of(alone) is exchange_of(alone)

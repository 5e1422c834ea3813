"""The official Node client; the claims stand in node/openai.test.js."""

import pytest

from tests.clients.node_runs import claims, run

FILE = "openai.test.js"


@pytest.fixture(scope="module")
def results(node_environment: dict[str, str]) -> dict[str, str | None]:
    return run(FILE, node_environment)


@pytest.mark.parametrize("claim", claims(FILE))
def test_node_claims(results: dict[str, str | None], claim: str) -> None:
    assert results[claim] is None, results[claim]

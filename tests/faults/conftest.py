"""One server with the demo model for all tests that leave it as they found it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.faults.live import Server, serving

ENOUGH_S = 300


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("demo")) as server:
        yield server


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Give tests that start servers more time than others, for machines that have much else to do."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(ENOUGH_S))

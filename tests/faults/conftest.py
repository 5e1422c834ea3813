"""One server with the demo model for all tests that leave it as they found it."""

from collections.abc import Iterator

import pytest

from tests.faults.live import Server, serving


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("demo")) as server:
        yield server

"""One server for all tests that leave it as they found it.

What serves is imported by who uses it: the process that only hands tests out to others reads this file too.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from openai import OpenAI

    from tests.server.running import Running


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Running"]:
    from tests.server.running import running

    with running(tmp_path_factory.mktemp("tiny")) as server:
        yield server


@pytest.fixture
def client(server: "Running") -> Iterator["OpenAI"]:
    with server.openai() as client:
        yield client

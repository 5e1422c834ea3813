import sys
from pathlib import Path

import pytest

from benchmarks.through_http.launching import free_port, serving
from medusa_core.errors import ConfigurationError


def test_a_server_is_there_inside_the_block_and_gone_behind_it(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(tmp_path)]

    with serving(command, port, "/", tmp_path / "log"):
        assert "GET / HTTP" in (tmp_path / "log").read_text()
    with serving(command, port, "/", tmp_path / "log"):
        pass  # the port was free again


def test_a_server_that_ends_is_quoted(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no such model')"]

    with (
        pytest.raises(ConfigurationError, match=r"(?s)status 1.*no such model"),
        serving(command, 1, "/", tmp_path / "l"),
    ):
        raise AssertionError("it never was ready")

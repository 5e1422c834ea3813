import pytest

from medusa_core.reasons import in_one_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError("404 (Request ID: 1)\n\n  Repository   not found\n"), "404 (Request ID: 1) Repository not found"),
        (ValueError("x" * 500), "x" * 300),
        (EOFError(), "EOFError"),
        (RuntimeError(" \n"), "RuntimeError"),
    ],
)
def test_what_an_error_says_is_one_line_or_its_kind(error: Exception, line: str) -> None:
    assert in_one_line(error) == line

"""How every command says no."""

from typer.testing import CliRunner

from server.cli import create_cli


def refusal(*words: str, **variables: str) -> str:
    """The one line on stderr with which a command refuses its options."""
    ended = CliRunner().invoke(create_cli(), list(words), env=variables)

    assert ended.exit_code in (1, 2)
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ")
    return line

from typer.testing import CliRunner

from server.cli import create_cli


def test_the_demo_model_is_served_by_this_machine() -> None:
    ended = CliRunner().invoke(create_cli(), ["doctor"])

    assert ended.exit_code == 0
    for name in ("packages", "disk", "memory", "processor", "C compiler", "heads"):
        assert name in ended.stdout


def test_a_model_that_is_not_there_is_bad_and_the_status_says_so() -> None:
    ended = CliRunner().invoke(create_cli(), ["doctor", "--model", "/nowhere/at/all"])

    assert ended.exit_code == 1
    assert "there is no '/nowhere/at/all'" in ended.stdout

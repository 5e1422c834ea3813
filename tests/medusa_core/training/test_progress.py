import pytest

from medusa_core.training.progress import progress_bar


def test_a_bar_shows_title_count_and_state_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("training heads", total=10, done=9, unit="step") as bar:
        bar.update(1)
        bar.set_postfix_str("loss 1.5", refresh=True)

    captured = capsys.readouterr()
    assert captured.out == ""
    assert "training heads" in captured.err
    assert "10/10" in captured.err
    assert "loss 1.5" in captured.err


def test_a_file_gets_lines_not_one_that_is_drawn_over_and_over(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("distilling", total=3, done=0, unit="answer") as bar:
        for _ in range(3):
            bar.update(1)

    first, last = capsys.readouterr().err.splitlines()
    assert "0/3" in first and "3/3" in last
    assert "\r" not in first + last

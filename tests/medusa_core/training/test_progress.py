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

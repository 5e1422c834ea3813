import pytest

from tests.server.commands.refusals import refusal


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--model", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--mode", "psychic"], "--mode"),
        (["--quantize", "int4", "--device", "cpu"], "int4 needs a CUDA device"),
    ],
)
def test_a_wrong_option_is_one_clear_line(words: list[str], named: str) -> None:
    assert named in refusal("generate", "hi", *words)

import pytest

from medusa_core.errors import ConfigurationError
from server.commands.options import sizes


def test_sizes_come_in_order_and_once() -> None:
    assert sizes("16,4, 8,4", "--nodes") == (4, 8, 16)
    assert sizes(None, "--nodes") is None


@pytest.mark.parametrize("words", ["", "4;8", "four", "4,"])
def test_what_is_no_list_of_numbers_is_refused_with_its_option(words: str) -> None:
    with pytest.raises(ConfigurationError, match=r"--nodes is .*numbers separated by commas"):
        sizes(words, "--nodes")

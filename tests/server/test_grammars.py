import pytest

from medusa_core.constraints import Grammar
from medusa_core.errors import InvalidParameter
from medusa_core.text import TextCodec
from server.grammars import Grammars
from tests.server.worker_info import INFO
from tests.tiny_tokenizers import save_byte_level


@pytest.fixture(scope="module")
def grammars(tmp_path_factory: pytest.TempPathFactory) -> Grammars:
    return Grammars(TextCodec.load(str(save_byte_level(tmp_path_factory.mktemp("tiny")))))


def test_a_grammar_that_can_be_followed_passes(grammars: Grammars) -> None:
    grammars.check(Grammar.regex("[0-9]+"), INFO, "guided_regex")
    grammars.check(Grammar.json_object(), INFO, "response_format")


def test_a_grammar_that_cannot_is_refused_by_the_field_that_asked_for_it(grammars: Grammars) -> None:
    with pytest.raises(InvalidParameter, match="look-ahead") as refused:
        grammars.check(Grammar.regex("(?=a)"), INFO, "guided_regex")

    assert refused.value.param == "guided_regex"

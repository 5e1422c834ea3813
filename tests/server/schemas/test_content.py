import pytest

from medusa_core.errors import UnsupportedParameter
from server.schemas.content import joined_text


def test_parts_are_joined_as_they_are() -> None:
    assert joined_text([{"type": "text", "text": "a "}, {"type": "refusal", "refusal": "b"}], "messages") == "a b"
    assert joined_text("a", "messages") == "a"
    assert joined_text([], "messages") == ""
    assert joined_text(None, "messages") is None


def test_a_part_that_is_no_text_is_refused_by_the_field_it_stands_in() -> None:
    with pytest.raises(UnsupportedParameter, match="'image_url'") as refused:
        joined_text([{"type": "image_url"}], "prediction")

    assert refused.value.param == "prediction"


@pytest.mark.parametrize(
    "value", [7, {"type": "text"}, ["a"], [{"text": "a"}], [{"type": "text"}], [{"type": "text", "text": 1}]]
)
def test_what_is_neither_text_nor_parts_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"must be|has a"):
        joined_text(value, "messages")

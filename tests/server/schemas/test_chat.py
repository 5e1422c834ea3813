import pytest
from pydantic import ValidationError

from medusa_core.errors import UnsupportedParameter
from server.schemas.chat import Message


def test_a_template_gets_text_and_no_absent_keys() -> None:
    message = Message.model_validate({"role": "developer", "content": [{"type": "text", "text": "a"}], "type": "text"})

    assert message.for_template() == {"role": "system", "content": "a"}


def test_content_may_be_missing_where_tools_were_called() -> None:
    message = Message.model_validate({"role": "assistant", "tool_calls": [{"id": "1"}]})

    assert message.for_template() == {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file"])
def test_parts_that_are_no_text_are_refused_by_name(kind: str) -> None:
    with pytest.raises(UnsupportedParameter, match=kind):
        Message.model_validate({"role": "user", "content": [{"type": kind, kind: {}}]})


@pytest.mark.parametrize("content", [1, True, {}, [1], [{}], [{"type": "text"}], [{"type": "text", "text": 1}]])
def test_content_of_another_kind_is_refused(content: object) -> None:
    with pytest.raises(ValidationError):
        Message.model_validate({"role": "user", "content": content})

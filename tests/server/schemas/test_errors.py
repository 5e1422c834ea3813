import msgspec
from pydantic import TypeAdapter

from medusa_core.errors import InvalidParameter
from server.errors import error_body
from server.schemas.errors import ErrorBody


def test_what_is_sent_is_what_is_documented() -> None:
    sent = msgspec.json.encode(error_body(InvalidParameter("no", "top_p")))

    documented = TypeAdapter(ErrorBody).validate_json(sent, strict=True)
    assert documented == msgspec.json.decode(sent)
    assert set(documented["error"]) == set(ErrorBody.__annotations__["error"].__annotations__)

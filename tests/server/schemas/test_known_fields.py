import pytest

from medusa_core.errors import UnsupportedParameter
from server.schemas.common import GenerationFields
from server.schemas.known_fields import ACCEPTED_WITHOUT_EFFECT, NOT_BUILT


@pytest.mark.parametrize("name", sorted(NOT_BUILT))
def test_what_is_not_built_is_refused_by_name_unless_it_asks_for_nothing(name: str) -> None:
    for value in (None, *NOT_BUILT[name].neutral):
        GenerationFields.model_validate({"model": "m", name: value})
    with pytest.raises(UnsupportedParameter) as caught:
        GenerationFields.model_validate({"model": "m", name: "something"})

    assert caught.value.param == name


def test_no_field_stands_in_two_tables() -> None:
    assert not NOT_BUILT.keys() & ACCEPTED_WITHOUT_EFFECT
    assert not NOT_BUILT.keys() & GenerationFields.model_fields.keys()
    assert not ACCEPTED_WITHOUT_EFFECT & GenerationFields.model_fields.keys()

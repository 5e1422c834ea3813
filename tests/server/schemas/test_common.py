import pytest
from pydantic import ValidationError

from medusa_core.errors import InvalidParameter
from server.schemas.common import GenerationFields, SpeculationFields


@pytest.mark.parametrize(("value", "stops"), [(None, []), ("", []), ("a", ["a"]), (["a", "", "b"], ["a", "b"])])
def test_stop_is_a_list_without_empty_strings(value: object, stops: list[str]) -> None:
    assert GenerationFields.model_validate({"model": "m", "stop": value}).stop == stops


@pytest.mark.parametrize(("value", "top_k"), [(0, 0), (-1, 0), (None, None), (5, 5)])
def test_top_k_may_be_off_or_the_models(value: object, top_k: int | None) -> None:
    assert GenerationFields.model_validate({"model": "m", "top_k": value}).top_k == top_k


def test_false_is_not_a_top_k() -> None:
    with pytest.raises(ValidationError):
        GenerationFields.model_validate({"model": "m", "top_k": False})


def test_a_surrogate_is_found_however_deep() -> None:
    with pytest.raises(InvalidParameter, match="metadata"):
        GenerationFields.model_validate({"model": "m", "metadata": [{"a": [{"\ud800": 1}]}]})


def test_speculation_that_is_left_out_keeps_the_engines_defaults() -> None:
    params = SpeculationFields.model_validate({"max_nodes": None, "delta": 0.5}).params()

    assert (params.mode, params.max_nodes, params.delta, params.epsilon) == ("auto", None, 0.5, 0.09)

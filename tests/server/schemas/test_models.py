from pydantic import TypeAdapter

from server.schemas.models import ModelList


def test_a_list_of_models_has_openais_fields() -> None:
    schema = TypeAdapter(ModelList).json_schema()

    openai, ours = {"id", "object", "created", "owned_by"}, {"max_model_len", "quantization", "adapter"}
    assert set(schema["$defs"]["Model"]["required"]) == openai | ours

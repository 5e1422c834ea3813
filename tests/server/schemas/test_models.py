from pydantic import TypeAdapter

from server.schemas.models import ModelList


def test_a_list_of_models_has_openais_fields() -> None:
    schema = TypeAdapter(ModelList).json_schema()

    assert set(schema["$defs"]["Model"]["required"]) == {"id", "object", "created", "owned_by", "max_model_len"}

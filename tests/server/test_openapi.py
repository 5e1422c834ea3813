import re
from pathlib import Path
from typing import Any

import pytest

from server.auth import open_paths
from tests.server.running import Running, running

OPEN_TO_ALL = open_paths(metrics=True, docs=False, playground=False)


@pytest.fixture(scope="module")
def schema(server: Running) -> dict[str, Any]:
    found: dict[str, Any] = server.get("/openapi.json").json()
    return found


def responses(schema: dict[str, Any], path: str) -> dict[str, Any]:
    (operation,) = schema["paths"][path].values()
    found: dict[str, Any] = operation["responses"]
    return found


STATUSES = {
    "/v1/chat/completions": {"200", "400", "404", "413", "429", "500", "503", "504", "default"},
    "/v1/completions": {"200", "400", "404", "413", "429", "500", "503", "504", "default"},
    "/v1/models": {"200", "default"},
    "/v1/models/{name}": {"200", "404", "default"},
    "/tokenize": {"200", "400", "404", "413", "default"},
    "/detokenize": {"200", "400", "404", "413", "default"},
    "/health": {"200", "default"},
    "/ready": {"200", "503", "default"},
    "/metrics": {"200", "default"},
}


def test_every_route_documents_what_it_may_answer(schema: dict[str, Any]) -> None:
    assert {path: set(responses(schema, path)) for path in schema["paths"]} == STATUSES


def test_every_error_has_the_one_shape(schema: dict[str, Any]) -> None:
    for path in schema["paths"]:
        for status, response in responses(schema, path).items():
            if status != "200":
                content = response["content"]["application/json"]
                assert content["schema"] == {"$ref": "#/components/schemas/ErrorBody"}, (path, status)
    assert "HTTPValidationError" not in schema["components"]["schemas"]


@pytest.mark.parametrize(
    ("path", "kinds"),
    [
        ("/v1/chat/completions", {"application/json", "text/event-stream"}),
        ("/v1/completions", {"application/json", "text/event-stream"}),
        ("/metrics", {"text/plain"}),
        ("/health", {"application/json"}),
    ],
)
def test_the_content_types_are_documented(schema: dict[str, Any], path: str, kinds: set[str]) -> None:
    assert set(responses(schema, path)["200"]["content"]) == kinds


def test_a_wait_is_documented_where_there_may_be_one(schema: dict[str, Any]) -> None:
    for path, status in (("/v1/completions", "429"), ("/v1/completions", "503"), ("/ready", "503")):
        assert "retry-after" in responses(schema, path)[status]["headers"]


def test_every_route_has_a_part_it_belongs_to_and_every_part_a_word(schema: dict[str, Any]) -> None:
    tags = {tag["name"] for tag in schema["tags"]}
    used = {tag for methods in schema["paths"].values() for operation in methods.values() for tag in operation["tags"]}

    assert used == tags
    assert all(tag["description"] for tag in schema["tags"])


def test_the_examples_are_answered(server: Running, schema: dict[str, Any]) -> None:
    asked = 0
    for path, methods in schema["paths"].items():
        if "post" in methods:
            reference = methods["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
            (example,) = schema["components"]["schemas"][reference.rpartition("/")[2]]["examples"]
            example = {**example, "model": "tiny"} if "model" in example else example
            assert server.post(path, example).status_code == 200, path
            asked += 1
    assert asked == 4


def nulls(schema: dict[str, Any], name: str) -> set[str]:
    """Fields of a request that may be null."""
    properties = schema["components"]["schemas"][name]["properties"]
    return {field for field, kind in properties.items() if {"type": "null"} in kind.get("anyOf", [])}


@pytest.mark.parametrize(
    ("path", "name", "required"),
    [
        ("/v1/chat/completions", "ChatRequest", {"model", "messages"}),
        ("/v1/completions", "CompletionRequest", {"model", "prompt"}),
        ("/tokenize", "TokenizeRequest", set()),
        ("/detokenize", "DetokenizeRequest", {"tokens"}),
    ],
)
def test_what_is_optional_may_be_null_and_is_documented_so(
    server: Running, schema: dict[str, Any], path: str, name: str, required: set[str]
) -> None:
    component = schema["components"]["schemas"][name]
    example = {**component["examples"][0], "model": "tiny"}
    optional = component["properties"].keys() - required

    assert set(component.get("required", [])) == required
    assert nulls(schema, name) == optional
    answer = server.post(path, {**dict.fromkeys(optional), **example})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("field", "kinds"),
    [
        ("stop", ["string", "array", "null"]),
        ("logit_bias", ["object", "null"]),
        ("stop_token_ids", ["array", "null"]),
        ("stream", ["boolean", "null"]),
    ],
)
def test_what_is_read_in_several_ways_is_documented_so(schema: dict[str, Any], field: str, kinds: list[str]) -> None:
    property = schema["components"]["schemas"]["CompletionRequest"]["properties"][field]

    assert [kind["type"] for kind in property["anyOf"]] == kinds


def test_an_open_server_asks_for_no_key(schema: dict[str, Any]) -> None:
    assert "securitySchemes" not in schema["components"]


def test_a_key_is_documented_where_it_is_needed(tmp_path: Path) -> None:
    key = {"authorization": "Bearer sesame"}
    with running(tmp_path, api_key="sesame") as server:
        schema = server.get("/openapi.json", headers=key).json()
        page = server.get("/docs", headers=key)

    assert schema["components"]["securitySchemes"] == {"bearer": {"type": "http", "scheme": "bearer"}}
    for path, methods in schema["paths"].items():
        for operation in methods.values():
            assert ("401" in operation["responses"]) == (path not in OPEN_TO_ALL)
            assert ("security" in operation) == (path not in OPEN_TO_ALL)
    assert page.status_code == 200
    assert "text/html" in page.headers["content-type"]
    assert "/openapi.json" in page.text


def test_the_probes_of_the_schema_are_the_open_ones(schema: dict[str, Any]) -> None:
    operations = {
        path for path, methods in schema["paths"].items() if methods.get("get", {}).get("tags") == ["operations"]
    }

    assert operations == OPEN_TO_ALL


def test_the_page_of_the_interface_asks_no_other_host_for_anything(server: Running) -> None:
    page = server.get("/docs").text
    parts = re.findall(r'(?:src|href)="([^"]+)"', page)

    assert len(parts) >= 3
    assert all(part.startswith("/") for part in parts)
    assert all(server.get(part).status_code == 200 for part in parts)

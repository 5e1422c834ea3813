"""schemathesis, over what /openapi.json allows and what it forbids."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx

from tests.clients.conftest import ROOT, Server

CONFORMANCE = ",".join(
    [
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
        "response_headers_conformance",
        "unsupported_method",
        "allow_header_conformance",
    ]
)
# random fields only, not every edge of every field as well
FUZZING = ["--phases", "fuzzing"]
GENERATION = ["--include-path", "/v1/completions", "--include-path", "/v1/chat/completions"]

WHOLE_NUMBERS = {"SCHEMATHESIS_HOOKS": "tests.clients.whole_numbers"}

NULL = {"type": "null"}

NO_ITEMS = {"type": "array", "maxItems": 0}
SCHEMA = {"type": "object", "properties": {"kind": {"enum": ["🙂", 1, None]}}, "required": ["kind"]}
OTHER_FORMS = [
    "grammar",
    "guided_choice",
    "guided_grammar",
    "guided_json",
    "guided_regex",
    "structured_outputs",
]
# Who does not wait gets a 504.
PATIENT = {"GenerationFields": {"timeout_s": {"type": ["number", "null"], "minimum": 60}}}
FORMATS = [
    None,
    {"type": "text"},
    {"type": "json_object"},
    {"type": "json_schema", "json_schema": {"name": "kinds", "schema": SCHEMA}},
]


def sensible(vocabulary: int, answer_tokens: int) -> dict[str, dict[str, Any]]:
    """What the schema of one field cannot say: the vocabulary, and which fields need or exclude each other."""
    token = {"type": "integer", "minimum": 0, "maximum": vocabulary - 1}
    prompt = {
        "anyOf": [
            {"type": "string", "minLength": 1, "maxLength": 40},
            {"type": "array", "items": token, "minItems": 1, "maxItems": 20},
        ]
    }
    length = {"type": "integer", "minimum": 1, "maximum": answer_tokens}
    # the document rounds limits of 64 bits
    count = {"type": ["integer", "null"], "minimum": 1, "maximum": 1000}
    share = {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 1}
    message = {
        "type": "object",
        "properties": {
            "role": {"enum": ["system", "user", "assistant"]},
            "content": {"type": "string", "maxLength": 40},
        },
        "required": ["role", "content"],
    }
    return {
        "ChatRequest": {
            "add_generation_prompt": {"enum": [None, True]},
            "continue_final_message": {"enum": [None, False]},
            "function_call": NULL,
            "functions": NO_ITEMS,
            "logprobs": {"const": True},
            "max_completion_tokens": length,
            "max_tokens": {"const": answer_tokens},
            "messages": {"type": "array", "items": message, "minItems": 1, "maxItems": 4},
            "tool_choice": {"enum": [None, "none", "auto"]},
            "tools": NO_ITEMS,
        },
        "CompletionRequest": {"best_of": NULL, "max_tokens": length, "prompt": prompt, "suffix": NULL},
        "GenerationFields": {
            **dict.fromkeys(OTHER_FORMS, NULL),
            "logit_bias": {
                "type": "object",
                "propertyNames": {"enum": [str(id) for id in range(vocabulary)]},
                "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
                "maxProperties": 5,
            },
            "min_tokens": count,
            "n": {"enum": [None, 1, 2]},
            "response_format": {"enum": FORMATS},
            "seed": count,
            "stop_token_ids": {"type": "array", "items": token, "maxItems": 5},
            "stream_options": NULL,
            "top_k": count,
        },
        "SpeculationFields": {"delta": share, "epsilon": share, "max_nodes": count},
    }


def documented(server: Server, *changes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The server's document, for a client that knows the model's name."""
    document = httpx.get(f"{server.url}/openapi.json", timeout=20).json()
    for operation in (operation for path in document["paths"].values() for operation in path.values()):
        # it describes the stream; schemathesis takes it for one event's
        operation["responses"]["200"]["content"].get("text/event-stream", {}).pop("schema", None)
    for table in ({"GenerationFields": {"model": {"const": server.model}}}, *changes):
        for name, fields in table.items():
            for owner in ("ChatRequest", "CompletionRequest") if name == "GenerationFields" else (name,):
                schema = document["components"]["schemas"][owner]
                schema["properties"].update(fields)
                # what can have one value only is always sent
                schema["required"] = sorted(
                    {*schema.get("required", []), *(key for key in fields if "const" in fields[key])}
                )
    return document


def explore(
    server: Server, document: dict[str, Any], folder: Path, checks: str, *options: str, **environment: str
) -> None:
    """Send what the document suggests and what it forbids; every check must hold of every answer."""
    (folder / "openapi.json").write_text(json.dumps(document), encoding="utf-8")
    command = [str(Path(sys.executable).with_name("st")), "run", "openapi.json", "--url", server.url, "--no-color"]
    command += ["--generation-deterministic", "--output-sanitize", "false", "--request-timeout", "60"]
    ended = subprocess.run(
        [*command, "--checks", checks, *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout
    assert " passed" in ended.stdout
    assert "mostly rejected" not in ended.stdout or "positive_data_acceptance" not in checks, ended.stdout


def test_every_answer_is_as_documented(fake: Server, tmp_path: Path) -> None:
    explore(fake, documented(fake, PATIENT), tmp_path, CONFORMANCE, "--max-examples", "100")


def test_what_the_document_forbids_is_refused(fake: Server, tmp_path: Path) -> None:
    explore(fake, documented(fake), tmp_path, "negative_data_rejection", "--mode", "negative", "--max-examples", "100")


def test_what_the_document_allows_is_answered(fake: Server, tmp_path: Path) -> None:
    document = documented(fake, PATIENT, sensible(vocabulary=300, answer_tokens=40))
    checks = f"{CONFORMANCE},positive_data_acceptance"

    explore(
        fake, document, tmp_path, checks, "--mode", "positive", "--max-examples", "100", *GENERATION, **WHOLE_NUMBERS
    )


def test_what_the_document_allows_is_answered_by_a_real_model(demo: Server, tmp_path: Path) -> None:
    document = documented(demo, PATIENT, sensible(vocabulary=4096, answer_tokens=4))
    checks = f"{CONFORMANCE},positive_data_acceptance"

    explore(
        demo,
        document,
        tmp_path,
        checks,
        "--mode",
        "positive",
        "--max-examples",
        "40",
        *FUZZING,
        *GENERATION,
        **WHOLE_NUMBERS,
    )

"""The page on the interface names every field, and nothing that is not there."""

import json
import re
from pathlib import Path

from medusa_core.quantization import OPTIONS
from medusa_core.quantization.judgement import METHODS
from server.errors import PROBLEMS
from server.schemas.chat import ChatRequest
from server.schemas.completions import CompletionRequest
from server.schemas.known_fields import ACCEPTED_WITHOUT_EFFECT, NOT_BUILT
from server.schemas.messages import TEMPLATE_ARGUMENTS
from server.settings import Settings

PAGE = (Path(__file__).parent.parent / "docs" / "api.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None, f"the page has no section {title}"
    return found[1]


def first_cells(title: str) -> set[str]:
    """What stands in backticks in the first column of a section's table."""
    rows = re.findall(r"^\| (`[^|]*) \|", section(title), re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([\w.\[\]]+)`", row)}


def test_every_field_of_both_endpoints_has_a_row_and_every_row_a_field() -> None:
    both = first_cells("Both endpoints")
    chat, completions = (set(model.model_fields) for model in (ChatRequest, CompletionRequest))
    rows = {
        "`POST /v1/chat/completions`": chat,
        "`POST /v1/completions`": completions,
    }
    refused = set(NOT_BUILT)
    for title, fields in rows.items():
        found = {name for name in first_cells(title) if "." not in name} - {"tool_call_id", "name"}

        assert sorted(fields - found - both) == []
        assert sorted(found - fields - refused) == []
    named = both.union(*(first_cells(title) for title in rows))
    assert sorted(both - chat - refused - ACCEPTED_WITHOUT_EFFECT) == []
    assert sorted({*NOT_BUILT, *ACCEPTED_WITHOUT_EFFECT} - named) == []


def test_the_limits_it_states_are_those_of_the_code() -> None:
    codes = {problem.code for problem in PROBLEMS.values() if problem.code is not None}
    named = set(re.findall(r"^\| \d{3} \| (.*?) \|", section("Limits and errors"), re.MULTILINE))

    assert {code for cell in named for code in re.findall(r"`(\w+)`", cell)} <= codes
    assert all(f"`{name}`" in PAGE for name in TEMPLATE_ARGUMENTS)
    options = {f"--{name.replace('_', '-')}" for name in Settings.model_fields}
    assert set(re.findall(r"`(--[a-z-]+)", PAGE)) <= options


def test_its_examples_are_json() -> None:
    blocks = re.findall(r"^```json\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)

    assert blocks
    for block in blocks:
        json.loads(block)


def test_the_page_on_quantised_bases_names_every_option_and_every_method() -> None:
    page = (Path(__file__).parent.parent / "docs" / "quantization.md").read_text(encoding="utf-8")
    options = {f"--{name.replace('_', '-')}" for name in Settings.model_fields} | {"--no-adapter", "--recipe"}

    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == {"none", *OPTIONS}
    assert {name for name in METHODS if name.replace("_", " ") not in page.lower().replace("_", " ")} == set()
    assert set(re.findall(r"[ `](--[a-z-]+)", page)) <= options

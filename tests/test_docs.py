"""The pages name what there is, and nothing that is not there."""

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from medusa_core.quantization import OPTIONS
from medusa_core.quantization.judgement import METHODS
from medusa_core.training.plan import JointPlan, TrainPlan
from server.cli import create_cli
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
        found = {name for name in first_cells(title) if "." not in name} - {"tool_call_id", "name", "reasoning_content"}

        assert sorted(fields - found - both) == []
        assert sorted(found - fields - refused) == []
    named = both.union(*(first_cells(title) for title in rows))
    assert sorted(both - chat - refused - ACCEPTED_WITHOUT_EFFECT) == []
    assert sorted({*NOT_BUILT, *ACCEPTED_WITHOUT_EFFECT} - named) == []


def test_the_limits_it_states_are_those_of_the_code() -> None:
    codes = {(str(problem.status), problem.code) for problem in PROBLEMS.values() if problem.code is not None}
    rows = re.findall(r"^\| (\d{3}) \| (.*?) \|", section("Limits and errors"), re.MULTILINE)

    assert {(status, code) for status, cell in rows for code in re.findall(r"`(\w+)`", cell)} == codes
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


TRAINING = (Path(__file__).parent.parent / "docs" / "training.md").read_text(encoding="utf-8")
# Where the page states the default of an option.
DEFAULTS = {
    "--heads": TrainPlan.num_heads,
    "--layers": TrainPlan.num_layers,
    "--epochs": TrainPlan.epochs,
    "--learning-rate": TrainPlan.learning_rate,
    "--max-length": TrainPlan.max_length,
    "--rows": TrainPlan.rows_per_pass,
    "--accumulate": TrainPlan.passes_per_step,
    "--held-out": TrainPlan.held_out_percent,
    "--joint-epochs": JointPlan.epochs,
    "--joint-rate": JointPlan.learning_rate,
    "--heads-weight": JointPlan.heads_weight,
    "--adapter-rank": JointPlan.adapter_rank,
    "--max-perplexity-percent": JointPlan.max_perplexity_percent,
    "--seed": TrainPlan.seed,
}


def options_of(command: str) -> set[str]:
    program: Any = typer.main.get_command(create_cli())
    return {name for option in program.commands[command].params for name in (*option.opts, *option.secondary_opts)}


def code_of(page: str) -> Iterator[list[str]]:
    """The words of each command of a page, and of what else stands in it as code."""
    fence = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
    for language, block in fence.findall(page):
        if language == "bash":
            yield from (shlex.split(line) for line in block.replace("\\\n", " ").splitlines())
    yield from (code.split() for code in re.findall(r"`([^`]+)`", fence.sub("", page)))


def test_the_page_on_training_shows_commands_and_options_that_exist() -> None:
    of_either = options_of("train") | options_of("distill")
    shown = set()
    for words in code_of(TRAINING):
        program = next((place for place, word in enumerate(words) if word.rpartition("/")[2] == "medusa"), None)
        if program is not None and len(words) > program + 1:
            known, words = options_of(words[program + 1]), words[program + 2 :]
        elif words[0] == "accelerate":
            continue  # options of its own
        else:
            known = of_either | {"--no-adapter"}
        named = {word for word in words if word.startswith("--")}
        assert named <= known, words
        shown |= named

    assert options_of("train") - shown == {"--measure"}, "options of medusa train that the page leaves out"
    assert {"--layout", "--batch-size", "--no-measure"} <= shown, "commands and options that the page does show"


def test_the_page_on_training_states_the_defaults_that_are_used() -> None:
    rows = re.findall(r"^\| (`--[^|]*) \|", TRAINING, re.MULTILINE)
    stated = {name: float(value) for row in rows for name, value in re.findall(r"`(--[a-z-]+)`, (\d[\de.-]*)", row)}

    assert stated == DEFAULTS


def test_every_page_that_a_page_links_to_exists() -> None:
    folder = Path(__file__).parent.parent / "docs"
    for page in folder.glob("*.md"):
        links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        assert [link for link in links if "://" not in link and not (folder / link).exists()] == [], page.name


def test_the_list_of_pages_names_every_page_and_the_readme_links_to_it() -> None:
    docs = Path(__file__).parent.parent / "docs"
    listed = re.findall(r"\]\(([\w-]+\.md)\)", (docs / "README.md").read_text(encoding="utf-8"))

    assert sorted(listed) == sorted(path.name for path in docs.glob("*.md") if path.name != "README.md")
    assert "](docs/README.md)" in (docs.parent / "README.md").read_text(encoding="utf-8")


def test_the_changelog_knows_the_version() -> None:
    root = Path(__file__).parent.parent
    version = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]

    assert version in (root / "docs" / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_page_for_contributors_names_files_and_names_that_exist() -> None:
    root = Path(__file__).parent.parent
    page = (root / "docs" / "CONTRIBUTING.md").read_text(encoding="utf-8")
    files = set(re.findall(r"\b((?:medusa_core|server|tests|benchmarks)/[\w/]+\.(?:py|js))\b", page))
    invented = {name for name in files if "thesaurus" in name}
    code = "".join(path.read_text(encoding="utf-8") for path in (root / "medusa_core").rglob("*.py"))

    assert len(files) > 15 and len(invented) == 2
    assert [name for name in files - invented if not (root / name).exists()] == []
    for name in ("SOURCES", "_PRIOR", "_proposers", "_LEAST_RECYCLING_NODES", "class Proposal", "class MergedDrafter"):
        assert name in code and name.split()[-1] in page


def test_every_heading_that_a_page_links_to_exists() -> None:
    root = Path(__file__).parent.parent
    missing = []
    for page in (root / "README.md", *(root / "docs").glob("*.md")):
        for target, anchor in re.findall(
            r"\]\(((?:docs/)?[\w-]*(?:\.md)?)#([^)]+)\)", page.read_text(encoding="utf-8")
        ):
            text = (page.parent / target if target else page).read_text(encoding="utf-8")
            headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            missing += [f"{page.name}: {target}#{anchor}"] if anchor not in anchors else []

    assert missing == []

"""docs/operations.md on installing and upgrading: it names what there is."""

import re
import shlex
import subprocess
import tomllib

import pytest
import typer
import yaml

from server.cli import create_cli
from server.settings import ENV_PREFIX, Settings
from tests.deploy.conftest import ROOT
from tests.deploy.test_compose import EXAMPLE, TEXTS, in_example, services
from tests.deploy.test_image import stages

PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None, f"the page has no section {title}"
    return found[1]


SECTIONS = {title: section(title) for title in ("Install", "Upgrade", "More than one GPU")}


def commands() -> list[list[str]]:
    """The words of every command of these sections, those behind a | or an && apart."""
    blocks = [block for text in SECTIONS.values() for block in re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S)]
    lines = [line for block in blocks for line in re.sub(r"(\\|\|)\n", " ", block).splitlines()]
    return [shlex.split(part) for line in lines for part in re.split(r" && | \| ", line)]


def docker(verb: str) -> list[list[str]]:
    return [words for words in commands() if words[:2] == ["docker", verb]]


@pytest.mark.parametrize("title", SECTIONS)
def test_the_files_and_variables_that_it_names_are_there(title: str) -> None:
    files = set(re.findall(r"\b((?:deploy|docker)/[\w./-]*\w)", SECTIONS[title])) - {"docker/.env"}
    settings = {name.lower() for name in re.findall(rf"{ENV_PREFIX}([A-Z_]+[A-Z])", SECTIONS[title])}

    assert [name for name in files if not (ROOT / name).exists()] == []
    assert settings <= set(Settings.model_fields)


def test_its_builds_give_arguments_that_the_dockerfile_takes() -> None:
    taken = {words.partition("=")[0] for stage in stages() for name, words in stage if name == "ARG"}
    given = {word.partition("=")[0] for words in docker("build") for word in words if re.match("[A-Z_]+=", word)}

    assert {"TORCH_INDEX", "TORCH_BUILD"} <= given <= taken


def test_its_containers_are_as_closed_as_those_of_compose() -> None:
    (temporary,) = services()["medusa"]["tmpfs"]

    assert len(docker("run")) == 2
    for words in docker("run"):
        assert {"--read-only", "--init", "no-new-privileges", "medusa-cache:/cache"} <= set(words)
        assert words[words.index("--cap-drop") + 1] == "ALL"
        assert "exec" in words[words.index("--tmpfs") + 1].split(":")[1].split(",") and "exec" in temporary
        assert words[words.index("--publish") + 1].startswith("127.0.0.1:")
        assert int(words[words.index("--stop-timeout") + 1]) > Settings.model_fields["shutdown_timeout_s"].default


def test_what_the_container_is_told_are_options_of_the_server() -> None:
    program = typer.main.get_command(create_cli())
    known = {name for option in program.commands["serve"].params for name in option.opts}  # type: ignore[attr-defined]
    told = [words[words.index("serve") :] for words in docker("run") if "serve" in words]

    assert len(told) == 1
    assert {word for words in told for word in words if word.startswith("--")} <= known


def test_an_image_has_the_tag_of_its_version_wherever_it_is_named() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [PAGE, EXAMPLE, *TEXTS.values()]

    assert {tag for text in texts for tag in re.findall(r"\bmedusa:(\d[\w.]*\.\d+)", text)} == {project["version"]}


def test_all_that_compose_reads_is_what_the_page_and_the_example_call_it() -> None:
    named = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+|IMAGE|PORT)(?:=[^`]*)?`", SECTIONS["Install"] + SECTIONS["Upgrade"]))
    elsewhere = {"PIP_EXTRA_INDEX_URL"}

    assert named - elsewhere - set(in_example()) == set()


def test_the_rules_that_it_makes_for_the_operator_are_those_of_the_files() -> None:
    (block,) = re.findall(r"^for rules in .*?^done$", SECTIONS["More than one GPU"], re.MULTILINE | re.DOTALL)
    shown = re.sub(r"kubectl .* --filename -", "{ cat; echo ---; }", block)

    done = subprocess.run(["bash", "-euc", shown], cwd=ROOT, capture_output=True, text=True, check=True)

    made = {rule["metadata"]["name"]: rule for rule in yaml.safe_load_all(done.stdout) if rule is not None}
    files = {f"medusa-{file.stem}": file for file in (ROOT / "deploy" / "prometheus" / "rules").glob("*.yml")}
    assert {name: rule["spec"] for name, rule in made.items()} == {
        name: yaml.safe_load(file.read_text()) for name, file in files.items()
    }
    assert {rule["kind"] for rule in made.values()} == {"PrometheusRule"}

"""docs/operations.md states options, defaults, statuses, metrics and tests as they are."""

import ast
import re
from pathlib import Path
from typing import Any

import typer
from prometheus_client.parser import text_string_to_metric_families

from server.cli import create_cli
from server.errors import PROBLEMS
from server.metrics import Metrics
from server.settings import Settings
from tests.server.worker_info import INFO

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "operations.md").read_text(encoding="utf-8")
# Without its blocks of code, and every break of a line a space.
PROSE = re.sub(r"\s+", " ", re.sub(r"^```\w*\n.*?^```", "", PAGE, flags=re.DOTALL | re.MULTILINE))
# Docker's, and what every program has.
OTHERS = {"--build", "--build-arg", "--env", "--secret", "--stop-timeout", "--volume", "--help"}
RAYS = TESTS.parent / "deploy" / "ray" / "medusa_ray.py"


def options_of_ray() -> set[str]:
    main = next(node for node in ast.parse(RAYS.read_text()).body if getattr(node, "name", None) == "main")
    assert isinstance(main, ast.FunctionDef)
    return {f"--{argument.arg.replace('_', '-')}" for argument in main.args.args}


def test_every_option_that_it_names_is_one() -> None:
    program: Any = typer.main.get_command(create_cli())
    params = [param for command in program.commands.values() for param in command.params]
    known = {name for param in params for name in (*param.opts, *param.secondary_opts)}
    # what begins with the name of another program is that program's
    named = {
        word for code in re.findall(r"`((?:--|medusa )[^`]+)`", PROSE) for word in code.split() if word[:2] == "--"
    }

    assert len(named) > 20
    assert named - known - options_of_ray() - OTHERS == set()


def test_every_default_that_it_states_holds() -> None:
    # `--queue-size` 32; `--step-timeout-s` (120 s); `--step-timeout-s`, 120 unless changed
    stated = re.findall(r"`--([a-z-]+)`(?: | \(|, (?=\d+ unless))(\d[\d,]*)\b", PROSE)
    fields = {name.replace("_", "-"): field.default for name, field in Settings.model_fields.items()}
    ours = [(name, float(value.replace(",", ""))) for name, value in stated if name in fields]

    assert {"header-timeout-s", "max-body-bytes", "step-timeout-s", "shutdown-timeout-s"} <= {name for name, _ in ours}
    assert [(name, value) for name, value in ours if fields[name] != value] == []


def test_every_code_that_it_names_comes_with_its_status() -> None:
    known = {(str(problem.status), problem.code) for problem in PROBLEMS.values()}
    named = set(re.findall(r"\b([45]\d\d) `([a-z_]+)`", PROSE))

    assert len(named) > 10
    assert named - known == set()


def test_every_metric_that_it_names_is_exposed() -> None:
    metrics = Metrics("demo", 4)
    metrics.of_model(INFO)
    exposed = {
        sample.name for family in text_string_to_metric_families(metrics.expose().decode()) for sample in family.samples
    }
    named = set(re.findall(r"`(medusa_\w+)`", PROSE))
    # histograms go by their own name
    known = exposed | {name.removesuffix("_count") for name in exposed}

    assert len(named) >= 4
    assert named - known == set()


def test_every_place_on_the_page_that_it_links_to_exists() -> None:
    headings = re.findall(r"^#+ (.*)$", PAGE, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = set(re.findall(r"\]\(#([^)]+)\)", PAGE))

    assert len(links) > 5
    assert links - anchors == set()


def test_every_test_that_it_names_exists() -> None:
    # `file.py::test`, `::test` in the file named last, and `file.py`
    named = re.findall(r"`(?=[\w/]+\.py|::)([\w/]+\.py)?(?:::(\w+))?`", PAGE)
    tests: dict[str, set[str]] = {}
    gone, file = [], ""
    for found, name in named:
        file = found or file
        if file not in tests:
            path = next((path for path in (TESTS / file, TESTS.parent / file) if path.exists()), None)
            tree = ast.parse(path.read_text(encoding="utf-8")) if path is not None else ast.parse("")
            tests[file] = {"", *(getattr(node, "name", "") for node in ast.walk(tree))} if path is not None else set()
        if name not in tests[file]:
            gone.append(f"{file}::{name}")

    assert len(named) > 50
    assert gone == []

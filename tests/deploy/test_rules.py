"""The rules of deploy/prometheus: valid, each alert shown to fire and to stay silent, each with its page."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES = sorted((PROMETHEUS / "rules").glob("*.yml"))
UNIT_TESTS = sorted((Path(__file__).parent / "promtool").glob("*.yml"))


def read(file: Path) -> Any:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def rules() -> list[dict[str, Any]]:
    return [rule for file in RULES for group in read(file)["groups"] for rule in group["rules"]]


ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}


def heading_of(anchor: str, page: str) -> str | None:
    """The heading that a link to a page's anchor leads to, as sites that show Markdown make anchors of headings."""
    for heading in re.findall(r"^#+ (.*)$", page, re.MULTILINE):
        if re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") == anchor:
            return str(heading)
    return None


def test_prometheus_takes_the_configuration_with_its_rules(run: Callable[..., str]) -> None:
    said = run("promtool", "check", "config", "--lint-fatal", "--lint=all", PROMETHEUS / "prometheus.yml")

    assert said.count("rules found") >= len(RULES)


@pytest.mark.parametrize("file", UNIT_TESTS, ids=lambda file: file.stem)
def test_rules_give_what_their_unit_tests_expect(file: Path, run: Callable[..., str]) -> None:
    run("promtool", "test", "rules", file)


def test_every_alert_is_shown_to_fire_and_to_stay_silent() -> None:
    shown = [
        (case["alertname"], bool(case["exp_alerts"]))
        for file in UNIT_TESTS
        for test in read(file)["tests"]
        for case in test.get("alert_rule_test", [])
    ]

    assert {name for name, fires in shown if fires} == set(ALERTS)
    assert {name for name, fires in shown if not fires} == set(ALERTS)


def test_every_recording_rule_has_a_value_that_is_expected() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    expected = {
        name
        for file in UNIT_TESTS
        for test in read(file)["tests"]
        for case in test.get("promql_expr_test", [])
        if case["exp_samples"]
        for name in re.findall(r"medusa:\w+:\w+", case["expr"])
    }

    assert expected == recorded


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_how_bad_it_is_what_it_saw_and_where_to_read_on(name: str) -> None:
    alert, page = ALERTS[name], (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    said = alert["annotations"]
    file, _, anchor = said["runbook"].partition("#")

    assert alert["labels"]["severity"] in ("warning", "critical")
    assert set(said) == {"summary", "description", "runbook"}
    assert "$" in said["description"] or name == "MedusaServerMissing", "there is no value to tell where nothing is"
    assert file == "docs/operations.md"
    assert heading_of(anchor, page) == name


def test_every_heading_among_the_alerts_belongs_to_one() -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    section = re.search(r"^## Alerts\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)

    assert section is not None
    assert re.findall(r"^### (.*)$", section[1], re.MULTILINE) == list(ALERTS)

"""The dashboard is what the code writes, and is laid out and explained for people."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from deploy.grafana.dashboard import FILE, ROWS, dashboard_json

ROOT = Path(__file__).parents[2]
PANELS = [panel for row in ROWS for panel in row.panels]
BUILT: dict[str, Any] = json.loads(dashboard_json())
# Where compose mounts the folder of dashboards.
MOUNTED = "/var/lib/grafana/dashboards"


def test_the_dashboard_is_what_the_code_writes() -> None:
    assert FILE.read_text(encoding="utf-8") == dashboard_json(), "run `python -m deploy.grafana.dashboard`"


def test_panels_fill_the_width_and_do_not_overlap() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in BUILT["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies on {taken[x, y]}"
                taken[x, y] = panel["title"]
    height = max(y for _, y in taken) + 1

    assert len(taken) == 24 * height, "there are holes"


def test_panels_have_numbers_and_names_of_their_own() -> None:
    numbers = [panel["id"] for panel in BUILT["panels"]]
    titles = [panel.title for panel in PANELS]

    assert len(set(numbers)) == len(numbers)
    assert len(set(titles)) == len(titles)


def test_every_panel_is_explained_in_one_sentence() -> None:
    for panel in PANELS:
        assert panel.description.endswith(".") and ". " not in panel.description, panel.title
        assert 20 < len(panel.description) <= 120, panel.title


def test_every_panel_on_tokens_of_a_step_says_whether_the_bonus_token_counts() -> None:
    for panel in PANELS:
        if any(re.search(r"medusa_(tokens_per_step|acceptance_length)_", query.expression) for query in panel.queries):
            is_time = panel.unit in ("s", "suffix:x")
            assert is_time or "bonus token" in panel.description, panel.title


def test_speculation_comes_first() -> None:
    assert [row.title for row in ROWS][:2] == ["At a glance", "Speculation"]
    assert [panel.title for panel in ROWS[1].panels][:3] == ["Tokens per step", "Acceptance length", "Time saved"]


def test_every_query_asks_the_chosen_source_for_the_chosen_servers() -> None:
    for panel in BUILT["panels"]:
        for target in panel.get("targets", []):
            assert panel["datasource"]["uid"] == "${datasource}"
            assert "$instance" in target["expr"], panel["title"]
    names = [variable["name"] for variable in BUILT["templating"]["list"]]

    assert names == ["datasource", "model_name", "instance"]


def test_grafana_is_told_where_prometheus_and_the_dashboard_are() -> None:
    provisioning = ROOT / "deploy" / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "medusa.yaml").read_text())["providers"]
    scraped = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())["global"]

    assert source["type"] == "prometheus" and source["isDefault"]
    assert source["jsonData"]["timeInterval"] == scraped["scrape_interval"], "windows of rates follow from it"
    assert provider["options"]["path"] == MOUNTED


def test_the_page_for_operators_names_panels_that_exist() -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## (?:Watch|Alerts)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    named = {" ".join(name.split()) for text in sections for name in re.findall(r"(?<!\*)\*([A-Z][^*]+)\*(?!\*)", text)}
    others = {name for name in named if name.startswith("Status / ")} | {"Critical"}

    assert named - others <= {panel.title for panel in PANELS}

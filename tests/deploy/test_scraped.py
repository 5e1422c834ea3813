"""A real Prometheus scrapes the demo model's server under some traffic; every expression we ship is asked there."""

import json
import re
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from deploy.grafana.dashboard import ROWS
from tests.deploy.conftest import Run
from tests.deploy.live_prometheus import PROMETHEUS, Prometheus, configuration, scraping
from tests.live_server import clean_environment, serving
from tests.tiny_tokenizers import save_byte_level

# The server, its model and Prometheus start within the first test.
pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).parents[2]
MEDUSA = [sys.executable, "-c", "from server.cli import main; main()"]
KEY = {"Authorization": "Bearer open-sesame"}
QUESTION = [{"role": "user", "content": "What does textwrap.dedent do?"}]
SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 12}}, "required": ["name"]}

# Each a way to decode: trees, chains, none; sampled, forced by a schema, predicted, several at once, repeated.
CLEAN: list[tuple[str, dict[str, Any]]] = [
    ("chat/completions", {"messages": QUESTION}),
    ("chat/completions", {"messages": QUESTION, "stream": True}),
    ("chat/completions", {"messages": QUESTION, "temperature": 1, "seed": 4, "n": 2}),
    ("chat/completions", {"messages": QUESTION, "prediction": {"type": "content", "content": "textwrap.dedent(text)"}}),
    (
        "chat/completions",
        {
            "messages": QUESTION,
            "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}},
        },
    ),
    ("completions", {"prompt": "def dedent(text):", "speculation": {"mode": "chain"}}),
    ("completions", {"prompt": "def dedent(text):", "speculation": {"mode": "tree"}}),
    ("completions", {"prompt": "def dedent(text):", "speculation": {"mode": "static"}}),
    ("completions", {"prompt": "def dedent(text):", "speculation": {"mode": "off"}}),
]


@dataclass
class Watched:
    """What was done and seen.

    answered:       the speculation statistics of every answer of the clean traffic.
    page:           /metrics right after it.
    recorded:       what Prometheus recorded of it.
    """

    url: str
    prometheus: Prometheus
    answered: list[dict[str, Any]] = field(default_factory=list)
    page: str = ""
    recorded: dict[str, float] = field(default_factory=dict)

    def post(self, path: str, body: dict[str, Any], headers: dict[str, str] = KEY) -> httpx.Response:
        limits = {"model": "demo", "max_tokens": 48}
        return httpx.post(f"{self.url}/v1/{path}", json=limits | body, headers=headers, timeout=100)

    def stream(self, **more: Any) -> Any:
        """An answer that does not end before Prometheus has looked a few times; read or leave it."""
        endless = {"stream": True, "ignore_eos": True, "max_tokens": 900, "n": 8}
        body = {"model": "demo", "messages": QUESTION, **endless, **more}
        return httpx.stream("POST", f"{self.url}/v1/chat/completions", json=body, headers=KEY, timeout=100)


def statistics(answer: httpx.Response) -> dict[str, Any]:
    """The speculation statistics of an answer, streamed or whole."""
    if answer.headers["content-type"].startswith("text/event-stream"):
        events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        (found,) = [event["speculation"] for event in events if event.get("speculation")]
    else:
        found = answer.json()["speculation"]
    told: dict[str, Any] = found
    return told


def samples(page: str) -> dict[str, float]:
    """The sum of every name's samples."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def do_clean_traffic(watched: Watched) -> None:
    for path, body in CLEAN:
        answer = watched.post(path, body)
        assert answer.status_code == 200, answer.text
        watched.answered.append(statistics(answer))


def do_what_goes_wrong(watched: Watched) -> None:
    for status, body, headers in (
        (404, {"messages": QUESTION, "model": "another"}, KEY),
        (400, {"messages": QUESTION, "temperature": -1}, KEY),
        (401, {"messages": QUESTION}, {"Authorization": "Bearer sesame"}),
        (504, {"messages": QUESTION, "ignore_eos": True, "max_tokens": 900, "timeout_s": 0.05}, KEY),
    ):
        answer = watched.post("chat/completions", body, headers)
        assert answer.status_code == status, answer.text
    # one that is answered and left, one that waits meanwhile, and one for whom there is no place
    with watched.stream() as running:
        lines = running.iter_lines()
        assert next(lines).startswith("data: ")
        waiting = threading.Thread(target=watched.post, args=("chat/completions", {"messages": QUESTION}))
        waiting.start()
        watched.prometheus.wait_for("medusa_num_requests_waiting", lambda count: count == 1)
        assert watched.post("chat/completions", {"messages": QUESTION}).status_code == 429
    waiting.join()


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("server")
    environment = clean_environment(
        PYTHONPATH=str(ROOT), MEDUSA_API_KEY="open-sesame", MEDUSA_QUEUE_SIZE="1", MEDUSA_THREADS="1"
    )
    with (
        serving([*MEDUSA, "serve"], folder, environment) as url,
        scraping(configuration(url.removeprefix("http://")), tmp_path_factory.mktemp("prometheus")) as prometheus,
    ):
        watched = Watched(url, prometheus)
        # a rate needs a value from before
        prometheus.wait_for("medusa_tokens_per_step_count", lambda steps: steps == 0)
        do_clean_traffic(watched)
        watched.page = httpx.get(f"{url}/metrics").text
        steps = samples(watched.page)["medusa_tokens_per_step_count"]
        prometheus.wait_for("medusa_tokens_per_step_count", lambda seen: seen == steps)
        prometheus.evaluate()
        for sample in prometheus.ask('{__name__=~"medusa:.*", model_name="demo"}'):
            watched.recorded[sample["metric"]["__name__"]] = float(sample["value"][1])
        do_what_goes_wrong(watched)
        seen = samples(httpx.get(f"{url}/metrics").text)["medusa_requests_total"]
        prometheus.wait_for("sum(medusa_requests_total)", lambda count: count >= seen)
        prometheus.evaluate()
        yield watched


def test_the_page_is_one_that_prometheus_approves_of(watched: Watched, run: Run) -> None:
    assert run("promtool", "check", "metrics", stdin=watched.page) == ""


def test_what_is_recorded_are_the_figures_that_the_answers_told(watched: Watched) -> None:
    steps = sum(told["steps"] for told in watched.answered)
    tokens = sum(round(told["tokens_per_step"] * told["steps"]) for told in watched.answered)
    lengths = [
        sum(length * count for length, count in enumerate(told["acceptance_lengths"])) for told in watched.answered
    ]
    drafted, accepted = (sum(told[name] for told in watched.answered) for name in ("drafted", "accepted"))

    assert steps > 50
    assert watched.recorded["medusa:tokens_per_step:rate5m"] == pytest.approx(tokens / steps)
    assert watched.recorded["medusa:acceptance_length:rate5m"] == pytest.approx(sum(lengths) / steps)
    assert watched.recorded["medusa:acceptance_rate:rate5m"] == pytest.approx(accepted / drafted)


def test_the_speed_up_that_is_recorded_is_plain_steps_over_the_steps_that_were_made(watched: Watched) -> None:
    told = samples(watched.page)

    assert told["medusa_decode_seconds_total"] == pytest.approx(told["medusa_decode_time_seconds_sum"])
    assert watched.recorded["medusa:decode_speedup:rate5m"] == pytest.approx(
        told["medusa_plain_decode_seconds_total"] / told["medusa_decode_seconds_total"]
    )


def test_every_rule_is_evaluated_and_none_alarms_a_server_that_is_well(watched: Watched) -> None:
    rules = watched.prometheus.rules()

    assert {rule["name"]: rule.get("lastError") for rule in rules if rule["health"] != "ok"} == {}
    assert [rule["name"] for rule in rules if rule.get("state") == "firing"] == []


def shipped_rules() -> dict[str, str]:
    """Every expression of a rule, by the name of the rule."""
    groups = [group for file in PROMETHEUS.glob("rules/*.yml") for group in yaml.safe_load(file.read_text())["groups"]]
    return {rule.get("alert", rule.get("record")): rule["expr"] for group in groups for rule in group["rules"]}


def shown() -> dict[str, str]:
    """Every expression of the dashboard by its panel and the name of its series."""
    values = {"$__rate_interval": "1m", "$__range": "5m", "$model_name": ".*", "$instance": ".*"}

    def chosen(expression: str) -> str:
        return re.sub(r"\$\w+", lambda found: values[found[0]], expression)

    panels = [panel for row in ROWS for panel in row.panels]
    return {f"{panel.title}: {query.legend}": chosen(query.expression) for panel in panels for query in panel.queries}


def test_every_panel_has_data_after_this_traffic_but_those_of_a_gpu(watched: Watched) -> None:
    empty = {name for name, expression in shown().items() if not watched.prometheus.ask(expression)}

    assert empty == {"Device memory: {{instance}} {{replica}} {{kind}}"}


def test_every_recording_rule_has_a_value_after_this_traffic(watched: Watched) -> None:
    recorded = {name for name in shipped_rules() if ":" in name}

    assert set(watched.recorded) == recorded


# Alerts that are true for the moment, though not for as long as they ask: a tenth of the requests was turned away or
# failed on purpose.
TRUE_FOR_NOW = {"MedusaServerErrors", "MedusaAnswersFail", "MedusaRequestsRejected"}


def test_no_alert_is_about_a_server_that_is_well(watched: Watched) -> None:
    alerts = {name: expression for name, expression in shipped_rules().items() if ":" not in name}
    true = {name for name, expression in alerts.items() if watched.prometheus.ask(expression)}

    assert true <= TRUE_FOR_NOW


def names_in(expressions: Iterable[str]) -> set[str]:
    """Names of metrics, those of histograms without what their parts are called."""
    found = {name for expression in expressions for name in re.findall(r"\b(?:medusa|process|python)_\w+", expression)}
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in found}


def families(page: str) -> set[str]:
    return {line.split()[2] for line in page.splitlines() if line.startswith("# TYPE ")}


def test_every_metric_that_is_asked_for_is_exposed(watched: Watched) -> None:
    asked = names_in([*shipped_rules().values(), *shown().values()])

    assert asked - families(watched.page) == set()


# What is exposed and neither shown nor judged, with the reason.
LEFT_OUT = {
    "medusa_worker_process_virtual_memory_bytes": "address space, most of which no memory stands behind",
    "medusa_worker_process_start_time_seconds": "restarts are counted with their reason",
    "medusa_worker_process_open_fds": "the worker holds one pipe and the model's files",
    "medusa_worker_process_max_fds": "as above",
}


def test_every_metric_that_is_exposed_is_shown_judged_or_left_out_for_a_reason(watched: Watched) -> None:
    exposed = {name for name in families(watched.page) if name.startswith("medusa_")}
    asked = names_in([*shipped_rules().values(), *shown().values()])

    assert exposed - asked == set(LEFT_OUT)


def test_a_page_that_needs_a_key_is_scraped_with_the_lines_of_the_page_for_operators(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```yaml\n(    authorization:\n.*?)^```", page, re.MULTILINE | re.DOTALL)
    authorization = yaml.safe_load(block)
    key = tmp_path / "key"
    authorization["authorization"]["credentials_file"] = str(key)
    environment = clean_environment(PYTHONPATH=str(ROOT), MEDUSA_API_KEY="open-sesame", MEDUSA_OPEN_METRICS="false")
    save_byte_level(tmp_path)
    key.write_text("sesame")
    fake = [sys.executable, "-m", "tests.server.serve_fake", f"model={tmp_path}"]
    with serving(fake, tmp_path, environment) as url:
        target = url.removeprefix("http://")
        with scraping(configuration(target, **authorization), tmp_path) as prometheus:
            prometheus.wait_for('up{job="medusa"}', lambda up: up == 0)
            assert "401" in prometheus.target()["lastError"]
            # the file is read again for every scrape
            key.write_text("open-sesame\n")
            prometheus.wait_for('up{job="medusa"}', lambda up: up == 1)

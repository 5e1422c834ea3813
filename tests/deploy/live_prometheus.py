"""A real Prometheus on loopback, with the configuration of deploy/prometheus and a clock that runs faster."""

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.live_server import STOP_TIMEOUT_S, free_port

PROMETHEUS = Path(__file__).parents[2] / "deploy" / "prometheus"
START_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus."""

    url: str

    def ask(self, expression: str) -> list[dict[str, Any]]:
        """The samples that an expression gives now; the test fails when Prometheus refuses it."""
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": expression}, timeout=30)
        assert answer.json()["status"] == "success", f"{expression}\n{answer.text}"
        found: list[dict[str, Any]] = answer.json()["data"]["result"]
        return found

    def value(self, expression: str) -> float | None:
        """The only value of an expression, None while it has none."""
        samples = self.ask(expression)
        assert len(samples) <= 1, f"{expression} has {len(samples)} values"
        return float(samples[0]["value"][1]) if samples else None

    def wait_for(self, expression: str, is_right: Callable[[float], bool], within_s: float = 30.0) -> float:
        """Wait until the only value of an expression is right, and return it."""
        deadline = time.monotonic() + within_s
        while (found := self.value(expression)) is None or not is_right(found):
            assert time.monotonic() < deadline, f"after {within_s:g} s {expression} is {found}"
            time.sleep(0.2)
        return found

    def evaluate(self, within_s: float = 30.0) -> None:
        """Wait until every rule has seen what has been scraped by now."""
        now, deadline = datetime.now(UTC), time.monotonic() + within_s
        while min(datetime.fromisoformat(rule["lastEvaluation"]) for rule in self.rules()) <= now:
            assert time.monotonic() < deadline, f"not all rules were evaluated within {within_s:g} s"
            time.sleep(0.2)

    def rules(self) -> list[dict[str, Any]]:
        """Every rule with its state and its health."""
        groups = httpx.get(f"{self.url}/api/v1/rules", timeout=30).json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def target(self) -> dict[str, Any]:
        """The one target, with the error of its last scrape."""
        (found,) = httpx.get(f"{self.url}/api/v1/targets", timeout=30).json()["data"]["activeTargets"]
        scraped: dict[str, Any] = found
        return scraped


def configuration(target: str, **scrape: Any) -> str:
    """The shipped configuration with another target and a second between scrapes.

    scrape: more keys of the job.
    """
    shipped = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))
    shipped["global"] = {name: "1s" for name in shipped["global"]}
    shipped["rule_files"] = [str(PROMETHEUS / pattern) for pattern in shipped["rule_files"]]
    (job,) = shipped["scrape_configs"]
    job |= {"static_configs": [{"targets": [target]}], **scrape}
    written: str = yaml.safe_dump(shipped)
    return written


@contextlib.contextmanager
def scraping(configuration: str, folder: Path) -> Iterator[Prometheus]:
    """Run Prometheus in the folder until the block ends."""
    program = shutil.which("prometheus")
    assert program is not None, "prometheus is missing; `make tools` installs it"
    (folder / "prometheus.yml").write_text(configuration, encoding="utf-8")
    address = f"127.0.0.1:{free_port()}"
    options = {"config.file": folder / "prometheus.yml", "storage.tsdb.path": folder / "data"}
    options |= {"web.listen-address": address, "log.level": "warn"}
    with (folder / "prometheus.log").open("w+") as log:
        process = subprocess.Popen([program, *(f"--{name}={value}" for name, value in options.items())], stderr=log)
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while not _is_ready(address):
                assert process.poll() is None and time.monotonic() < deadline, log.seek(0) or log.read()
                time.sleep(0.1)
            yield Prometheus(f"http://{address}")
        finally:
            process.terminate()
            process.wait(STOP_TIMEOUT_S)


def _is_ready(address: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"http://{address}/-/ready").status_code == 200
    return False

"""What `medusa serve` really writes, by a process of its own with the fake engine in its worker."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.server import fake_engine
from tests.tiny_tokenizers import save_byte_level

ROOT = Path(__file__).parents[2]
KEY, SECRET = "sesame-key", "a secret question"
EVIL = "tiny\n2026-11-26T00:00:00Z [error    ] forged\r\x1b[2J\u009b31m\u2028"


@dataclass(frozen=True)
class Serving:
    """log: what the process has written to standard error."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def ask(self, **more: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {KEY}", **more.pop("headers", {})}
        body = {"model": "tiny", "prompt": SECRET, **more}
        return httpx.post(f"{self.url}/v1/completions", json=body, headers=headers, timeout=20)

    @property
    def lines(self) -> list[str]:
        """What has been logged, without the banner."""
        return [line for line in self.log.read_text().split("\n") if line.startswith(("{", "20"))]

    def wait_for_line(self, is_it: Callable[[str], bool]) -> str:
        deadline = time.monotonic() + 20
        while not (found := [line for line in self.lines if is_it(line)]):
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.01)
        return found[0]

    def wait_for(self, **fields: Any) -> dict[str, Any]:
        """The first line of JSON with these fields."""

        def is_it(line: str) -> bool:
            return fields.items() <= json.loads(line).items()

        told: dict[str, Any] = json.loads(self.wait_for_line(is_it))
        return told


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


@contextmanager
def serving(folder: Path, *options: str, shell: str = 'exec "$@"') -> Iterator[Serving]:
    """A server that is ready, started by a line of the shell; its standard error is a file."""
    save_byte_level(folder / "tiny")
    url = f"http://127.0.0.1:{(port := free_port())}"
    program = [sys.executable, "-m", "tests.server.serve_fake", f"model={folder / 'tiny'}", f"port={port}"]
    words = ["sh", "-c", shell, "sh", *program, f"api_key={KEY}", *options]
    with (
        (folder / "log").open("wb") as file,
        subprocess.Popen(words, cwd=ROOT, stderr=file) as process,
    ):
        deadline = time.monotonic() + 60
        while not is_ready(url):
            assert time.monotonic() < deadline and process.poll() is None, (folder / "log").read_text()
            time.sleep(0.02)
        try:
            yield Serving(process, url, folder / "log")
        finally:
            process.kill()


def is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/ready", timeout=20):
            return True
    except (OSError, http.client.HTTPException):
        return False


def test_both_processes_tell_of_a_request_under_its_id_without_its_words_and_at_the_level_that_is_set(
    tmp_path: Path,
) -> None:
    with serving(tmp_path, "log_format=auto") as server:
        assert server.ask(headers={"x-request-id": "quiet"}).is_success
        server.process.send_signal(signal.SIGUSR1)
        server.wait_for(event="the log's level has been switched", to="debug")
        assert server.ask(headers={"x-request-id": "one", "user-agent": EVIL.splitlines()[-1].encode()}).is_success
        assert server.ask(model=EVIL).status_code == 404
        assert server.ask(seed=fake_engine.FAIL, headers={"x-request-id": "fails"}).status_code == 500
        line = server.wait_for(event="request", request_id="one")
        worker = server.wait_for(process="worker", event="answering", request_id="one")
        failed = server.wait_for(process="worker", level="error", request_id="fails")
        server.wait_for(event="request", status=404)
        server.process.send_signal(signal.SIGUSR1)
        server.wait_for(event="the log's level has been switched", to="info")
        # a level is set before the next request is begun
        server.ask(headers={"x-request-id": "quiet-again"})
        server.wait_for(event="request", request_id="quiet-again")
        spoken = {line.get("request_id") for line in map(json.loads, server.lines) if line["process"] == "worker"}
        text = server.log.read_text()

    assert (line["process"], line["route"], line["finish_reason"]) == ("server", "/v1/completions", "stop")
    assert worker["prompt_tokens"] == line["prompt_tokens"]
    assert failed["exception"][0]["exc_type"] == "RuntimeError"
    assert {"one", "fails"} <= spoken and not {"quiet", "quiet-again"} & spoken
    assert text.count('"exc_type": "RuntimeError"') == 1
    assert "Traceback" not in text
    for word in (KEY, SECRET, "forged", "31m"):
        assert word not in text


def test_lines_for_people_cannot_be_forged_and_name_the_trace(tmp_path: Path) -> None:
    # nobody listens there
    options = "log_format=console", "log_level=debug", "otlp_endpoint=http://127.0.0.1:9"
    with serving(tmp_path, *options) as server:
        server.ask(model=EVIL, headers={"x-request-id": "evil"})
        server.ask(seed=fake_engine.FAIL, headers={"x-request-id": "fails"})
        told = server.wait_for_line(lambda line: "request_id=evil" in line)
        server.wait_for_line(lambda line: "status=500" in line)
        text = server.log.read_text()

    assert re.match(
        r"\d{4}-\d\d-\d\dT[\d:.]+Z \[info     \] request \[medusa.access\] process=server request_id=evil "
        r"trace_id=[0-9a-f]{32} span_id=[0-9a-f]{16} method=POST",
        told,
    )
    assert "    RuntimeError: a kernel was launched into the void\n" in text
    for word in (KEY, SECRET, "forged", "31m", "\x1b"):
        assert word not in text


def test_a_server_without_standard_error_answers_and_ends_as_ever(tmp_path: Path) -> None:
    with serving(tmp_path, "log_level=debug", shell='exec "$@" 2>&- <&-') as server:
        assert server.ask().is_success
        assert server.ask(seed=fake_engine.FAIL).status_code == 500
        descriptors = Path(f"/proc/{server.process.pid}/fd")
        assert {os.readlink(descriptors / number) for number in "02"} == {"/dev/null"}
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == -signal.SIGTERM

"""A Ray cluster with replicas of the demo model, as an operator starts it, and what its processes are."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.live_server import clean_environment, free_port

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "deploy" / "ray" / "medusa_ray.py"
# Ray takes ten seconds on idle cores, and many times that on busy ones.
START_TIMEOUT_S = 240.0
STOP_TIMEOUT_S = 90.0
# Steps are not timed at the start, and one thread each leaves the other replica a core.
SETTINGS = {"MEDUSA_DEVICE": "cpu", "MEDUSA_THREADS": "1", "MEDUSA_TREE_NODES": "8", "OMP_NUM_THREADS": "1"}
MARK = "MARK_OF_RAY_TESTS"


@dataclass(frozen=True)
class Cluster:
    """A running cluster; `mark` stands in the environment of all its processes."""

    url: str
    process: subprocess.Popen[bytes]
    mark: str

    def chat(self, content: str, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": content}], **fields}
        return self.post(body, headers)

    def post(self, body: dict[str, Any], headers: dict[str, str] | None = None) -> httpx.Response:
        body = {"model": "demo", "max_tokens": 16, "temperature": 0, **body}
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, headers=headers, timeout=120)

    @contextlib.contextmanager
    def stream(self, content: str, max_tokens: int = 1500, session: str = "") -> Iterator[Iterator[str]]:
        """The data of the events of a long answer, one token a step."""
        body = {
            "model": "demo",
            "messages": [{"role": "user", "content": content}],
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "speculation": {"mode": "off"},
            "stream": True,
        }
        headers = {"x-session-id": session} if session else {}
        with httpx.stream("POST", f"{self.url}/v1/chat/completions", json=body, headers=headers, timeout=120) as answer:
            assert answer.status_code == 200, answer.read()
            yield (line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: "))

    def samples(self, name: str) -> dict[str, float]:
        """A metric's sum over its other labels, by replica."""
        answer = httpx.get(f"{self.url}/metrics", timeout=60)
        assert answer.status_code == 200, answer.text
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(answer.text):
            for sample in family.samples:
                if sample.name == name:
                    replica = sample.labels["replica"]
                    found[replica] = found.get(replica, 0.0) + sample.value
        return found

    def answered(self) -> dict[str, float]:
        """Prompts that were answered, by replica."""
        return self.samples("medusa_request_prompt_tokens_count")

    def taken(self) -> float:
        """Requests that replicas answer or hold in their queues."""
        return sum(sum(self.samples(f"medusa_num_requests_{where}").values()) for where in ("running", "waiting"))

    def processes(self, title: str = "") -> dict[int, str]:
        """Processes of this cluster whose command line holds the title, by id."""
        found = {}
        for folder in Path("/proc").iterdir():
            # a process that ends meanwhile is not there
            with contextlib.suppress(OSError):
                if folder.name.isdecimal() and self.mark.encode() in (folder / "environ").read_bytes():
                    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                    if command and title in command:
                        found[int(folder.name)] = command
        return found

    def replicas(self) -> list[int]:
        return sorted(self.processes("ray::ServeReplica:medusa:Replica"))

    def worker_of(self, replica: int) -> int:
        """The process that the replica's server has started for the model."""
        workers = [process for process in self.processes("spawn_main") if parent_of(process) == replica]
        assert len(workers) == 1, workers
        return workers[0]


def parent_of(process: int) -> int:
    # the name in parentheses may hold anything
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def wait_for(what: str, condition: Callable[[], bool], within_s: float = 120.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not {what} after {within_s:g} s"
        time.sleep(0.1)


def is_ready(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{url}/ready", timeout=10).status_code == 200
    return False


@contextlib.contextmanager
def starting(folder: Path, *options: str, **settings: str) -> Iterator[Cluster]:
    """Run the program until the block ends, which leaves no process of it behind; nothing answers yet."""
    port, mark = free_port(), uuid.uuid4().hex
    # the paths of Ray's sockets must be short
    with (
        tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as short,
        (folder / "log").open("wb") as log,
    ):
        environment = {**SETTINGS, **settings, "MEDUSA_PORT": str(port), "HOME": str(folder), "RAY_TMPDIR": short}
        process = subprocess.Popen(
            [sys.executable, PROGRAM, *options],
            cwd=folder,
            env=clean_environment(**environment, **{MARK: mark}),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        running = Cluster(f"http://127.0.0.1:{port}", process, mark)
        try:
            yield running
        except BaseException:
            print((folder / "log").read_text()[-20_000:])
            raise
        finally:
            end(running)


@contextlib.contextmanager
def cluster(folder: Path, *options: str, **settings: str) -> Iterator[Cluster]:
    """Run the program, which answers, until the block ends."""
    with starting(folder, *options, **settings) as running:
        program = running.process
        wait_for("ready", lambda: program.poll() is not None or is_ready(running.url), START_TIMEOUT_S)
        assert program.poll() is None, f"the program ended with status {program.returncode}"
        yield running


def end(running: Cluster) -> None:
    """End the cluster politely, and by force what is left of it; nothing should be."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        running.process.terminate()
        running.process.wait(STOP_TIMEOUT_S)
    left = running.processes()
    for process in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    running.process.wait()
    assert left == {}, left

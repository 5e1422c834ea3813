"""A server with the demo model in a process of its own, and what the system knows of it."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.faults.wire import get
from tests.live_server import clean_environment, free_port

MEDUSA = (sys.executable, "-c", "from server.cli import main; main()")
LOG = "server.log"
# Ten seconds on a quiet machine.
START_TIMEOUT_S = 240.0
# A stop with nothing open takes a second; with a stuck worker it would not end.
STOP_TIMEOUT_S = 40.0


@dataclass(frozen=True)
class Server:
    """A running server.

    process: of the server itself; its worker is a child of it.
    """

    port: int
    process: subprocess.Popen[bytes]
    folder: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def worker(self) -> int:
        """Process id of the worker; raises AssertionError while there is none."""
        found = worker_of(self.pid)
        assert found is not None, "there is no worker now"
        return found

    @property
    def log(self) -> str:
        return (self.folder / LOG).read_text(encoding="utf-8", errors="replace")

    async def metrics(self) -> dict[str, float]:
        """Every sample by its name and its labels other than model_name and worker."""
        reply = await get(self.port, "/metrics")
        assert reply.status == 200, reply.status
        return parsed(reply.content.decode())

    async def health(self) -> dict[str, Any]:
        reply = await get(self.port, "/health")
        assert reply.status == 200, reply.status
        found: dict[str, Any] = reply.json()
        return found

    async def is_idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        now = await self.metrics()
        return now["medusa_num_requests_running"] == 0 and now["medusa_num_requests_waiting"] == 0

    async def idle(self, within_s: float = 20.0) -> dict[str, float]:
        """Wait until nothing runs and nothing waits; returns the metrics then."""
        deadline = time.monotonic() + within_s
        while True:
            now = await self.metrics()
            if now["medusa_num_requests_running"] == 0 and now["medusa_num_requests_waiting"] == 0:
                return now
            assert time.monotonic() < deadline, (
                f"after {within_s:g} s {now['medusa_num_requests_running']:g} requests run "
                f"and {now['medusa_num_requests_waiting']:g} wait"
            )
            await asyncio.sleep(0.01)

    def end(self) -> int:
        """Ask the server to end, wait for that, and return its status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_TIMEOUT_S)


def parsed(text: str) -> dict[str, float]:
    """Samples of Prometheus' text format by name and labels, without those that are the same in all of them."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = sorted(f"{k}={v}" for k, v in sample.labels.items() if k not in ("model_name", "worker"))
            found[" ".join([sample.name, *labels])] = sample.value
    return found


def grown(after: Mapping[str, float], before: Mapping[str, float], name: str, *labels: str) -> float:
    """How much the samples of a name with these labels grew together."""

    def total(samples: Mapping[str, float]) -> float:
        return sum(
            value
            for key, value in samples.items()
            if key.split(" ")[0] == name and all(label in key.split(" ")[1:] for label in labels)
        )

    return total(after) - total(before)


def children_of(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found += map(int, (task / "children").read_text().split())
    return found


def worker_of(pid: int) -> int | None:
    """The child in which multiprocessing runs the worker, not the one that tracks its resources."""
    for child in children_of(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                return child
    return None


def is_running(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def resident_mib(pid: int) -> float:
    """Memory of a process that is in use, in MiB, without pages of files, which the system takes back at will."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"the system does not tell how much memory process {pid} takes")


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def environment(**more: str) -> dict[str, str]:
    """As a user's, with one thread in the worker, which shares the machine with its clients."""
    return clean_environment(OMP_NUM_THREADS="1", **more)


def launch(
    folder: Path,
    options: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
    wrapper: Sequence[str] = (),
    stderr: Any = None,
    stdin: Any = subprocess.DEVNULL,
    **popen: Any,
) -> Server:
    """Start `medusa serve` on a free port, logging into the folder unless `stderr` is given; does not wait.

    wrapper: words in front of the command, of a program that becomes what it starts.
    """
    port = free_port()
    command = [*wrapper, *MEDUSA, "serve", "--port", str(port), "--threads", "1", *options]
    environ = dict(environ if environ is not None else environment())
    environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), environ.get("PYTHONPATH", "")])
    popen = {"cwd": folder, **popen}
    with (folder / LOG).open("wb") as log:
        process = subprocess.Popen(
            command, env=environ, stdin=stdin, stdout=log, stderr=stderr if stderr is not None else log, **popen
        )
    return Server(port, process, folder)


async def ready(server: Server, within_s: float = START_TIMEOUT_S) -> None:
    """Wait until the server can answer."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        assert server.process.poll() is None, f"the server ended with {server.process.returncode}: {server.log}"
        with contextlib.suppress(OSError, TimeoutError):
            if (await get(server.port, "/ready", 10.0)).status == 200:
                return
        await asyncio.sleep(0.1)
    raise AssertionError(f"the server was not ready after {within_s:g} s: {server.log}")


@contextlib.contextmanager
def serving(folder: Path, *options: str, **launching: Any) -> Iterator[Server]:
    """A server that can answer, until the block ends; what it logged is printed when that fails."""
    server = launch(folder, options, **launching)
    try:
        asyncio.run(ready(server))
        yield server
    except BaseException:
        print(server.log[-20_000:])
        raise
    finally:
        worker = worker_of(server.pid) if server.process.poll() is None else None
        try:
            server.end()
        except subprocess.TimeoutExpired:
            server.process.kill()
            server.process.wait()
            raise
        finally:
            if worker is not None and is_running(worker):
                os.kill(worker, signal.SIGKILL)
                raise AssertionError("the worker outlived its server")

"""Servers in processes of their own: started on a free port, waited for, stopped at the end."""

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from http.client import HTTPConnection
from pathlib import Path

from medusa_core.errors import ConfigurationError

__all__ = ["free_port", "one_thread", "serving"]

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 30.0
LOCAL = "127.0.0.1"


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((LOCAL, 0))
        port: int = probe.getsockname()[1]
        return port


def one_thread() -> dict[str, str]:
    """This process's environment, with one thread to compute with and nothing that would configure our server."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("MEDUSA_")}
    return {**own, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "0"}


@contextlib.contextmanager
def serving(command: Sequence[str], port: int, ready: str, log: Path) -> Iterator[int]:
    """Run a server until the block ends; yields its port once the path `ready` answers 200.

    Raises ConfigurationError, with the end of its log, when it ends before that or takes too long.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=one_thread(), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            _wait(process, port, ready, log)
            yield port
        finally:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, ready: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if _status(port, ready) == 200:
                return
        time.sleep(0.1)
    state = "took too long to start" if process.poll() is None else f"ended with status {process.returncode}"
    last = "\n".join(log.read_text(errors="replace").splitlines()[-12:])
    raise ConfigurationError(f"{process.args!r} {state}; its log {log} ends:\n{last}")


def _status(port: int, path: str) -> int:
    connection = HTTPConnection(LOCAL, port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()

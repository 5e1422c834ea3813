"""A server in a process of its own, as users start it."""

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import httpx

START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 20.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment without the variables that would configure the server."""
    return {name: value for name, value in os.environ.items() if not name.startswith("MEDUSA_")} | more


@contextlib.contextmanager
def serving(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """Run the command in the folder, on a free port, until the block ends; yields the address once it is ready."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with (folder / "server.log").open("w+") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**environment, "MEDUSA_PORT": str(port)},
            stdin=subprocess.DEVNULL,
            stderr=log,
        )
        try:
            wait_until_ready(process, address)
            yield address
        except BaseException:
            log.seek(0)
            print(log.read())
            raise
        finally:
            process.terminate()
            process.wait(STOP_TIMEOUT_S)


def wait_until_ready(process: subprocess.Popen[bytes], address: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the server ended with status {process.returncode}"
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{address}/ready").status_code == 200:
                return
        time.sleep(0.1)
    raise AssertionError(f"the server was not ready after {START_TIMEOUT_S:g} s")

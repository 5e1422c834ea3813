"""What cannot be served is told in one line when the server starts, which then ends and leaves nothing behind."""

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from medusa_core.config import model_location
from tests.faults.live import children_of, is_running, launch

ENOUGH_S = 240.0
HEADS = "medusa_lm_head.safetensors"


def _cut(file: Path, share: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])


def _garbage(file: Path) -> None:
    file.write_bytes(b"\x00\xff garbage {" * 50)


# What is done to a copy of the demo model, and what the one line must name.
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "heads cut short": (lambda folder: _cut(next(folder.rglob(HEADS)), 0.5), HEADS),
    "heads of length 0": (lambda folder: _cut(next(folder.rglob(HEADS)), 0.0), HEADS),
    "heads of garbage": (lambda folder: _garbage(next(folder.rglob(HEADS))), HEADS),
    "weights cut short": (lambda folder: _cut(folder / "model.safetensors", 0.7), "weights"),
    "weights missing": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
    "configuration of garbage": (lambda folder: _garbage(folder / "config.json"), "config.json"),
    "configuration cut short": (lambda folder: _cut(folder / "config.json", 0.5), "config.json"),
    "tokenizer missing": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer"),
    "tokenizer of garbage": (lambda folder: _garbage(folder / "tokenizer.json"), "tokenizer"),
    "calibration of garbage": (lambda folder: _garbage(next(folder.rglob("calibration.json"))), "calibration"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_stops_the_start_with_its_reason(tmp_path: Path, damage: str) -> None:
    model, (do, named) = tmp_path / "model", DAMAGES[damage]
    shutil.copytree(model_location("demo"), model)
    do(model)
    server = launch(tmp_path, ["--model", str(model)])
    try:
        status = server.process.wait(ENOUGH_S)
    except subprocess.TimeoutExpired:
        server.process.kill()
        server.process.wait()
        raise AssertionError(f"the server neither ended nor said why: {server.log}") from None

    print(server.log)
    assert status == 1
    assert "Traceback" not in server.log
    last = server.log.strip().splitlines()[-1]
    assert named in last and "rror" in last, server.log


def test_a_server_that_ends_while_it_loads_leaves_no_worker(tmp_path: Path) -> None:
    server = launch(tmp_path)
    worker: list[int] = []
    while not worker and server.process.poll() is None:
        worker = children_of(server.pid)
    server.end()

    assert worker
    deadline = time.monotonic() + ENOUGH_S  # the one that tracks resources ends behind its server
    while any(is_running(pid) for pid in worker):
        assert time.monotonic() < deadline, "a child outlived its server"
        time.sleep(0.05)

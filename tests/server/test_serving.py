import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import httpx
import msgspec
import pytest

from medusa_core.errors import ConfigurationError
from server.serving import banner, open_port
from server.settings import Settings
from server.worker.messages import WorkerInfo
from tests.faults.live import is_running, worker_of
from tests.server import fake_engine
from tests.tiny_tokenizers import save_byte_level

ROOT = Path(__file__).parents[2]
INFO = WorkerInfo(
    "demo",
    "cpu",
    "float32",
    1024,
    4096,
    [1],
    4,
    "heads-folder",
    8,
    8,
    0.005,
    {},
    "dynamic",
    "as asked for",
    "none",
    None,
)


@contextmanager
def started(folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """`medusa serve` with the fake engine, in a process of its own."""
    if not (folder / "tokenizer.json").exists():
        save_byte_level(folder)
    words = [sys.executable, "-m", "tests.server.serve_fake", f"model={folder}", "port=0", "log_level=error", *options]
    with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[SimpleNamespace]:
    """A server that has said that it is ready, or why it is not; `lines` are what it wrote until then."""
    with started(folder, *options) as process:
        assert process.stderr is not None
        lines: list[str] = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith("  curl "):
                break
        found = re.search(r"http://[\d.]+:\d+", "".join(lines))
        yield SimpleNamespace(process=process, lines=lines, url=found[0] if found else None)


@contextmanager
def streaming(url: str, **fields: object) -> Iterator[Iterator[str]]:
    """A stream that has begun; its lines are yielded."""
    body = {"model": "tiny", "prompt": "Hello world", "max_tokens": 390, "stream": True, **fields}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=20) as response:
        lines = response.iter_lines()
        next(lines)
        yield lines


def has_gone(pid: int, within_s: float = 10.0) -> bool:
    """Wait for the end of a process that is nobody's child any more."""
    deadline = time.monotonic() + within_s
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not is_running(pid)


def worker_process(server: int, within_s: float = 20.0) -> int:
    """Process id of the worker, as soon as there is one."""
    deadline = time.monotonic() + within_s
    while (found := worker_of(server)) is None:
        assert time.monotonic() < deadline, "there is no worker"
        time.sleep(0.01)
    return found


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"port {port} of 127.0.0.1.*--port"):
            open_port("127.0.0.1", port)


def test_a_host_that_does_not_exist_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"no\.such\.host"):
        open_port("no.such.host.invalid", 0)


def test_the_banner_holds_a_line_that_can_be_pasted(tmp_path: Path) -> None:
    with serving(tmp_path / "tiny") as server:
        lines = [*server.lines, server.process.stderr.readline()]
        command = "".join(lines).partition("Try it:\n")[2]
        pasted = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=20, check=True)

        assert pasted.stdout.startswith("data: {")
        assert pasted.stdout.endswith("data: [DONE]\n\n")
        assert "temperature" not in command


def test_the_banner_tells_what_is_missing() -> None:
    settings = Settings(model="demo", host="0.0.0.0", api_key="sesame")
    without = WorkerInfo(
        "demo", "cuda", "bfloat16", 1024, 4096, [1], 0, None, 1, 8, 0.005, {}, "dynamic", "as asked for", "none", None
    )
    shown = banner(settings, without, 8000, has_chat_template=False)

    assert "http://127.0.0.1:8000/v1/completions" in shown
    assert "Heads    none found" in shown
    assert "no chat template" in shown
    assert '"Authorization: Bearer $MEDUSA_API_KEY"' in shown
    assert "API key  required" in shown
    assert "sesame" not in shown
    several = banner(Settings(model="demo", api_key="sesame,sezam"), INFO, 8000, has_chat_template=True)
    assert '"Authorization: Bearer ${MEDUSA_API_KEY%%,*}"' in several
    assert "API key  none needed" in banner(Settings(model="demo"), INFO, 8000, has_chat_template=True)
    assert "4 draft heads from heads-folder" in banner(settings, INFO, 8000, has_chat_template=True)


def test_the_banner_tells_where_the_page_is() -> None:
    assert "Page     http://127.0.0.1:8000/\n" in banner(Settings(), INFO, 8000, has_chat_template=True)
    assert "Page" not in banner(Settings(playground=False), INFO, 8000, has_chat_template=True)


def test_the_banner_tells_who_drafts_without_heads() -> None:
    def shown(tree_sizes: tuple[int, ...] = (), **chosen: bool) -> str:
        info = msgspec.structs.replace(INFO, num_heads=0, heads=None, tree_sizes=tree_sizes)
        return banner(Settings(model="demo", **chosen), info, 8000, has_chat_template=True)

    # also where the size of the trees is fixed
    both = "Heads    none found: text is looked up and tokens are recycled instead; `medusa train` makes some"
    assert both in shown() and both in shown((1, 8))
    assert "none found: text is looked up instead" in shown(recycling=False)
    assert "none found: tokens are recycled instead" in shown(prompt_lookup=False)
    assert "only forms and predictions are drafted" in shown(recycling=False, prompt_lookup=False)


def test_the_banner_tells_how_large_trees_are() -> None:
    def shown(tree_sizes: tuple[int, ...]) -> str:
        info = msgspec.structs.replace(INFO, tree_sizes=tree_sizes)
        return banner(Settings(model="demo"), info, 8000, has_chat_template=True)

    assert "Tree     8 nodes, dynamic: as asked for" in shown(())
    assert "Tree     1, 4 or 16 nodes, the fastest at every step" in shown((1, 4, 16))
    assert "Tree     none pays here" in shown((1,))


def test_the_banner_tells_what_was_done_to_the_weights() -> None:
    changed = msgspec.structs.replace(INFO, quantization="torchao Int8WeightOnly", adapter="heads-folder/adapter")
    shown = banner(Settings(model="demo"), changed, 8000, has_chat_template=True)

    assert "Device   cpu, float32, torchao Int8WeightOnly weights" in shown
    assert "heads-folder, their adapter merged into the model" in shown
    assert "weights" not in banner(Settings(model="demo"), INFO, 8000, has_chat_template=True)


def test_the_servers_process_never_loads_torch(tmp_path: Path) -> None:
    with serving(tmp_path / "tiny") as server:
        httpx.post(f"{server.url}/v1/completions", json={"model": "tiny", "prompt": "Hello"})
        mapped = Path(f"/proc/{server.process.pid}/maps").read_text()

    assert "tokenizers" in mapped
    assert "libtorch" not in mapped


def test_a_model_that_cannot_be_loaded_ends_the_server_with_one_line(tmp_path: Path) -> None:
    with serving(tmp_path / "tiny", f"heads={fake_engine.MISFIT}") as server:
        assert server.process.wait(20) == 1
        (line,) = [line for line in server.lines if line.startswith("error: ")]

    assert "trained for hidden size 4096" in line
    assert "Traceback" not in "".join(server.lines)


def test_a_running_stream_ends_in_order_at_sigterm(tmp_path: Path) -> None:
    with serving(tmp_path / "tiny") as server:
        with streaming(server.url, seed=fake_engine.ENDLESS, max_tokens=60) as lines:
            server.process.send_signal(signal.SIGTERM)
            events = [line for line in lines if line]
        # uvicorn ends by the signal it got
        assert server.process.wait(10) == -signal.SIGTERM

    assert json.loads(events[-2][6:])["choices"][0]["finish_reason"] == "length"
    assert events[-1] == "data: [DONE]"


def test_a_server_that_drains_answers_probes_and_refuses_requests(tmp_path: Path) -> None:
    with serving(tmp_path / "tiny") as server, streaming(server.url, seed=fake_engine.ENDLESS) as lines:
        server.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 5
        while (health := httpx.get(f"{server.url}/health").json())["state"] != "stopping":
            assert time.monotonic() < deadline
        refused = httpx.post(f"{server.url}/v1/completions", json={"model": "tiny", "prompt": "Hello"})

        assert "shutting down" in health["reason"]
        assert httpx.get(f"{server.url}/ready").status_code == 503
        assert refused.status_code == 503 and "retry-after" in refused.headers
        assert "shutting down" in refused.json()["error"]["message"]
        metrics = httpx.get(f"{server.url}/metrics").text
        assert 'medusa_requests_rejected_total{reason="draining"} 1.0' in metrics
        assert next(lines) is not None


def test_a_stream_that_outlasts_the_drain_ends_with_an_error_event(tmp_path: Path) -> None:
    with serving(tmp_path / "tiny", "shutdown_timeout_s=2") as server:
        with streaming(server.url, seed=fake_engine.ENDLESS) as lines:
            server.process.send_signal(signal.SIGTERM)
            events = [line for line in lines if line]
        assert server.process.wait(10) == -signal.SIGTERM

    assert json.loads(events[-2][6:])["error"]["code"] == "not_ready"
    assert events[-1] == "data: [DONE]"


def test_a_second_sigterm_ends_the_server_and_its_worker_at_once(tmp_path: Path) -> None:
    with serving(tmp_path / "tiny", "shutdown_timeout_s=300") as server:
        worker = worker_process(server.process.pid)
        with streaming(server.url, seed=fake_engine.HANG):
            for _ in range(2):
                server.process.send_signal(signal.SIGTERM)
                time.sleep(0.3)
            assert server.process.wait(10) == -signal.SIGTERM
        assert has_gone(worker)


def test_a_server_that_loads_ends_at_sigterm_with_its_worker(tmp_path: Path) -> None:
    with started(tmp_path / "tiny", f"heads={fake_engine.HANGS_IF}{tmp_path}") as process:
        worker = worker_process(process.pid)
        process.send_signal(signal.SIGTERM)

        assert process.wait(10) == -signal.SIGTERM
        assert has_gone(worker)
        assert process.stderr is not None and "Traceback" not in process.stderr.read()


@pytest.mark.parametrize("seed", [fake_engine.ENDLESS, fake_engine.HANG])
def test_no_worker_outlives_a_server_that_was_killed(tmp_path: Path, seed: int) -> None:
    with serving(tmp_path / "tiny") as server:
        worker = worker_process(server.process.pid)
        with streaming(server.url, seed=seed):
            server.process.kill()
            assert has_gone(worker)


def test_a_worker_that_loads_does_not_outlive_its_server(tmp_path: Path) -> None:
    with started(tmp_path / "tiny", f"heads={fake_engine.HANGS_IF}{tmp_path}") as process:
        worker = worker_process(process.pid)
        process.kill()
        assert has_gone(worker)


def test_sigusr2_replaces_the_worker_after_the_running_answer(tmp_path: Path) -> None:
    with serving(tmp_path / "tiny") as server:
        worker = worker_process(server.process.pid)
        with streaming(server.url, seed=fake_engine.ENDLESS, max_tokens=30) as lines:
            server.process.send_signal(signal.SIGUSR2)
            events = [line for line in lines if line]

        assert json.loads(events[-2][6:])["choices"][0]["finish_reason"] == "length"
        assert has_gone(worker)
        deadline = time.monotonic() + 20
        while httpx.get(f"{server.url}/ready").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        metrics = httpx.get(f"{server.url}/metrics").text
        assert 'medusa_worker_restarts_total{reason="manual",worker="0"} 1.0' in metrics


def test_ctrl_c_ends_the_server_without_a_traceback(tmp_path: Path) -> None:
    with serving(tmp_path / "tiny") as server:
        worker = worker_process(server.process.pid)
        server.process.send_signal(signal.SIGINT)

        assert server.process.wait(10) == 130
        assert "Traceback" not in server.process.stderr.read()
        assert has_gone(worker)

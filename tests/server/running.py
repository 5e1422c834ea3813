"""A real server on a real socket, in a thread of the test's process, with the fake engine in its worker."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from openai import AsyncOpenAI, OpenAI
from prometheus_client.parser import text_string_to_metric_families

from medusa_core.text import TextCodec
from server.app import create_app, create_worker, http_config
from server.metrics import Metrics
from server.serving import open_port
from server.settings import Settings
from server.tracing import create_tracing
from server.worker.client import WorkerClient
from tests.server import fake_engine
from tests.tiny_tokenizers import save_byte_level

MODEL = "tiny"
# Only what hangs takes so long, on the slowest machine.
TIMEOUT_S = 100.0
ENDLESS = {"model": MODEL, "prompt": "Hello world", "seed": fake_engine.ENDLESS, "max_tokens": 380}


@dataclass(frozen=True)
class Running:
    url: str
    worker: WorkerClient
    loop: asyncio.AbstractEventLoop

    def openai(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="x", max_retries=0, timeout=TIMEOUT_S)

    def async_openai(self) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key="x", max_retries=0, timeout=TIMEOUT_S)

    def post(self, path: str, body: Any, **arguments: Any) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, timeout=TIMEOUT_S, **arguments)

    def get(self, path: str, **arguments: Any) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", timeout=TIMEOUT_S, **arguments)

    def head(self, path: str) -> httpx.Response:
        return httpx.head(f"{self.url}{path}", timeout=TIMEOUT_S)

    @contextmanager
    def busy(self) -> Iterator[Iterator[str]]:
        """Keep the worker busy with a stream, whose lines are yielded, until the client leaves at the end."""
        body = {**ENDLESS, "stream": True}
        with httpx.stream("POST", f"{self.url}/v1/completions", json=body, timeout=TIMEOUT_S) as response:
            lines = response.iter_lines()
            next(lines)
            yield lines

    @contextmanager
    def asked(self, body: Any) -> Iterator[None]:
        """Ask for a completion, and leave at the end without having read anything."""
        client = HTTPConnection(self.url.removeprefix("http://"))
        with closing(client):
            client.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
            yield

    def metrics(self) -> dict[str, float]:
        """Every sample by its name and its labels other than model_name."""
        found = {}
        for family in text_string_to_metric_families(self.get("/metrics").text):
            for sample in family.samples:
                labels = sorted(f"{k}={v}" for k, v in sample.labels.items() if k not in ("model_name", "worker"))
                found[" ".join([sample.name, *labels])] = sample.value
        return found

    def wait_for(self, name: str, value: float, within_s: float = 5.0) -> None:
        """Wait until a metric has a value."""
        deadline = time.monotonic() + within_s
        while (now := self.metrics().get(name, 0.0)) != value:
            assert time.monotonic() < deadline, f"{name} is {now}, not {value}, after {within_s} s"
            time.sleep(0.01)


@contextmanager
def running(folder: Path, factory: str = fake_engine.FACTORY, wait: bool = True, **options: Any) -> Iterator[Running]:
    """Serve the tokenizer in `folder`, a tiny one where there is none; `options` are settings."""
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model")):
        save_byte_level(folder)
    settings = Settings(
        model=str(folder),
        **{"served_model_name": MODEL, "port": 0, "shutdown_timeout_s": 2, "log_level": "error", **options},
    )
    metrics = Metrics(settings.served_name, settings.queue_size)
    worker = create_worker(settings, metrics, factory)
    codec = TextCodec.load(settings.model, settings.chat_template)
    tracing = create_tracing(settings.otlp_endpoint, {})
    app = create_app(settings, worker, codec, metrics, tracing)
    listener = open_port(settings.host, settings.port)
    server = uvicorn.Server(http_config(app, settings, metrics))
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        await server.serve([listener])

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    deadline = time.monotonic() + 60
    while not loops or (wait and worker.state.phase == "loading"):
        assert time.monotonic() < deadline and thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    try:
        yield Running(f"http://127.0.0.1:{listener.getsockname()[1]}", worker, loops[0])
    finally:
        server.should_exit = True
        thread.join()
        listener.close()

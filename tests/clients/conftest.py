"""The servers of all tests, each in a process of its own, and no way out of this machine."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.live_server import clean_environment, serving

ROOT = Path(__file__).parents[2]
# the servers run in the project's own environment, the clients in this one
SERVER_BIN = ROOT / ".venv" / "bin"
# `make test-clients` installs them there
NODE_MODULES = ROOT / ".work" / "clients" / "node" / "node_modules"
DEMO_CHECKPOINT = ROOT / "medusa_core" / "demo" / "checkpoint"

# Read by the clients when they are imported, and inherited by all that is started here.
QUIET = {
    "ANONYMIZED_TELEMETRY": "False",
    "DO_NOT_TRACK": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "LANGSMITH_TRACING": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "SCHEMATHESIS_TELEMETRY": "false",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
}
LOOPBACK = {"127.0.0.1", "::1", "localhost"}
REACHED_FOR = pytest.StashKey[list[str]]()

HERMES_TEMPLATE = Path(__file__).with_name("hermes.jinja")
STRICT_KEY = "sesame"
# seeds of tests/server/fake_engine.py, which cannot be imported here
FAILING_SEED, ENDLESS_SEED = 9003, 9005
SAVE_TOKENIZER = "import pathlib, sys, tests.tiny_tokenizers as t; t.save_byte_level(pathlib.Path(sys.argv[1]))"


def pytest_configure(config: pytest.Config) -> None:
    os.environ.update(QUIET)
    reached_for = config.stash[REACHED_FOR] = []

    def refuse_other_hosts(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.connect":
            # a path is a socket of this machine
            host = arguments[1][0] if isinstance(arguments[1], tuple) else None
        elif event == "socket.getaddrinfo":
            host = arguments[0].decode() if isinstance(arguments[0], bytes) else arguments[0]
        else:
            return
        if host is not None and host not in LOOPBACK:
            reached_for.append(host)
            raise ConnectionRefusedError(f"{host} is not this machine; the tests of the clients need no other")

    sys.addaudithook(refuse_other_hosts)


@pytest.fixture(scope="session", autouse=True)
def nobody_phones_home(pytestconfig: pytest.Config) -> Iterator[None]:
    yield
    assert pytestconfig.stash[REACHED_FOR] == []


@dataclass(frozen=True)
class Server:
    url: str
    model: str
    key: str = "none needed"

    @property
    def base_url(self) -> str:
        """What clients call base URL, base path or api_base."""
        return f"{self.url}/v1"

    def complete(self, **fields: Any) -> dict[str, Any]:
        """POST /v1/completions without any client's help."""
        answer = httpx.post(f"{self.base_url}/completions", json={"model": self.model, **fields}, timeout=60)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def wait_until_idle(self) -> None:
        """Wait until no request runs and none waits."""
        deadline = time.monotonic() + 20
        while sum(map(float, self._samples("medusa_num_requests_(?:running|waiting)"))) > 0:
            assert time.monotonic() < deadline, "the server is still busy"
            time.sleep(0.02)

    def _samples(self, name: str) -> list[str]:
        text = httpx.get(f"{self.url}/metrics", timeout=20).text
        return re.findall(rf"^{name}{{.*}} (\S+)$", text, re.MULTILINE)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The demo model as a user starts it."""
    folder, environment = tmp_path_factory.mktemp("demo"), clean_environment(PYTHONPATH=str(ROOT))
    with serving([str(SERVER_BIN / "medusa"), "serve"], folder, environment) as url:
        yield Server(url, "demo")


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the fake engine's tokenizer, made where transformers can."""
    folder = tmp_path_factory.mktemp("fake")
    command = [str(SERVER_BIN / "python"), "-c", SAVE_TOKENIZER, str(folder)]
    subprocess.run(command, cwd=ROOT, env=clean_environment(), check=True)
    return folder


def serving_fake(tokenizer: Path, folder: Path, **options: str) -> Any:
    """A server whose model repeats the prompt; see tests/server/fake_engine.py."""
    settings = {"model": str(tokenizer), "served_model_name": "fake", "log_level": "error", **options}
    environment = clean_environment(PYTHONPATH=str(ROOT))
    command = [str(SERVER_BIN / "python"), "-m", "tests.server.serve_fake"]
    return serving([*command, *(f"{name}={value}" for name, value in settings.items())], folder, environment)


@pytest.fixture(scope="session")
def fake(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving_fake(tokenizer, tmp_path_factory.mktemp("server")) as url:
        yield Server(url, "fake")


@pytest.fixture(scope="session")
def strict(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that wants a key and lets nobody wait."""
    with serving_fake(tokenizer, tmp_path_factory.mktemp("server"), api_key=STRICT_KEY, queue_size="0") as url:
        yield Server(url, "fake", STRICT_KEY)


@pytest.fixture(scope="session")
def calling(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One whose chat template teaches calls, so that a call in a question comes back as the model's own."""
    options = {"chat_template": str(HERMES_TEMPLATE), "max_context": "4000"}
    with serving_fake(tokenizer, tmp_path_factory.mktemp("server"), **options) as url:
        yield Server(url, "fake")


@pytest.fixture(scope="session")
def node_environment(demo: Server, fake: Server, strict: Server) -> dict[str, str]:
    """What the tests in node/ read from their environment."""
    return {
        "NODE_PATH": str(NODE_MODULES),
        "DEMO_URL": demo.url,
        "FAKE_URL": fake.url,
        "STRICT_URL": strict.url,
        "STRICT_KEY": strict.key,
        "ENDLESS_SEED": str(ENDLESS_SEED),
        "FAILING_SEED": str(FAILING_SEED),
    }

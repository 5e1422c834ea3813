import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.through_http.asking import EngineAlone, GeneratePeer, MedusaPeer, WorkerClock, spelt, worker_clock
from benchmarks.through_http.generate_server import WAYS, GenerateServer
from medusa_core.config import SpeculationParams
from medusa_core.errors import EngineError
from medusa_core.evaluation.prompts import Prompt
from medusa_core.text import TextCodec
from server.worker.client import ENGINE_FACTORY
from tests.cast import GREEDY
from tests.medusa_core.evaluation.cast import mock_engine, saved_model
from tests.server.running import MODEL, running

PROMPT = Prompt(1, "text", (9, 8, 7, 9, 8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def codec(folder: Path) -> TextCodec:
    return TextCodec.load(str(folder))


@pytest.fixture(scope="module")
def generating(folder: Path) -> Iterator[tuple[int, Any]]:
    """The port of a server, and the model behind it."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    server = GenerateServer(0, model)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server.server_port, model
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("way", WAYS)
def test_what_generate_writes_comes_through_http_token_for_token(
    way: Any, generating: tuple[int, Any], codec: TextCodec
) -> None:
    port, model = generating
    written = model.generate(torch.tensor([PROMPT.tokens]), max_new_tokens=12, do_sample=False, pad_token_id=0)

    answer = GeneratePeer(port, way, codec, frozenset({1})).ask(PROMPT, GREEDY, 12)

    own = written[0, len(PROMPT.tokens) :].tolist()
    assert answer.text == spelt(own, codec, frozenset({1}))
    assert answer.num_tokens == len(own)
    assert answer.steps is not None
    assert answer.steps == len(own) - 1 if way != "lookup" else answer.steps <= len(own) - 1
    assert 0.0 < answer.first_s < answer.last_s


def test_our_server_tells_of_its_steps_and_how_long_they_took(folder: Path) -> None:
    with running(folder, ENGINE_FACTORY, tree_nodes=8, threads=1, prefix_cache=0) as server:
        port = int(server.url.rpartition(":")[2])
        tree, plain = (MedusaPeer(port, MODEL, {"mode": mode}).ask(PROMPT, GREEDY, 12) for mode in ("tree", "off"))

    assert tree.text == plain.text
    assert (plain.num_tokens, plain.steps) == (12, 11)
    assert plain.worker_s is not None and plain.computed_s is not None
    assert 0.0 < plain.computed_s < plain.worker_s < plain.last_s


class Remembering(BaseHTTPRequestHandler):
    """A server that says of every answer that rows of its prompt were in the cache."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_POST(self) -> None:
        self.do_GET()
        self.wfile.write(b'data: {"usage": {"prompt_tokens_details": {"cached_tokens": 64}}}\n\n')

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def test_a_server_that_remembers_prompts_is_refused() -> None:
    with HTTPServer(("127.0.0.1", 0), Remembering) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        with pytest.raises(EngineError, match="prefix cache"):
            MedusaPeer(server.server_port, MODEL, {"mode": "tree"}).ask(PROMPT, GREEDY, 2)
        server.shutdown()
        thread.join()


def test_the_engine_alone_is_timed_as_a_client_would(codec: TextCodec) -> None:
    answer = EngineAlone(mock_engine(), SpeculationParams("tree"), codec).ask(PROMPT, GREEDY, 8)

    assert answer.num_tokens == 8
    assert answer.worker_s is not None
    assert 0.0 < answer.worker_s <= answer.decode_s < answer.last_s


def test_the_workers_clock_shows_whole_steps_and_their_parts_where_those_are_timed() -> None:
    whole = 'medusa_decode_time_seconds_sum{model_name="m"} 3.5\n'
    parts = "".join(f'medusa_step_seconds_sum{{model_name="m",phase="{name}"}} 1.25\n' for name in ("draft", "verify"))

    assert worker_clock(whole) == WorkerClock(3.5, 0.0)
    assert worker_clock(whole + parts) == WorkerClock(3.5, 2.5)
    assert worker_clock("") == WorkerClock(0.0, 0.0)


def test_the_token_that_ends_an_answer_is_not_part_of_its_text(codec: TextCodec) -> None:
    tokens = codec.encode("Hello world")

    assert spelt([*tokens, 1], codec, frozenset({1})) == "Hello world"

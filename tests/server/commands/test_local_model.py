import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medusa_core.errors import ConfigurationError, MissingChatTemplate
from medusa_core.text import TextCodec
from server.commands.local_model import Choices, LocalModel, check_mode, stoppable
from tests.server.commands.speaking import deltas
from tests.tiny_tokenizers import save_byte_level


class Engine:
    """Answers `ab` to whatever it is asked, and keeps that."""

    info = SimpleNamespace(
        default_sampling={"temperature": 0.5, "top_k": 3}, num_heads=0, device="cpu", dtype="float32", max_context=64
    )

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def generate(self, request: Any, should_stop: Callable[[], bool]) -> Iterator[Any]:
        self.asked.append(request)
        yield from deltas("ab", request.speculation.mode)


def local(folder: Path) -> tuple[LocalModel, Engine]:
    engine = Engine()
    return LocalModel(engine, TextCodec.load(str(save_byte_level(folder, chat_template=None))), "tiny"), engine


def test_what_is_not_chosen_is_as_the_model_has_it(tmp_path: Path) -> None:
    model, engine = local(tmp_path)

    list(model.go_on("Hi", Choices(temperature=0.0, seed=7, max_tokens=9, mode="off"), lambda: False))

    (request,) = engine.asked
    assert (request.sampling.temperature, request.sampling.top_k, request.sampling.seed) == (0.0, 3, 7)
    assert (request.max_tokens, request.speculation.mode) == (9, "off")


def test_a_conversation_needs_a_chat_template(tmp_path: Path) -> None:
    model, _ = local(tmp_path)

    assert not model.can_chat
    with pytest.raises(MissingChatTemplate):
        model.reply([{"role": "user", "content": "Hi"}], Choices(), lambda: False)


def test_a_mode_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="--mode is 'psychic'"):
        check_mode("psychic")


def test_the_model_is_described_in_a_line(tmp_path: Path) -> None:
    assert local(tmp_path)[0].describe() == "tiny on cpu (float32), no heads, 64 tokens of context"


def test_an_interrupt_is_told_and_the_third_ends_what_does_not_listen() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), stoppable() as is_stopped:
        assert not is_stopped()
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert is_stopped()
        os.kill(os.getpid(), signal.SIGINT)

    assert signal.getsignal(signal.SIGINT) is before

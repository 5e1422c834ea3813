"""Who writes the answers of `medusa distill`, and how the faster of two is found."""

import gc
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

__all__ = ["ENGINE_ROWS", "Question", "Writer", "choose_writer"]

_log = logging.getLogger(__name__)

ENGINE_ROWS = 4
"""Prompts at once beyond which the engine is not tried: a step of it gives two to four tokens and costs no less than
a plain one, while the batch's gives one token for every row."""
TRIAL_BATCHES = 8
"""A trial loads the model up to three times, so it must be small beside the run: at least so many batches."""
TRIAL_TOKENS, WARM_UP_TOKENS = 64, 4


@dataclass(frozen=True)
class Question:
    """A prompt as token ids, the longest answer it may get, and the seed of that answer's noise."""

    tokens: tuple[int, ...]
    max_tokens: int
    seed: int


class Writer(Protocol):
    """A model that answers. What it says depends on the question alone, up to rounding.

    name: for the log.
    ends: tokens that end an answer.
    """

    name: str
    ends: frozenset[int]

    def write(self, questions: Sequence[Question]) -> list[list[int]]:
        """New tokens for each question, up to its limit or its first end token, which is included."""
        ...


def choose_writer(
    open_batch: Callable[[], Writer],
    open_engine: Callable[[], Writer] | None,
    questions: Sequence[Question],
    batches: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Writer:
    """Open the writer that is the faster one for batches like `questions`, of which there are so many.

    Without heads there is no engine to open. With a single prompt at once the engine takes it: a batch of one is what
    its own plain step is. Between two prompts and ENGINE_ROWS both write the same short answers, one loaded after the
    other, since two copies of a model may not fit; in a run too short to earn that, and beyond, the batch does it.
    """
    if open_engine is None or len(questions) > ENGINE_ROWS:
        return open_batch()
    if len(questions) <= 1:
        return open_engine()
    if batches < TRIAL_BATCHES:
        return open_batch()
    writer = open_batch()
    by_batch = _speed(writer, questions, clock)
    del writer
    _release()
    writer = open_engine()
    by_engine = _speed(writer, questions, clock)
    _log.info("%d prompts at once: %.0f tokens/s in a batch, %.0f by the engine", len(questions), by_batch, by_engine)
    if by_engine > by_batch:
        return writer
    del writer
    _release()
    return open_batch()


def _speed(writer: Writer, questions: Sequence[Question], clock: Callable[[], float]) -> float:
    """Tokens per second on the beginnings of the answers, after a few that warm it up."""
    writer.write([replace(question, max_tokens=min(WARM_UP_TOKENS, question.max_tokens)) for question in questions])
    started = clock()
    written = writer.write([replace(q, max_tokens=min(TRIAL_TOKENS, q.max_tokens)) for q in questions])
    return sum(map(len, written)) / max(clock() - started, 1e-9)


def _release() -> None:
    """Give the memory of a model that nobody holds any more back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

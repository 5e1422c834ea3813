"""`medusa distill`: the model writes the answers that its own heads are trained on.

Every prompt of the input gets one line of the output, in batches of similar length. The output names the prompt's line
in `source`, which is what makes a killed run resumable: whole lines count, a torn last line is cut off and redone.
What an answer says depends on the seed, the prompt's line and the turn, never on the batch, so a run that was killed
ends with the answers of one that was not.
"""

import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from medusa_core.checkpoints import find_heads
from medusa_core.config import EngineConfig, model_location
from medusa_core.engine import Engine
from medusa_core.errors import ConfigurationError
from medusa_core.loading import choose_device, default_context, read_config
from medusa_core.sampling import SamplingParams
from medusa_core.training.answer_file import AnswerFile
from medusa_core.training.base import FrozenBase
from medusa_core.training.batch_writer import BatchWriter
from medusa_core.training.encoding import Encoder, template_ids
from medusa_core.training.engine_writer import EngineWriter
from medusa_core.training.progress import Progress, progress_bar
from medusa_core.training.records import Record, read_records
from medusa_core.training.replay import Replay, Turns, digest
from medusa_core.training.tokenizer import load_data_tokenizer
from medusa_core.training.writer import Question, Writer, choose_writer

__all__ = ["DistillPlan", "Distilled", "distill"]

_log = logging.getLogger(__name__)

# Prompts are sorted by length within windows of so many batches: little padding, and a file of any size.
WINDOW_BATCHES = 64
# What the bytes of a character decode to when the limit fell between them.
HALF_CHARACTER = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class DistillPlan:
    """How the answers are made.

    max_tokens:  longest answer; a conversation ends with one that reaches it, marked `"finish_reason": "length"`.
    temperature: 0 is greedy.
    top_p:       sample from the likeliest tokens that hold this much probability; 1 is off.
    turns:       `all` answers every turn of the user anew, `last` the last one only, behind the answers in the file.
    batch_size:  prompts answered at once; changes no answer.
    """

    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    turns: Turns = "all"
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} is {getattr(self, name)}, it must be at least 1")
        if self.turns not in ("all", "last"):
            raise ConfigurationError(f"turns is {self.turns!r}, it must be all or last")


@dataclass(frozen=True)
class Distilled:
    """What a run left behind.

    answers:   lines of the output.
    written:   how many of them this run added.
    skipped:   prompts that leave no room for an answer in the context, which have no line.
    shortened: conversations of this run that end before a turn that did not fit.
    writer:    who wrote them; None when nothing was left to write.
    """

    answers: int
    written: int
    skipped: int
    shortened: int
    writer: str | None


def distill(
    model: str,
    prompts: Path,
    out: Path,
    plan: DistillPlan,
    device: str,
    heads: str | None = None,
    chat_template: Path | None = None,
) -> Distilled:
    """Answer every prompt of a JSON-lines file and append the answers to `out`, going on where an earlier run ended.

    heads:         draft heads to write faster with; None takes those in the checkpoint. They change no answer.
    chat_template: a file that goes before the model's own template.

    Raises ConfigurationError for a prompt that cannot be used, and for an `out` that belongs to another plan.
    """
    run = _Run(model, plan, device, heads, chat_template)
    with AnswerFile.open(out, run.header()) as answers:
        total = run.survey(prompts, answers.answered)
        return run.answer(prompts, answers, total)


class _Run:
    """One call of distill; counts what happens to the prompts."""

    def __init__(
        self, model: str, plan: DistillPlan, device: str, heads: str | None, chat_template: Path | None
    ) -> None:
        location = model_location(model)
        found = find_heads(location)
        self.model, self.plan, self.device = model, plan, choose_device(device)
        self.heads = heads if heads is not None or found is None else str(found)
        self.tokenizer = load_data_tokenizer(model, chat_template)
        self.context = default_context(read_config(location).get_text_config())
        self.written = self.skipped = self.shortened = 0

    def header(self) -> dict[str, Any]:
        """What the answers depend on."""
        written = self.tokenizer.chat_template
        template = None if written is None else hashlib.sha256(str(written).encode()).hexdigest()[:16]
        plan = asdict(self.plan)
        del plan["batch_size"]
        return {"model": self.model, "chat_template": template, **plan}

    def survey(self, prompts: Path, answered: dict[int, str]) -> int:
        """Read all prompts once and count them, so that what is wrong with the last is said before the first answer."""
        unseen, encoder = dict(answered), Encoder(self.tokenizer)
        total = 0
        for record in read_records(prompts):
            total += 1
            known = unseen.pop(record.line, None)
            if known is not None and known != digest(record):
                raise ConfigurationError(
                    f"{prompts}, line {record.line} is not what was answered; only add lines, or name another output"
                )
            if known is None:
                with _named(prompts, record):
                    replay = Replay(record, self.plan.turns)
                    if record.text is None:
                        encoder.render(replay.last_asked(), add_generation_prompt=True, tools=record.tools)
        if unseen:
            raise ConfigurationError(
                f"{prompts} has {total} prompts, line {max(unseen)} is answered too; only add lines, or name another "
                "output"
            )
        return total

    def answer(self, prompts: Path, answers: AnswerFile, total: int) -> Distilled:
        """Answer what has no answer yet."""
        done, writer, meter = len(answers.answered), None, None
        missing = (record for record in read_records(prompts) if record.line not in answers.answered)
        window, size = WINDOW_BATCHES * self.plan.batch_size, self.plan.batch_size
        with progress_bar("distilling", total, done, "answer") as bar:
            while records := list(islice(missing, window)):
                replays = [Replay(record, self.plan.turns) for record in records]
                asked = [(replay, self._ask(replay, prompts)) for replay in replays]
                fitting = [(replay, ids) for replay, ids in asked if len(ids) < self.context]
                self.skipped += len(asked) - len(fitting)
                bar.update(len(asked) - len(fitting))
                fitting.sort(key=lambda pair: (len(pair[1]), pair[0].record.line))
                for start in range(0, len(fitting), size):
                    batch = fitting[start : start + size]
                    if writer is None or meter is None:
                        bar.set_postfix_str("loading the model", refresh=True)
                        first = [self._question(replay, ids) for replay, ids in batch]
                        writer, meter = self._open(first, (total - done) // size), _Meter(bar)
                    answers.append(self._lines(writer, batch, meter, prompts))
                    self.written += len(batch)
                    bar.update(len(batch))
        name = writer.name if writer is not None else None
        return Distilled(done + self.written, self.written, self.skipped, self.shortened, name)

    def _ask(self, replay: Replay, prompts: Path) -> list[int]:
        """The prompt of a replay's next answer, as token ids."""
        record = replay.record
        if record.text is not None:
            ids: list[int] = self.tokenizer(record.text, verbose=False)["input_ids"]
            return ids
        with _named(prompts, record):
            return template_ids(self.tokenizer, replay.messages, add_generation_prompt=True, tools=record.tools)

    def _question(self, replay: Replay, ids: Sequence[int]) -> Question:
        place = f"{self.plan.seed}:{replay.record.line}:{replay.turn}"
        seed = int.from_bytes(hashlib.sha256(place.encode()).digest()[:8], "big")
        return Question(tuple(ids), min(self.plan.max_tokens, self.context - len(ids)), seed)

    def _lines(
        self, writer: Writer, batch: Sequence[tuple[Replay, list[int]]], meter: "_Meter", prompts: Path
    ) -> Iterator[dict[str, Any]]:
        """Answer a batch turn by turn; conversations leave it as they end."""
        pending = list(batch)
        while pending:
            written = writer.write([self._question(replay, ids) for replay, ids in pending])
            meter.count(sum(map(len, written)))
            going: list[tuple[Replay, list[int]]] = []
            for (replay, ids), tokens in zip(pending, written, strict=True):
                self._hear(replay, ids, tokens, writer.ends)
                if replay.is_finished:
                    continue
                following = self._ask(replay, prompts)
                if len(following) < self.context:
                    going.append((replay, following))
                else:
                    replay.stop_here()
                    self.shortened += 1
            pending = going
        return (replay.line() for replay, _ in batch)

    def _hear(self, replay: Replay, prompt: list[int], tokens: list[int], ends: frozenset[int]) -> None:
        has_ended = bool(tokens) and tokens[-1] in ends
        kept = tokens[:-1] if has_ended else tokens
        if replay.record.text is None:
            text = self._text(kept)
        else:
            # Decoded behind its prompt: some tokenizers drop the space before the first word of a text.
            text = self._text([*prompt, *kept])[len(self._text(prompt)) :]
        if has_ended:
            replay.answer(text, "stop")
        else:
            replay.answer(text.rstrip(HALF_CHARACTER), "length")

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _open(self, questions: Sequence[Question], batches: int) -> Writer:
        sampling = SamplingParams(temperature=self.plan.temperature, top_p=self.plan.top_p)
        end = self.tokenizer.eos_token_id
        ends = frozenset([end] if isinstance(end, int) else [])

        def open_batch() -> Writer:
            disable_progress_bar()  # type: ignore[no-untyped-call]  # there is one already
            return BatchWriter(FrozenBase.load(self.model, self.device).model, ends, sampling)

        def open_engine() -> Writer:
            # The engine would leave a core to a server; here it has them all, and a batch after it too.
            config = EngineConfig(
                model=self.model,
                heads=self.heads,
                device=str(self.device),
                max_context=self.context,
                num_threads=torch.get_num_threads(),
            )
            return EngineWriter(Engine.load(config), ends, sampling)

        writer = choose_writer(open_batch, open_engine if self.heads is not None else None, questions, batches)
        _log.info("answers are written by: %s", writer.name)
        return writer


@contextmanager
def _named(prompts: Path, record: Record) -> Iterator[None]:
    """Name the line in what is wrong with it."""
    try:
        yield
    except ConfigurationError as error:
        raise ConfigurationError(f"{prompts}, line {record.line}: {error}") from error


class _Meter:
    """Shows tokens per second beside the bar's own rate."""

    def __init__(self, bar: Progress) -> None:
        self._bar, self._tokens, self._started = bar, 0, time.perf_counter()

    def count(self, tokens: int) -> None:
        self._tokens += tokens
        speed = self._tokens / max(time.perf_counter() - self._started, 1e-9)
        self._bar.set_postfix_str(f"{speed:,.0f} tokens/s", refresh=False)

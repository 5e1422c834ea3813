"""Records as token ids with a mask of what is judged.

Where the assistant speaks is found through the chat template itself: by its generation markers, or else by what each
turn adds to the rendering of the turns before it and of the generation prompt. The text is never searched, so repeated
answers cannot be confused, and tokens that mix an answer with what stands around it are not judged: nobody could have
predicted them at that place.

Some templates write an answer differently once the conversation goes on; Qwen3's drop its reasoning. A rendering of the
whole conversation then shows earlier answers in a form that is never generated, so such a conversation becomes one
example per answer, each behind its own generation prompt: that is the text an engine sees when it writes that answer.
"""

import json
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from medusa_core.errors import ConfigurationError
from medusa_core.reasons import in_one_line
from medusa_core.text import TEMPLATE_ERRORS
from medusa_core.training.records import Record, read_records

__all__ = ["Encoder", "Example", "encode", "read_examples", "template_ids"]

# Texts are tokenized in batches, which tokenizers spreads over the cores.
RECORDS_AT_ONCE = 512

MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")

SHOWN_TAIL = 40

Turn = dict[str, Any]
Span = tuple[int, int]


@dataclass(frozen=True)
class Example:
    """Token ids [T] and which of them are judged [T]."""

    tokens: tuple[int, ...]
    judged: tuple[bool, ...]


@dataclass(frozen=True)
class _Piece:
    """A text, or a rendered conversation or a part of one and where in its characters the assistant speaks.

    spans: None for a text, which is judged throughout.
    """

    text: str
    spans: tuple[Span, ...] | None
    is_cut: bool


def read_examples(path: Path, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Iterator[Example]:
    """Encoded records with at least one judged token, cut to `max_length` tokens.

    Raises ConfigurationError, with the line, for a record that cannot be encoded, and for a file without an answer.
    """
    encoder = Encoder(tokenizer)
    longest_prompt = found = 0
    lines = read_records(path)
    while records := list(islice(lines, RECORDS_AT_ONCE)):
        for example in encoder.encode(records, str(path)):
            if any(example.judged[:max_length]):
                found += 1
                yield Example(example.tokens[:max_length], example.judged[:max_length])
            elif True in example.judged:
                longest_prompt = max(longest_prompt, example.judged.index(True))
    if not found:
        raise ConfigurationError(
            f"{path} has no answer to learn from: no turn of the assistant has a token; let the model answer it with "
            "medusa distill"
            if longest_prompt == 0
            else f"{path} has no answer within the first {max_length} tokens of its conversations; raise max_length"
        )


def encode(record: Record, tokenizer: PreTrainedTokenizerBase) -> Example:
    """Token ids of one record; a text is judged throughout, a conversation where the assistant speaks.

    A text gets the tokenizer's own beginning-of-sequence token, a conversation the template's: never both. Raises
    ConfigurationError for a conversation that takes several examples, see Encoder.
    """
    examples = Encoder(tokenizer).encode([record])
    if len(examples) != 1:
        raise ConfigurationError("the chat template rewrites earlier turns, so each answer takes an example of its own")
    return examples[0]


def template_ids(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Turn],
    add_generation_prompt: bool,
    tools: Sequence[Any] = (),
) -> list[int]:
    """Token ids of a conversation as at serving time.

    Special tokens stand where the template writes them; what the tokenizer puts before every text goes before, once.
    """
    encoder = Encoder(tokenizer)
    text = encoder.render(messages, add_generation_prompt, tools)
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return [*encoder.front(ids), *ids]


class Encoder:
    """Turns records into examples for one tokenizer; holds what is asked of it once, and no state besides."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises ConfigurationError for a tokenizer that cannot say which characters a token spells."""
        if not tokenizer.is_fast:
            raise ConfigurationError("the tokenizer is not of the fast kind; save it as tokenizer.json")
        self._tokenizer = tokenizer
        template: Any = tokenizer.chat_template
        self._template: str | None = template.get("default") if isinstance(template, dict) else template
        self._has_markers = self._template is not None and MARKER.search(self._template) is not None
        begin = tokenizer.bos_token_id
        adds_it = begin is not None and tokenizer("a", verbose=False)["input_ids"][:1] == [begin]
        self._front: tuple[int, ...] = (begin,) if adds_it else ()
        # One object for each id, however often it comes: a data set then takes a third of the memory.
        self._ids: dict[int, int] = {}

    def encode(self, records: Sequence[Record], where: str | None = None) -> list[Example]:
        """One example per record, or one per answer where the template rewrites earlier turns.

        An error names the record's line when `where` names its file.
        """
        pieces: list[_Piece] = []
        for record in records:
            try:
                pieces += self._pieces(record)
            except ConfigurationError as error:
                if where is None:
                    raise
                raise ConfigurationError(f"{where}, line {record.line}: {error}") from error
        texts = self._texts([piece.text for piece in pieces if piece.spans is None])
        talks = self._talks([piece for piece in pieces if piece.spans is not None])
        return [next(texts) if piece.spans is None else next(talks) for piece in pieces]

    def render(self, messages: Sequence[Turn], add_generation_prompt: bool, tools: Sequence[Any] = ()) -> str:
        """A conversation as the chat template writes it; raises ConfigurationError where it will not."""
        if self._template is None:
            raise ConfigurationError(
                "the tokenizer has no chat template, so only 'text' can be used; give one with --chat-template FILE"
            )
        variables: dict[str, Any] = {
            "tools": list(tools) if tools else None,
            "chat_template": self._template,
            "tokenize": False,
            "add_generation_prompt": add_generation_prompt,
        }
        with _refusals(self._template, messages):
            try:
                return str(self._tokenizer.apply_chat_template(list(messages), **variables))
            except TypeError:
                # As at serving time: DeepSeek's templates join the arguments of a call to other text.
                return str(self._tokenizer.apply_chat_template(_with_spelt_arguments(messages), **variables))

    def front(self, ids: Sequence[int]) -> tuple[int, ...]:
        """What goes before a rendered conversation: the tokenizer's beginning token, where the template wrote none.

        As at serving time: a template that does not spell the token a model expects at the front still gets it, once.
        """
        return () if tuple(ids[: len(self._front)]) == self._front else self._front

    def _texts(self, texts: list[str]) -> Iterator[Example]:
        if not texts:
            return
        for ids in self._tokenizer(texts, verbose=False, return_attention_mask=False)["input_ids"]:
            yield Example(self._shared(ids), (True,) * len(ids))

    def _talks(self, talks: Sequence[_Piece]) -> Iterator[Example]:
        if not talks:
            return
        encoded: Any = self._tokenizer(
            [piece.text for piece in talks],
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        for piece, ids, offsets in zip(talks, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            front = self.front(ids)
            judged = self._judged(piece, ids, offsets)
            yield Example(self._shared([*front, *ids]), (*[False] * len(front), *judged))

    def _judged(self, piece: _Piece, ids: list[int], offsets: list[Span]) -> list[bool]:
        """The tokens that lie within the assistant's spans, up to the end of each turn and including it."""
        end, starts = self._tokenizer.eos_token_id, [start for start, _ in offsets]
        judged = [False] * len(ids)
        for start, stop in piece.spans if piece.spans is not None else ():
            first, behind = bisect_left(starts, start), bisect_left(starts, stop)
            if behind > first and offsets[behind - 1][1] > stop:  # half of it is not the assistant's
                behind -= 1
            if end in ids[first:behind]:
                # Nobody writes what stands behind the end of a turn, such as a line break.
                behind -= ids[first:behind][::-1].index(end)
            elif not piece.is_cut and behind < len(ids) and ids[behind] == end:
                behind += 1  # markers that leave the end of the turn out
            judged[first:behind] = [True] * (behind - first)
        return judged

    def _shared(self, ids: Sequence[int]) -> tuple[int, ...]:
        own = self._ids
        return tuple([own.setdefault(token, token) for token in ids])

    def _pieces(self, record: Record) -> list[_Piece]:
        if record.text is not None:
            return [_Piece(record.text, None, record.is_cut)]
        turns = [message.shown() for message in record.messages]
        # Nothing asks for a first turn by the assistant, so it is context.
        answers = [index for index, turn in enumerate(turns) if index > 0 and turn["role"] == "assistant"]
        is_cut = record.is_cut and bool(answers) and answers[-1] == len(turns) - 1
        if self._has_markers and not is_cut and len(answers) == 1:
            return [self._marked(turns, record.tools)]
        befores = [self.render(turns[:index], True, record.tools) for index in answers]
        if is_cut:
            whole = befores[-1] + turns[-1]["content"]
        else:
            whole = self.render(turns, False, record.tools)
        afters = [
            whole if index == len(turns) - 1 else self.render(turns[: index + 1], False, record.tools)
            for index in answers
        ]
        pairs = list(zip(befores, afters, strict=True))
        if all(whole.startswith(after) and after.startswith(before) for before, after in pairs):
            if self._has_markers and not is_cut:
                return [self._marked(turns, record.tools)]
            spans = tuple((len(before), len(after)) for before, after in pairs)
            return [_Piece(whole, spans, is_cut)]
        return [
            self._alone(record, turns[: index + 1], before, after, is_cut and index == answers[-1])
            for index, (before, after) in zip(answers, pairs, strict=True)
        ]

    def _alone(self, record: Record, turns: list[Turn], before: str, after: str, is_cut: bool) -> _Piece:
        """The last answer of `turns` behind its own generation prompt, as it is written."""
        if self._has_markers and not is_cut:
            marked = self._marked(turns, record.tools)
            if marked.spans:
                return _Piece(marked.text, marked.spans[-1:], is_cut)
        elif after.startswith(before):
            return _Piece(after, ((len(before), len(after)),), is_cut)
        elif record.is_verbatim and isinstance(self._tokenizer.eos_token, str):
            # The model wrote this behind just this prompt, however the template would repeat it.
            text = before + turns[-1]["content"] + self._tokenizer.eos_token
            return _Piece(text, ((len(before), len(text)),), is_cut)
        raise ConfigurationError(
            f"the answer in message {len(turns) - 1} cannot be found: the chat template asks for it with "
            f"{before[-SHOWN_TAIL:]!r} and then writes a turn that does not go on from there, {after[-SHOWN_TAIL:]!r}; "
            "give a template with {% generation %} markers with --chat-template FILE"
        )

    def _marked(self, turns: list[Turn], tools: Sequence[Any]) -> _Piece:
        """A conversation whose template says itself where the assistant speaks."""
        special: dict[str, Any] = dict(self._tokenizer.special_tokens_map)
        assert self._template is not None, "markers stand in a template"
        with _refusals(self._template, turns):
            rendered: Any = render_jinja_template(
                [turns],
                tools=list(tools) if tools else None,
                chat_template=self._template,
                return_assistant_tokens_mask=True,
                add_generation_prompt=False,
                **special,
            )
        (text,), (spans,) = rendered
        spoken = sum(turn["role"] == "assistant" for turn in turns)
        if turns[0]["role"] == "assistant" and len(spans) == spoken:
            spans = spans[1:]  # nothing asks for it, see _pieces
        return _Piece(text, tuple((start, stop) for start, stop in spans), False)


def _with_spelt_arguments(messages: Sequence[Turn]) -> list[Turn]:
    """Messages whose tool calls carry their arguments as JSON text instead of objects."""
    spelt: list[Turn] = []
    for message in messages:
        calls = [
            {**call, "function": {**call["function"], "arguments": json.dumps(call["function"].get("arguments", {}))}}
            for call in message.get("tool_calls", ())
        ]
        spelt.append({**message, "tool_calls": calls} if calls else message)
    return spelt


@contextmanager
def _refusals(template: str, messages: Sequence[Turn]) -> Iterator[None]:
    """What a template raises on messages it was not written for, or would drop of them, as an error of the data."""
    if "tool_calls" not in template and any("tool_calls" in message for message in messages):
        raise ConfigurationError("the chat template does not know 'tool_calls', so these turns would be empty")
    try:
        yield
    except TEMPLATE_ERRORS as error:
        reason = in_one_line(error)
        raise ConfigurationError(f"the chat template refuses this conversation: {reason}") from error

"""Records as token ids with a mask of what is judged.

The mask is found on tokens, through the chat template itself: by its generation markers, or else by what each
assistant turn adds to the tokens before it. The text is never searched, so repeated answers cannot be confused.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from medusa_core.errors import ConfigurationError
from medusa_core.training.records import Record, read_records

__all__ = ["Example", "encode", "read_examples", "template_ids"]


@dataclass(frozen=True)
class Example:
    """Token ids [T] and which of them are judged [T]."""

    tokens: tuple[int, ...]
    judged: tuple[bool, ...]


def read_examples(path: Path, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Iterator[Example]:
    """Encoded records with at least one judged token, cut to `max_length` tokens."""
    for record in read_records(path):
        try:
            example = encode(record, tokenizer)
        except ConfigurationError as error:
            raise ConfigurationError(f"{path}, line {record.line}: {error}") from error
        if any(example.judged[:max_length]):
            yield Example(example.tokens[:max_length], example.judged[:max_length])


def encode(record: Record, tokenizer: PreTrainedTokenizerBase) -> Example:
    """Token ids of one record; a text is judged throughout, a conversation where the assistant speaks.

    A text gets the tokenizer's own beginning-of-sequence token, a conversation the template's: never both.
    """
    if record.text is not None:
        tokens = tuple(tokenizer(record.text, verbose=False)["input_ids"])
        return Example(tokens, (True,) * len(tokens))
    if tokenizer.chat_template is None:
        raise ConfigurationError("the tokenizer has no chat template, so only 'text' records can be used")
    messages = [{"role": message.role, "content": message.content} for message in record.messages]
    example = _encode_conversation(record, messages, tokenizer)
    # As at serving time: a template that does not spell the token a model expects at the front still gets it, once.
    front = _expected_front(tokenizer)
    if example.tokens[: len(front)] == front:
        return example
    return Example((*front, *example.tokens), (False,) * len(front) + example.judged)


def _encode_conversation(record: Record, messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> Example:
    if record.is_cut and record.messages[-1].role == "assistant":
        return _cut_conversation(messages, tokenizer)
    if "{% generation %}" in _template_source(tokenizer).replace("{%-", "{%").replace("-%}", "%}"):
        encoded: Any = tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        return Example(tuple(encoded["input_ids"]), tuple(bool(flag) for flag in encoded["assistant_masks"]))
    return _by_prefix_difference(messages, tokenizer)


def _expected_front(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The beginning-of-sequence token where the tokenizer adds one to a text, else nothing."""
    begin = tokenizer.bos_token_id
    adds_it = begin is not None and tokenizer("a", verbose=False)["input_ids"][:1] == [begin]
    return (begin,) if adds_it else ()


def _template_source(tokenizer: PreTrainedTokenizerBase) -> str:
    template: Any = tokenizer.chat_template
    return str(template["default"]) if isinstance(template, dict) else str(template)


def _by_prefix_difference(messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> Example:
    """Judge what each assistant turn adds to the tokens of the turns before it and of the generation prompt."""
    tokens = template_ids(tokenizer, messages, add_generation_prompt=False)
    judged = [False] * len(tokens)
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = template_ids(tokenizer, messages[:index], add_generation_prompt=True)
        after = template_ids(tokenizer, messages[: index + 1], add_generation_prompt=False)
        if tokens[: len(before)] != before or tokens[: len(after)] != after:
            raise ConfigurationError(
                f"the chat template rewrites earlier turns, so the tokens of message {index} cannot be told from the "
                "rest; use one answer per conversation, or a template with {% generation %} markers"
            )
        judged[len(before) : len(after)] = [True] * (len(after) - len(before))
    return Example(tuple(tokens), tuple(judged))


def _cut_conversation(messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> Example:
    """The last answer was cut off: its tokens follow the generation prompt and nothing follows them."""
    prompt = template_ids(tokenizer, messages[:-1], add_generation_prompt=True)
    answer = tokenizer(messages[-1]["content"], add_special_tokens=False, verbose=False)["input_ids"]
    return Example((*prompt, *answer), (False,) * len(prompt) + (True,) * len(answer))


def template_ids(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], add_generation_prompt: bool
) -> list[int]:
    """Token ids of a conversation, special tokens only where the template writes them."""
    encoded: Any = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, add_generation_prompt=add_generation_prompt
    )
    ids: list[int] = encoded["input_ids"]
    return ids

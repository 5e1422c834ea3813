"""What a chat request's tools ask of prompt, grammar and text: from the fields to the streams that find the calls."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medusa_core.constraints import Grammar
from medusa_core.errors import UnsupportedParameter
from medusa_core.text import TextCodec
from medusa_core.tool_formats import DEFAULT_TOOL_FORMAT
from medusa_core.tool_grammar import forced_call_grammar, strict_call_grammar
from server.call_events import Content, Event, new_call_id
from server.schemas.tools import ToolRequest
from server.tool_calls import CallStream, ForcedCallStream, FreeCallStream

__all__ = ["Calling", "PlainStream", "plan_calls"]


class PlainStream:
    """An answer that holds no calls: all of it is content."""

    def feed(self, text: str) -> list[Event]:
        """The text."""
        return [Content(text)] if text else []

    def finish(self) -> list[Event]:
        """Nothing was held back."""
        return []


@dataclass(frozen=True)
class Calling:
    """How the calls of one request come about.

    offered:  what the chat template is told.
    grammar:  forces calls, or holds those that the model makes to their schemas; None leaves all to the model.
    is_forced: whether the answer is calls and nothing else.
    is_named: whether one certain function was asked for, which OpenAI answers with the finish_reason stop.
    stream:   finds the calls in an answer to the prompt with these ids.
    """

    offered: Sequence[Mapping[str, Any]]
    grammar: Grammar | None
    is_forced: bool
    is_named: bool
    stream: Callable[[Sequence[int]], CallStream]


def plan_calls(request: ToolRequest | None, codec: TextCodec) -> Calling | None:
    """What the tools on offer come to; None where nothing can be called.

    Raises UnsupportedParameter for tools offered to a model whose calls could not be told from other text.
    """
    if request is None or request.choice == "none":
        return None
    known = codec.tool_format
    written = known if known is not None else DEFAULT_TOOL_FORMAT

    def new_id() -> str:
        return new_call_id(written.call_id_length)

    if request.choice == "required":
        text = forced_call_grammar(request.tools, request.function, request.is_parallel, written, codec.added_token_id)
        return Calling(
            offered=request.offered,
            grammar=Grammar(text),
            is_forced=True,
            is_named=request.function is not None,
            stream=lambda prompt: ForcedCallStream(written, new_id),
        )
    if not codec.reads_calls:
        raise UnsupportedParameter(
            "tools",
            "the model's chat template teaches no known way to call them; force a call with tool_choice, "
            "or start the server with a --chat-template that does",
        )

    def free_stream(prompt: Sequence[int]) -> CallStream:
        before = codec.decode(prompt, skip_special_tokens=False)
        return FreeCallStream(lambda prefix: codec.response_parser(prefix, request.tools), before, new_id)

    strict = None
    if known is not None:
        strict = strict_call_grammar(
            request.tools, request.strict, request.is_parallel, known, codec.added_token_id, codec.text_tokens
        )
    return Calling(
        request.offered,
        Grammar(strict) if strict is not None else None,
        is_forced=False,
        is_named=False,
        stream=free_stream,
    )

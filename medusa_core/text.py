"""Text to token ids and back: chat templates, tokenization, text that is safe to show while tokens still arrive.

Knows no tensor and never loads torch.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError, TemplateSyntaxError
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from medusa_core.detokenizer import TextPiece, TextStream
from medusa_core.errors import (
    ConfigurationError,
    InvalidParameter,
    MissingChatTemplate,
    UnsupportedParameter,
)
from medusa_core.infill import INFILL_FORMATS, PREFIX, InfillFormat
from medusa_core.reasons import in_one_line
from medusa_core.token_bytes import TokenBytes
from medusa_core.tokenizer_files import load_tokenizer, own_template, tokenizer_folder
from medusa_core.tool_formats import ToolFormat, tool_format_of

__all__ = ["TextCodec", "TextPiece", "TextStream"]

# Ids are 32 bits wide.
MAX_TOKEN_ID = 2**32

# What a template raises on messages it was not written for, besides jinja's own errors.
TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError)

# A character of its own in every tokenizer: what follows it is no first word, so no space is put before it.
JOINER = "☺"

TemplateArgument = str | int | float | bool


class TextCodec:
    """The tokenizer of one model. Holds no state between calls; safe to call from several threads."""

    def __init__(self, model: str, tokenizer: PreTrainedTokenizerFast, chat_template: str | None) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._chat_template = chat_template
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        # Some tokenizer files carry the truncation of their training.
        self._backend.no_truncation()
        self._backend.no_padding()
        self._token_bytes = TokenBytes(self._backend)
        first = self._backend.encode("a").ids[:1]
        self._added_bos = first if first == [tokenizer.bos_token_id] else []
        self._infill = self._find_infill()
        added = self._backend.get_added_tokens_decoder()
        self._added_ids: dict[str, int] = {token.content: number for number, token in added.items()}
        self.longest_token = max(map(len, self._backend.get_vocab()), default=1)
        self._text_tokens = frozenset(number for number, token in added.items() if not token.special)

    @classmethod
    def load(cls, model: str, chat_template_file: Path | None = None, name: str | None = None) -> "TextCodec":
        """Read the tokenizer of a folder, a hub id or `demo`; the template file goes before the model's own.

        name: what the model is called in errors, for those who are not to know where it is; None is `model`.

        Raises ModelNotFound, CheckpointError for tokenizer files that cannot be read, and ConfigurationError for a
        template file that is missing or is not a template.
        """
        folder = tokenizer_folder(model)
        tokenizer = load_tokenizer(folder, model)
        if chat_template_file is None:
            return cls(name if name is not None else model, tokenizer, own_template(tokenizer, folder, model))
        try:
            template = chat_template_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(
                f"the chat template {str(chat_template_file)!r} cannot be read: {error}"
            ) from error
        codec = cls(name if name is not None else model, tokenizer, template)
        codec._check_syntax(chat_template_file)
        return codec

    @property
    def vocab_size(self) -> int:
        """Tokens the tokenizer knows, special ones included; a model's logits may have more columns."""
        return len(self._tokenizer)

    @property
    def tokenizer_json(self) -> str:
        """The tokenizer as its own library writes it, for grammars."""
        return self._backend.to_str()

    @property
    def has_chat_template(self) -> bool:
        """Whether `encode_chat` can be used."""
        return self._chat_template is not None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Ids of a text, with the special tokens that the tokenizer itself adds (BOS where it adds one) unless told.

        Raises InvalidParameter for lone surrogates, which JSON can carry and UTF-8 cannot.
        """
        _check_unicode(text, "prompt")
        return self._ids(text, add_special_tokens)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_arguments: Mapping[str, TemplateArgument] | None = None,
        add_special_tokens: bool = False,
    ) -> list[int]:
        """Ids of a conversation as the model's template writes it.

        messages:               in OpenAI's shape; the arguments of a tool call are JSON text.
        tools:                  what the model may call, in OpenAI's shape; none and an empty list are the same.
        add_generation_prompt:  end where the assistant's next answer begins.
        continue_final_message: leave the last message open instead, so that the answer goes on with it.
        template_arguments:     variables for the template, such as enable_thinking; those it does not know do nothing.
        add_special_tokens:     also add those that the tokenizer adds to any text. Without it BOS stands at the front
                                once, whether the template spells it or not.

        Raises MissingChatTemplate, and InvalidParameter for messages that the template refuses.
        """
        if self._chat_template is None:
            raise MissingChatTemplate(self._model)
        variables: dict[str, Any] = {
            **(template_arguments if template_arguments is not None else {}),
            "tools": [dict(tool) for tool in tools] if tools else None,
            "add_generation_prompt": add_generation_prompt and not continue_final_message,
            "continue_final_message": continue_final_message,
        }
        try:
            text = self._render_calls(self._chat_template, messages, variables)
        except TEMPLATE_ERRORS as error:
            reason = in_one_line(error)
            raise InvalidParameter(f"the chat template refuses these messages: {reason}", "messages") from error
        _check_unicode(text, "messages")
        tokens = self._ids(text, add_special_tokens)
        # A template spells its special tokens itself, but not all of them spell the BOS their model was trained with.
        return tokens if tokens[:1] == self._added_bos else [*self._added_bos, *tokens]

    def encode_infill(self, prefix: str, suffix: str) -> list[int]:
        """Ids of the task to write what stands between two texts, in the words of the model's training.

        Raises UnsupportedParameter for a model without tokens for it, InvalidParameter for lone surrogates.
        """
        if self._infill is None:
            raise UnsupportedParameter("suffix", "the model has no fill-in-the-middle tokens; leave it out")
        _check_unicode(prefix, "prompt")
        _check_unicode(suffix, "suffix")
        tokens = list(self._added_bos)
        for part in self._infill.order:
            if part == PREFIX:
                tokens += self._ids(prefix, add_special_tokens=False)
            elif part in self._infill.tokens:
                tokens.append(self._token_id(part))
            elif self._infill.is_suffix_joined:
                joiner = self._ids(JOINER, add_special_tokens=False)
                tokens += self._ids(JOINER + suffix, add_special_tokens=False)[len(joiner) :]
            else:
                tokens += self._ids(suffix, add_special_tokens=False)
        return tokens

    @property
    def infill_ends(self) -> list[int]:
        """Tokens that end the middle of a text, besides the model's own end of text."""
        ends = self._infill.ends if self._infill is not None else ()
        found = (self._backend.token_to_id(token) for token in ends)
        return [token for token in found if token is not None]

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of the ids, without special tokens unless told."""
        return self._backend.decode(list(tokens), skip_special_tokens=skip_special_tokens)

    def token_string(self, token: int) -> str | None:
        """How the vocabulary writes a token, None for an id outside of it."""
        return self._backend.id_to_token(token) if 0 <= token < MAX_TOKEN_ID else None

    def token_bytes(self, token: int) -> bytes:
        """What one token spells; half a character is half its bytes."""
        return self._token_bytes.of(token)

    def stream(self, stop: Sequence[str] = (), prompt: Sequence[int] = (), keeps_special: bool = False) -> TextStream:
        """Start the text of one answer.

        stop:          strings that end the answer; empty ones are ignored.
        prompt:        ids the answer continues as running text; keeps the space that some tokenizers drop from the
                       first word of a text. A chat answer is a text of its own and names none.
        keeps_special: whether special tokens are part of the text, as some formats of tool calls need it.
        """
        return TextStream(self._backend, self._token_bytes, stop, prompt, keeps_special)

    @property
    def tool_format(self) -> ToolFormat | None:
        """How the chat template teaches the model to write tool calls; None when it teaches no known way."""
        return tool_format_of(self._chat_template) if self._chat_template is not None else None

    @property
    def reads_calls(self) -> bool:
        """Whether tool calls that the model writes of its own accord can be told from other text."""
        return self._response_template is not None

    def response_parser(self, prefix: str, tools: Sequence[Mapping[str, Any]]) -> Any:
        """Transformers' parser for an answer that continues `prefix`; needs `reads_calls`."""
        assert self._response_template is not None, "an answer is parsed where its format is known"
        return self._tokenizer.get_response_parser(
            self._response_template, prefix=prefix, tools=[dict(tool) for tool in tools]
        )

    @property
    def text_tokens(self) -> frozenset[int]:
        """Added tokens that are text all the same, such as those that models put around their reasoning."""
        return self._text_tokens

    def added_token_in(self, text: str) -> str | None:
        """An added token that a text spells out, None where it spells none; backslashes are not counted."""
        plain = text.replace("\\", "")
        return next((name for name in self._added_ids if name in text or name in plain), None)

    def added_token_id(self, text: str) -> int | None:
        """The id of a token that was added to the vocabulary as a whole, None for text that is spelt in pieces."""
        return self._added_ids.get(text)

    @property
    def _response_template(self) -> dict[str, Any] | None:
        """The tokenizer's own, or the table's for the way of calling that the chat template teaches."""
        own = getattr(self._tokenizer, "response_template", None)
        if own is not None:
            return dict(own)
        known = self.tool_format
        return dict(known.response_template) if known is not None else None

    def _ids(self, text: str, add_special_tokens: bool) -> list[int]:
        # Of a batch, since encoding a single text keeps the interpreter's lock: for seconds where it is long.
        (encoding,) = self._backend.encode_batch([text], add_special_tokens=add_special_tokens)
        return encoding.ids

    def _token_id(self, token: str) -> int:
        found = self._backend.token_to_id(token)
        assert found is not None, f"{token} is in the vocabulary"
        return found

    def _find_infill(self) -> InfillFormat | None:
        known = self._backend.token_to_id
        return next((row for row in INFILL_FORMATS if all(known(token) is not None for token in row.tokens)), None)

    def _render_calls(self, template: str, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> str:
        """Render with the arguments of tool calls as objects, which most templates expect, else as text."""
        try:
            return self._render(template, [_with_objects(message) for message in messages], variables)
        except TypeError:
            # DeepSeek's templates join them to other text
            return self._render(template, messages, variables)

    def _render(self, template: str, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> str:
        plain = [dict(message) for message in messages]
        return str(self._tokenizer.apply_chat_template(plain, chat_template=template, tokenize=False, **variables))

    def _check_syntax(self, file: Path) -> None:
        try:
            self._render(str(self._chat_template), [{"role": "user", "content": "Hello"}], {})
        except TemplateSyntaxError as error:
            raise ConfigurationError(f"{str(file)!r} is not a chat template: {error}") from error
        except TEMPLATE_ERRORS:
            pass  # it may rightly refuse this conversation


def _with_objects(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A message whose tool calls carry their arguments as the objects they spell."""
    calls = message.get("tool_calls")
    return {**message, "tool_calls": [_with_object(call) for call in calls]} if isinstance(calls, list) else message


def _with_object(call: Any) -> Any:
    if not isinstance(call, dict) or not isinstance(call.get("function"), dict):
        return call
    function = call["function"]
    text = function.get("arguments")
    if not isinstance(text, str):
        return call
    try:
        # a call without arguments is often written as no text at all
        arguments = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError):
        return call
    return {**call, "function": {**function, "arguments": arguments}} if isinstance(arguments, dict) else call


def _check_unicode(text: str, param: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidParameter(
            f"the text holds a lone surrogate ({text[error.start]!a}), which is not a character", param
        ) from error

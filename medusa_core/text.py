"""Text to token ids and back: chat templates, tokenization, text that is safe to show while tokens still arrive.

Knows no tensor and never loads torch: `PreTrainedTokenizerFast` is taken by name, since `AutoTokenizer` would.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from jinja2.exceptions import TemplateError, TemplateSyntaxError
from tokenizers import Tokenizer
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from medusa_core.chat_templates import known_template
from medusa_core.config import model_location
from medusa_core.detokenizer import TextPiece, TextStream
from medusa_core.errors import CheckpointError, ConfigurationError, InvalidParameter, MissingChatTemplate, ModelNotFound
from medusa_core.token_bytes import TokenBytes

__all__ = ["TextCodec", "TextPiece", "TextStream"]

TOKENIZER_FILES = ("tokenizer*", "*token*.json", "chat_template*", "config.json")

# Tokenizers that can be built from a sentencepiece model alone, by the class their checkpoint names. The models behind
# older names are the same; a checkpoint that names no class and has only tokenizer.model is of Llama's kind.
SENTENCEPIECE_TOKENIZERS: dict[str, Any] = {
    "CodeLlamaTokenizer": LlamaTokenizer,
    "LLaMATokenizer": LlamaTokenizer,
    "LlamaTokenizer": LlamaTokenizer,
    "LlamaTokenizerFast": LlamaTokenizer,
}

# What a template raises on messages it was not written for, besides jinja's own errors.
TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError)


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

    @classmethod
    def load(cls, model: str, chat_template_file: Path | None = None) -> "TextCodec":
        """Read the tokenizer of a folder, a hub id or `demo`; the template file goes before the model's own.

        Raises ModelNotFound, CheckpointError for tokenizer files that cannot be read, and ConfigurationError for a
        template file that is missing or is not a template.
        """
        folder = _tokenizer_folder(model)
        tokenizer = _load_tokenizer(folder, model)
        if chat_template_file is None:
            return cls(model, tokenizer, _own_template(tokenizer, folder, model))
        try:
            template = chat_template_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(
                f"the chat template {str(chat_template_file)!r} cannot be read: {error}"
            ) from error
        codec = cls(model, tokenizer, template)
        codec._check_syntax(chat_template_file)
        return codec

    @property
    def vocab_size(self) -> int:
        """Tokens the tokenizer knows, special ones included; a model's logits may have more columns."""
        return len(self._tokenizer)

    @property
    def has_chat_template(self) -> bool:
        """Whether `encode_chat` can be used."""
        return self._chat_template is not None

    def encode(self, text: str) -> list[int]:
        """Ids of a text, with the special tokens that the tokenizer itself adds (BOS where it adds one).

        Raises InvalidParameter for lone surrogates, which JSON can carry and UTF-8 cannot.
        """
        _check_unicode(text, "prompt")
        return self._backend.encode(text).ids

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Ids of a conversation up to where the assistant's next answer begins; BOS stands at the front once.

        Raises MissingChatTemplate, and InvalidParameter for messages that the template refuses.
        """
        if self._chat_template is None:
            raise MissingChatTemplate(self._model)
        try:
            text = self._render(self._chat_template, messages)
        except TEMPLATE_ERRORS as error:
            raise InvalidParameter(f"the chat template refuses these messages: {error}", "messages") from error
        _check_unicode(text, "messages")
        # A template spells its special tokens itself, but not all of them spell the BOS their model was trained with.
        tokens = self._backend.encode(text, add_special_tokens=False).ids
        return tokens if tokens[:1] == self._added_bos else [*self._added_bos, *tokens]

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of the ids without special tokens."""
        return self._backend.decode(list(tokens), skip_special_tokens=True)

    def token_bytes(self, token: int) -> bytes:
        """What one token spells; half a character is half its bytes."""
        return self._token_bytes.of(token)

    def stream(self, stop: Sequence[str] = (), prompt: Sequence[int] = ()) -> TextStream:
        """Start the text of one answer.

        stop:   strings that end the answer; empty ones are ignored.
        prompt: ids the answer continues as running text; keeps the space that some tokenizers drop from the first
                word of a text. A chat answer is a text of its own and names none.
        """
        return TextStream(self._backend, stop, prompt)

    def _render(self, template: str, messages: Sequence[Mapping[str, Any]]) -> str:
        rendered = self._tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            chat_template=template,
            tokenize=False,
            add_generation_prompt=True,
        )
        return str(rendered)

    def _check_syntax(self, file: Path) -> None:
        try:
            self._render(str(self._chat_template), [{"role": "user", "content": "Hello"}])
        except TemplateSyntaxError as error:
            raise ConfigurationError(f"{str(file)!r} is not a chat template: {error}") from error
        except TEMPLATE_ERRORS:
            pass  # it may rightly refuse this conversation


def _check_unicode(text: str, param: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidParameter(
            f"the text holds a lone surrogate ({text[error.start]!a}), which is not a character", param
        ) from error


def _tokenizer_folder(model: str) -> Path:
    location = model_location(model)
    if Path(location).is_dir():
        return Path(location)
    try:
        return Path(snapshot_download(location, allow_patterns=list(TOKENIZER_FILES)))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ModelNotFound(f"no tokenizer at {model!r}: {reason}; give a folder or a hub id") from error


def _load_tokenizer(folder: Path, model: str) -> PreTrainedTokenizerFast:
    """tokenizer.json where there is one, else the sentencepiece model converted by transformers."""
    if (folder / "tokenizer.json").is_file():
        _read_json(folder / "tokenizer.json")
        kind: Any = PreTrainedTokenizerFast
    elif (folder / "tokenizer.model").is_file():
        kind = _sentencepiece_class(folder)
    else:
        raise CheckpointError(
            f"{model!r} has neither tokenizer.json nor tokenizer.model; save its tokenizer beside the weights with "
            "AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER)"
        )
    try:
        tokenizer: PreTrainedTokenizerFast = kind.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, TypeError, LookupError, ImportError) as error:
        raise CheckpointError(f"the tokenizer of {model!r} cannot be loaded: {error}") from error
    return tokenizer


def _sentencepiece_class(folder: Path) -> Any:
    name = _read_json(folder / "tokenizer_config.json").get("tokenizer_class", "LlamaTokenizer")
    if name not in SENTENCEPIECE_TOKENIZERS:
        raise CheckpointError(
            f"tokenizer.model of {str(folder)!r} is for {name}, which cannot be built from it alone; save "
            "tokenizer.json beside it with AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER)"
        )
    return SENTENCEPIECE_TOKENIZERS[name]


def _own_template(tokenizer: PreTrainedTokenizerFast, folder: Path, model: str) -> str | None:
    """The checkpoint's template, or the table's for a checkpoint that was published without one."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if template is not None:
        return str(template)
    return known_template(model, _read_json(folder / "config.json").get("_name_or_path"))


def _read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file, empty when there is no such file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{str(file)!r} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{str(file)!r} holds no JSON object")
    return content

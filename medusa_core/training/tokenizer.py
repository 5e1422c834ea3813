"""The tokenizer that data is written and read with: the server's own, with the chat template it would use."""

from pathlib import Path

from transformers import PreTrainedTokenizerFast

from medusa_core.errors import ConfigurationError
from medusa_core.tokenizer_files import load_tokenizer, own_template, tokenizer_folder

__all__ = ["load_data_tokenizer"]


def load_data_tokenizer(model: str, chat_template: Path | None) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder, a hub id or `demo`; the template file goes before the model's own.

    A checkpoint that was published without a template gets the one that the server knows for it, if it knows one.
    Raises ModelNotFound, CheckpointError, and ConfigurationError for a template file that cannot be read.
    """
    folder = tokenizer_folder(model)
    tokenizer = load_tokenizer(folder, model)
    if chat_template is None:
        tokenizer.chat_template = own_template(tokenizer, folder, model)
        return tokenizer
    try:
        tokenizer.chat_template = chat_template.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the chat template {str(chat_template)!r} cannot be read: {error}") from error
    return tokenizer

"""The tokenizer of a checkpoint: where its files are, how they are loaded, the chat template beside them.

Never loads torch: `PreTrainedTokenizerFast` is taken by name, since `AutoTokenizer` would.
"""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from medusa_core.chat_templates import known_template
from medusa_core.config import model_location, split_revision
from medusa_core.errors import CheckpointError, ModelNotFound
from medusa_core.reasons import in_one_line

__all__ = ["load_tokenizer", "own_template", "tokenizer_folder"]

TOKENIZER_FILES = ("tokenizer*", "*token*.json", "chat_template*", "config.json")

# Tokenizers that can be built from a sentencepiece model alone, by the class their checkpoint names. The models behind
# older names are the same; a checkpoint that names no class and has only tokenizer.model is of Llama's kind.
SENTENCEPIECE_TOKENIZERS: dict[str, Any] = {
    "CodeLlamaTokenizer": LlamaTokenizer,
    "LLaMATokenizer": LlamaTokenizer,
    "LlamaTokenizer": LlamaTokenizer,
    "LlamaTokenizerFast": LlamaTokenizer,
}


def tokenizer_folder(model: str) -> Path:
    """The folder with a model's tokenizer, fetched from the hub where there is none; raises ModelNotFound."""
    location = model_location(model)
    if Path(location).is_dir():
        return Path(location)
    name, revision = split_revision(location)
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(TOKENIZER_FILES)))
    except (OSError, ValueError) as error:
        reason = in_one_line(error)
        raise ModelNotFound(
            f"the model {model!r} is no folder here, and the hub does not have it or cannot be asked ({reason}); "
            "check the name, or give a folder or a hub id such as 'owner/name'"
        ) from error


def load_tokenizer(folder: Path, model: str) -> PreTrainedTokenizerFast:
    """The tokenizer in tokenizer.json where there is one, else the sentencepiece model converted by transformers.

    Raises CheckpointError for files that are missing or cannot be read.
    """
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


def own_template(tokenizer: PreTrainedTokenizerFast, folder: Path, model: str) -> str | None:
    """The checkpoint's template, or the table's for a checkpoint that was published without one."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if template is not None:
        return str(template)
    return known_template(split_revision(model)[0], _read_json(folder / "config.json").get("_name_or_path"))


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

"""What heads need of a base model's files when no model is loaded: its LM head and the size of its vocabulary."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from medusa_core.checkpoints.files import Download, StoredTensors, indices, open_file, read_json, snapshot
from medusa_core.config import model_location, split_revision
from medusa_core.errors import HeadsMismatch, ModelNotFound
from medusa_core.reasons import in_one_line

__all__ = ["base_folder", "loaded_index", "read_lm_head", "vocab_size_of"]

# By key, those that are LM heads before the embeddings that serve as one where there is none.
LM_HEADS = (
    "lm_head.weight",
    "embed_out.weight",
    "language_model.lm_head.weight",
    "model.embed_tokens.weight",
    "model.language_model.embed_tokens.weight",
    "language_model.model.embed_tokens.weight",
    "gpt_neox.embed_in.weight",
    "transformer.wte.weight",
)
WHOLE = ("model.safetensors", "pytorch_model.bin")


def read_lm_head(model: str, download: Download = snapshot) -> Tensor:
    """The LM head [V, H] of a base model, from the one file that holds it; `model` is a folder, a hub id or `demo`.

    Raises ModelNotFound when there are no weights, HeadsMismatch when none of them is known as an LM head.
    """
    folder = base_folder(model, download)
    index = loaded_index(folder)
    if index is not None:
        return _lm_head_in(open_file(index), model, download)
    if folder != Path(model_location(model)):
        folder = _fetched(model, WHOLE, download)
    whole = next((folder / name for name in WHOLE if (folder / name).is_file()), None)
    if whole is None:
        raise ModelNotFound(
            f"no weights of a base model in {str(folder)!r}: it holds no index and none of {', '.join(WHOLE)}"
        )
    return _lm_head_in(open_file(whole), model, download)


def _lm_head_in(stored: StoredTensors, model: str, download: Download) -> Tensor:
    key = next((key for key in LM_HEADS if key in stored.files), None)
    if key is None:
        raise HeadsMismatch(f"no LM head among the tensors of {model!r}: none of them is {', '.join(LM_HEADS)}")
    if not stored.files[key].is_file():
        _fetched(model, [stored.files[key].name], download)
    lm_head = stored.read([key])[key]
    if lm_head.dim() != 2 or not lm_head.is_floating_point():
        raise HeadsMismatch(
            f"{key!r} of {model!r} is quantised or no matrix ({lm_head.dtype}, {list(lm_head.shape)}); "
            "name the base model as it was before"
        )
    return lm_head


def loaded_index(folder: Path) -> Path | None:
    """The index of the shards that transformers loads from a folder; None where it takes a single file, or nothing."""
    return None if (folder / WHOLE[0]).is_file() else next(iter(indices(folder)), None)


def vocab_size_of(model: str, download: Download = snapshot) -> int | None:
    """Tokens of a base model as its config says; None when it does not."""
    config = read_json(base_folder(model, download) / "config.json")
    inner = config.get("text_config")
    size = config.get("vocab_size", inner.get("vocab_size") if isinstance(inner, dict) else None)
    return size if isinstance(size, int) else None


def base_folder(
    model: str, download: Download = snapshot, files: Sequence[str] = ("config.json", "*.index.json")
) -> Path:
    """The folder of a base model; of a hub id one with those of its files that match patterns."""
    location = Path(model_location(model))
    return location if location.is_dir() else _fetched(model, files, download)


def _fetched(model: str, patterns: Sequence[str], download: Download) -> Path:
    name, revision = split_revision(model)
    try:
        return download(name, revision, patterns)
    except (OSError, ValueError) as error:
        reason = in_one_line(error)
        raise ModelNotFound(f"no model at {model!r}: {reason}; give a folder or a hub id") from error

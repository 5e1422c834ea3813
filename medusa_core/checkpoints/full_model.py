"""A full model that carries heads: the base model's own files, and the heads as one more shard."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from medusa_core.checkpoints.files import StoredTensors, open_file, read_json, write_tensors
from medusa_core.checkpoints.layouts import head_keys
from medusa_core.errors import HeadsMismatch, ModelNotFound

__all__ = ["copy_with_heads"]

# The forms in which transformers stores weights, the one it prefers first: whole, the index of shards, a shard's name.
FORMS = (
    ("model.safetensors", "model.safetensors.index.json", "model-{:05d}-of-{:05d}.safetensors"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-{:05d}-of-{:05d}.bin"),
)
HEADS_SHARD = "medusa_heads"
# Weights in other forms would only be a second copy; heads of their own would be found before those that are written.
LEFT_BEHIND = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.index.json")


def copy_with_heads(base: Path, folder: Path, heads: Mapping[str, Tensor], described: Mapping[str, Any]) -> None:
    """Copy a base model's weights, tokenizer and config into a folder, and add heads.

    heads:     tensors [...] by key.
    described: what config.json says beside the base's own fields.

    A model of one file becomes the first of two shards, since what loads it would not look for another.
    """
    for whole, index, shard in FORMS:
        if (base / index).is_file():
            stored = open_file(base / index)
            names = {file.name: file.name for file in stored.files.values()}
        elif (base / whole).is_file():
            stored = open_file(base / whole)
            names = {whole: shard.format(1, 2)}
        else:
            continue
        _refuse_heads(stored, base)
        added = HEADS_SHARD + Path(whole).suffix
        for old, new in names.items():
            _copy(base / old, folder / new)
        write_tensors(folder / added, heads)
        placed = {key: names[file.name] for key, file in stored.files.items()}
        known = read_json(base / index).get("metadata")
        size = sum((base / old).stat().st_size for old in names) + sum(tensor.nbytes for tensor in heads.values())
        total = {**(known if isinstance(known, dict) else {}), "total_size": size}
        _write_json(folder / index, {"metadata": total, "weight_map": {**placed, **dict.fromkeys(heads, added)}})
        _copy_the_rest(base, folder)
        _write_json(folder / "config.json", {**read_json(base / "config.json"), **described})
        return
    raise ModelNotFound(
        f"no weights of a base model in {str(base)!r}: it holds none of "
        f"{', '.join(name for whole, index, _ in FORMS for name in (whole, index))}"
    )


def _refuse_heads(stored: StoredTensors, base: Path) -> None:
    carried = head_keys(stored.files)
    if carried:
        raise HeadsMismatch(f"{str(base)!r} carries heads already, such as {carried[0]!r}; name the plain base model")


def _copy(source: Path, target: Path) -> None:
    if not source.is_file():
        raise ModelNotFound(f"the shard {str(source)!r} is named by the index and not there")
    shutil.copyfile(source, target)


def _copy_the_rest(base: Path, folder: Path) -> None:
    """Tokenizer, templates and whatever else describes the base; its card describes the base alone."""
    for file in sorted(base.iterdir()):
        is_weights = any(file.match(pattern) for pattern in LEFT_BEHIND)
        if file.is_file() and not is_weights and file.name not in ("config.json", "README.md", "calibration.json"):
            shutil.copyfile(file, folder / file.name)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

"""Read and write draft heads. Layouts are recognised by their tensor keys, never by what the config claims.

Both FasterDecoding heads-only layouts are read: `{h}.{l}.linear.weight` / `.bias` for residual block l of head h,
counted from 0, and, where each head owns an LM head, `{h}.{L}.weight`. Ours is the same, in safetensors.
"""

import json
import logging
import os
import pickle
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import safetensors
import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file
from torch import Tensor

from medusa_core.config import HeadsConfig
from medusa_core.errors import CheckpointError, HeadsMismatch, ModelNotFound
from medusa_core.heads import DraftHeads

__all__ = ["HEADS_FILES", "find_heads", "layout_of", "load_heads", "locate", "read_tensors", "save_heads"]

HEADS_FILES = ("medusa_lm_head.safetensors", "medusa_lm_head.pt")
# What training wrappers put before a key; they say nothing about the layout.
_PREFIX = re.compile(r"^(?:module\.|base_model\.model\.|medusa_heads?\.)+")
_BLOCK = re.compile(r"^(\d+)\.(\d+)\.linear\.(weight|bias)$")
_LM_HEAD = re.compile(r"^(\d+)\.(\d+)\.weight$")
# Rows a tokenizer's size and an LM head may differ by through padding to a round number.
_MAX_PADDING = 1024

_log = logging.getLogger(__name__)


def find_heads(model: str) -> Path | None:
    """The heads a checkpoint folder carries, in itself or in its `heads` folder; None when it has none."""
    for folder in (Path(model) / "heads", Path(model)):
        if any((folder / name).is_file() for name in HEADS_FILES):
            return folder
    return None


def load_heads(source: str | Path, lm_head: Tensor) -> DraftHeads:
    """Read heads from a folder, a file or a hub id, for a base model whose LM head is `lm_head` [V, H].

    Weights take the base's dtype and device. Raises ModelNotFound when there are none, HeadsMismatch when shapes,
    keys or the base do not fit, CheckpointError when a file is damaged or not a plain tensor file.
    """
    path = locate(source)
    tensors = {_strip(key): tensor for key, tensor in read_tensors(path).items()}
    config = layout_of(tensors, path)
    _compare_with_config(config, path.parent / "config.json")
    return _fill(config, tensors, lm_head, path)


def locate(source: str | Path) -> Path:
    """The one weight file of a heads folder, file or hub id."""
    path = Path(source)
    if path.is_file():
        return path
    if not path.is_dir():
        try:
            path = Path(
                snapshot_download(str(source), allow_patterns=[*HEADS_FILES, "config.json", "calibration.json"])
            )
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ModelNotFound(f"no heads at {str(source)!r}: {reason}; give a folder, a file or a hub id") from error
    for name in HEADS_FILES:
        if (path / name).is_file():
            return path / name
    raise ModelNotFound(f"no heads in {str(path)!r}: it holds neither {' nor '.join(HEADS_FILES)}")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors [...] of a file by key; `.pt` goes through the unpickler that builds nothing but tensors."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (safetensors.SafetensorError, EOFError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{str(path)!r} is damaged: {error}") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{str(path)!r} holds more than tensors and is refused, because loading it could run code; "
            "convert it to safetensors where you trust it"
        ) from error
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise CheckpointError(f"{str(path)!r} is not a state dict of tensors")
    return {str(key): value for key, value in loaded.items()}


def layout_of(tensors: Mapping[str, Tensor], path: Path) -> HeadsConfig:
    """Shape of the heads from their stripped keys: blocks [H, H], LM heads [V, H].

    Raises HeadsMismatch on any key, gap or shape that does not belong.
    """
    blocks: dict[tuple[int, int], Tensor] = {}
    lm_heads: dict[int, tuple[int, Tensor]] = {}
    for key, tensor in tensors.items():
        if block := _BLOCK.match(key):
            if block[3] == "weight":
                blocks[int(block[1]), int(block[2])] = tensor
        elif last := _LM_HEAD.match(key):
            lm_heads[int(last[1])] = (int(last[2]), tensor)
        else:
            raise HeadsMismatch(f"{str(path)!r} holds {key!r}, which is no draft head's tensor; the layout is unknown")
    if not blocks:
        raise HeadsMismatch(f"{str(path)!r} holds no residual blocks such as '0.0.linear.weight'")
    num_heads = 1 + max(head for head, _ in blocks)
    num_layers = 1 + max(layer for _, layer in blocks)
    missing = [f"{h}.{b}.linear.weight" for h in range(num_heads) for b in range(num_layers) if (h, b) not in blocks]
    if lm_heads:
        missing += [f"{h}.{num_layers}.weight" for h in range(num_heads) if lm_heads.get(h, (-1,))[0] != num_layers]
    if missing:
        raise HeadsMismatch(f"{str(path)!r} has {num_heads} heads of {num_layers} blocks but lacks {missing[0]!r}")
    hidden_size = blocks[0, 0].shape[-1]
    vocab_size = lm_heads[0][1].shape[0] if lm_heads else 1
    for key, tensor in tensors.items():
        expected = [hidden_size] if key.endswith(".bias") else [hidden_size, hidden_size]
        if _LM_HEAD.match(key):
            expected = [vocab_size, hidden_size]
        if list(tensor.shape) != expected:
            raise HeadsMismatch(f"{key!r} in {str(path)!r} has shape {list(tensor.shape)}, expected {expected}")
    return HeadsConfig(num_heads, num_layers, hidden_size, vocab_size, shared_lm_head=not lm_heads)


def save_heads(folder: Path, heads: DraftHeads, base_model: str) -> None:
    """Write heads in our layout; each file appears whole or not at all.

    base_model: name of the base model, recorded for people and for engines that start from the heads.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = heads.config
    tensors = {}
    for head in range(config.num_heads):
        for layer in range(config.num_layers):
            tensors[f"{head}.{layer}.linear.weight"] = heads.weight[layer, head]
            tensors[f"{head}.{layer}.linear.bias"] = heads.bias[layer, head]
        if heads.lm_head is not None:
            tensors[f"{head}.{config.num_layers}.weight"] = heads.lm_head[head]
    facts = {
        "base_model_name_or_path": base_model,
        "medusa_num_heads": config.num_heads,
        "medusa_num_layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
        # what FasterDecoding calls layouts with and without own LM heads
        "version": "2" if config.shared_lm_head else "1",
    }
    with tempfile.TemporaryDirectory(dir=folder) as staging:
        weights, description = Path(staging) / HEADS_FILES[0], Path(staging) / "config.json"
        save_file({key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}, weights)
        description.write_text(json.dumps(facts, indent=2) + "\n")
        for file in (weights, description):
            os.replace(file, folder / file.name)


def _strip(key: str) -> str:
    return _PREFIX.sub("", key).replace(".modules_to_save.default", "")


def _compare_with_config(config: HeadsConfig, path: Path) -> None:
    """Warn where a config claims another number of heads: public configs are often wrong, tensors never."""
    try:
        claimed = json.loads(path.read_text())["medusa_num_heads"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if claimed != config.num_heads:
        _log.warning("%s claims %s heads, the file holds %d; using the file", path, claimed, config.num_heads)


def _fill(config: HeadsConfig, tensors: Mapping[str, Tensor], lm_head: Tensor, path: Path) -> DraftHeads:
    """Heads on the base's device from tensors already checked against each other."""
    base_vocab, base_hidden = lm_head.shape
    if config.hidden_size != base_hidden:
        raise HeadsMismatch(
            f"the heads in {str(path)!r} were trained for hidden size {config.hidden_size}, "
            f"the base model has {base_hidden}; they belong to another base"
        )
    if not config.shared_lm_head and abs(config.vocab_size - base_vocab) > _MAX_PADDING:
        raise HeadsMismatch(
            f"the heads in {str(path)!r} draft from {config.vocab_size} tokens, "
            f"the base model has {base_vocab}; they belong to another base"
        )
    # Rows beyond the base's are padding; with fewer rows the heads merely never draft the last tokens.
    vocab_size = base_vocab if config.shared_lm_head else min(config.vocab_size, base_vocab)
    config = HeadsConfig(config.num_heads, config.num_layers, base_hidden, vocab_size, config.shared_lm_head)
    heads = DraftHeads(config, lm_head if config.shared_lm_head else lm_head[:1].expand(vocab_size, -1))
    lacking_bias = False
    with torch.no_grad():
        for head in range(config.num_heads):
            for layer in range(config.num_layers):
                heads.weight[layer, head] = tensors[f"{head}.{layer}.linear.weight"].to(lm_head)
                bias = tensors.get(f"{head}.{layer}.linear.bias")
                lacking_bias |= bias is None
                if bias is not None:
                    heads.bias[layer, head] = bias.to(lm_head)
            if heads.lm_head is not None:
                heads.lm_head[head] = tensors[f"{head}.{config.num_layers}.weight"][:vocab_size].to(lm_head)
    if lacking_bias:
        _log.warning("%s holds no biases for some blocks; zeros are used", path)
    return heads.eval().requires_grad_(False)

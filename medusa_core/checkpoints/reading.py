"""From stored tensors to draft heads, whichever layout they come in; what does not belong together is refused."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor

from medusa_core.checkpoints.agreement import refuse_another_tokenizer
from medusa_core.checkpoints.claims import false_claims
from medusa_core.checkpoints.files import (
    Download,
    StoredTensors,
    cached_snapshot,
    open_folder,
    open_source,
    read_json,
    snapshot,
)
from medusa_core.checkpoints.layouts import LAYOUTS, Part, SortedKeys, head_keys, kind_of, sort_keys
from medusa_core.checkpoints.quantized import dequantized
from medusa_core.checkpoints.shapes import ONE_LM_HEAD, shape_of
from medusa_core.config import HeadsConfig, model_location
from medusa_core.errors import HeadsMismatch
from medusa_core.heads import DraftHeads

__all__ = [
    "StoredHeads",
    "fill",
    "find_heads",
    "heads_location",
    "load_heads",
    "locate_heads",
    "open_heads",
    "read_heads",
]

# Rows a tokenizer's size and an LM head may differ by through padding to a round number.
MAX_PADDING = 1024
# What may stand in a block and in an LM head once scales are applied.
NAMES = {"block": ("weight", "bias"), "lm_head": ("weight",), "low_rank": ("down", "up")}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredHeads:
    """Heads as they were stored, each tensor under what it is.

    layout:    a key of LAYOUTS.
    tensors:   block weights [H, H] and biases [H], LM heads [V, H], low-rank factors [r, H] and [V, r], the extras.
    token_ids: [V] int64, the token behind each row of the LM heads; None when row i is token i.
    has_bias:  whether every block has one.
    is_quantized: whether weights had scales, which are undone here; `stored_bytes` is what they were with them.
    """

    path: Path
    layout: str
    config: HeadsConfig
    tensors: Mapping[Part, Tensor]
    token_ids: Tensor | None
    has_bias: bool
    is_quantized: bool
    stored_bytes: int

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that holds every tensor without loss."""
        dtypes = [tensor.dtype for part, tensor in self.tensors.items() if part.role in (*NAMES, ONE_LM_HEAD.role)]
        return reduce(torch.promote_types, dtypes)


def find_heads(model: str, cached: Callable[[str], Path | None] = cached_snapshot) -> Path | None:
    """The folder of the heads that a checkpoint carries, itself or its `heads` folder; None when it has none.

    Heads among a base model's own tensors are found in the index or the header; no weight is read. A hub id counts
    as far as it was fetched before, which `cached` knows.
    """
    root = Path(model) if Path(model).is_dir() else cached(model)
    if root is None:
        return None
    found = (folder for folder in (root / "heads", root) if open_folder(folder, head_keys) is not None)
    return next(found, None)


def heads_location(source: str) -> str:
    """Where the heads of a source are: `demo`, a model that carries some, or the folder, file or hub id itself."""
    location = model_location(source)
    found = find_heads(location) if Path(location).is_dir() else None
    return str(found) if found is not None else location


def locate_heads(source: str | Path, download: Download = snapshot) -> Path:
    """The file or the index of heads on this disk, where what belongs to them stands beside them; see load_heads.

    Of a hub id they are fetched, and a calibration with them.
    """
    return open_heads(source, download).path


def load_heads(
    source: str | Path, lm_head: Tensor, base: str | None = None, download: Download = snapshot
) -> DraftHeads:
    """Read heads from a folder, a file or a hub id, for a base model whose LM head is `lm_head` [V, H].

    source: a hub id may name a revision, `owner/name@refs/pr/1`.
    base:   where the base model is, whose tokenizer is compared with one that comes with the heads.

    Weights take the base's dtype and device. Raises ModelNotFound when there are none, HeadsMismatch when shapes,
    keys or the base do not fit, CheckpointError when a file is damaged or not a plain tensor file.
    """
    stored = open_heads(source, download)
    heads = read_heads(stored)
    for claim in false_claims(read_json(stored.folder / "config.json"), heads.layout, heads.config, heads.has_bias):
        _log.warning("%s claims %s; using the file", stored.folder / "config.json", claim)
    if base is not None:
        refuse_another_tokenizer(stored.folder, base)
    return fill(heads, lm_head, lm_head.dtype, lm_head.device)


def open_heads(source: str | Path, download: Download = snapshot) -> StoredTensors:
    """Where the tensors of heads are; see load_heads."""
    return open_source(source, head_keys, download)


def read_heads(stored: StoredTensors) -> StoredHeads:
    """Read and check the tensors of heads, and of nothing else; raises HeadsMismatch on what does not belong."""
    keys = sort_keys(stored.files, str(stored.path))
    raw = stored.read(keys.parts)
    tensors, is_quantized = dequantized({keys.parts[key]: tensor for key, tensor in raw.items()}, str(stored.path))
    spelt = {part: key for key, part in keys.parts.items()}
    for part in tensors:
        if part.role in NAMES and part.name not in NAMES[part.role]:
            raise HeadsMismatch(f"{str(stored.path)!r} holds {spelt[part]!r}, which no layout of draft heads has")
    tensors = _one_lm_head(tensors, keys.style)
    token_ids = _token_ids(tensors, str(stored.path))
    if token_ids is not None:
        tensors = _truncated(tensors, token_ids)
    rows = len(token_ids) if token_ids is not None else None
    config = shape_of(tensors, rows, keys.style, spelt, str(stored.path))
    blocks = config.num_heads * config.num_layers
    has_bias = sum(part.role == "block" and part.name == "bias" for part in tensors) == blocks
    layout = _layout(keys, config, token_ids, is_quantized)
    stored_bytes = sum(tensor.nbytes for tensor in raw.values())
    return StoredHeads(stored.path, layout, config, tensors, token_ids, has_bias, is_quantized, stored_bytes)


def _layout(keys: SortedKeys, config: HeadsConfig, token_ids: Tensor | None, is_quantized: bool) -> str:
    if keys.style != "numbered":
        return next(name for name, layout in LAYOUTS.items() if layout.style == keys.style)
    if is_quantized or (keys.has_base and keys.prefix == "medusa_heads"):
        return "modelopt"
    if keys.has_base:
        return "full"
    if token_ids is not None or config.lm_head_rank is not None or config.one_lm_head:
        return "medusa"
    return "medusa-v2" if config.shared_lm_head else "medusa-v1"


def _token_ids(tensors: Mapping[Part, Tensor], source: str) -> Tensor | None:
    """Which tokens the rows of the LM heads are, [V] int64; None when row i is token i."""
    extras = {part.role: tensor for part, tensor in tensors.items()}
    if "token_map" in extras:
        ids = extras["token_map"].long()
    elif "d2t" in extras:
        ids = extras["d2t"].long() + torch.arange(len(extras["d2t"]))
    else:
        return None
    if ids.dim() != 1 or len(ids) == 0 or bool((ids < 0).any()) or len(set(ids.tolist())) < len(ids):
        raise HeadsMismatch(f"the token map in {source!r} is not a list of different tokens: {list(ids.shape)}")
    return ids


def _truncated(tensors: Mapping[Part, Tensor], token_ids: Tensor) -> dict[Part, Tensor]:
    """LM heads of the whole vocabulary beside a token map are cut to its tokens, as vLLM cuts them."""
    last = int(token_ids.max())

    def cut(part: Part, tensor: Tensor) -> Tensor:
        is_whole = part.role in ("lm_head", "lm_head.weight") and len(tensor) > max(last, len(token_ids))
        return tensor[token_ids] if is_whole else tensor

    return {part: cut(part, tensor) for part, tensor in tensors.items()}


def _one_lm_head(tensors: Mapping[Part, Tensor], style: str) -> dict[Part, Tensor]:
    """An LM head that serves all heads stands under the first one's name in vLLM's files; here it has its own."""
    lm_heads = [part for part in tensors if part.role == "lm_head"]
    several = any(part.role == "block" and part.head > 0 for part in tensors)
    if style != "vllm" or [part.head for part in lm_heads] != [0] or not several or ONE_LM_HEAD in tensors:
        return dict(tensors)
    return {(ONE_LM_HEAD if part.role == "lm_head" else part): tensor for part, tensor in tensors.items()}


@torch.no_grad()
def fill(stored: StoredHeads, lm_head: Tensor | None, dtype: torch.dtype, device: torch.device) -> DraftHeads:
    """Draft heads from what was stored.

    lm_head: [V, H] of the base; None leaves heads that share it unable to draft, but good to be written again.
    """
    config, start = stored.config, None
    one = stored.tensors.get(ONE_LM_HEAD)
    if lm_head is not None:
        config, rows = _fit(stored, lm_head), lm_head.to(device, dtype)
        if one is not None and torch.equal(one[: len(rows)].to(rows), _drafted(rows, stored.token_ids, len(one))):
            config, one = replace(config, shared_lm_head=True, one_lm_head=False), None
        start = _drafted(rows, stored.token_ids, config.vocab_size)
    if not config.shared_lm_head:
        # one row stands for all, so that what is about to be overwritten takes its place once and in the right dtype
        start = torch.zeros(1, config.hidden_size, dtype=dtype, device=device).expand(config.vocab_size, -1)
    heads = DraftHeads(config, start, stored.token_ids).to(device, dtype)
    for part, tensor in stored.tensors.items():
        place = _place(heads, part)
        if place is not None and (part != ONE_LM_HEAD or one is not None):
            place.copy_(tensor[: len(place)])
    if not stored.has_bias:
        _log.warning("%s holds no biases for some blocks; zeros are used", stored.path)
    return heads.eval().requires_grad_(False)


def _place(heads: DraftHeads, part: Part) -> Tensor | None:
    """Where a stored tensor [...] goes; None for what is no parameter."""
    if part.role == "block":
        return (heads.weight if part.name == "weight" else heads.bias)[part.layer, part.head]
    stacked = {
        "lm_head": heads.lm_head,
        ONE_LM_HEAD.role: heads.lm_head,
        "low_rank": heads.up if part.name == "up" else heads.down,
    }.get(part.role)
    return stacked[part.head] if stacked is not None else None


def _drafted(lm_head: Tensor, token_ids: Tensor | None, rows: int) -> Tensor:
    """The rows of an LM head [V, H] for the tokens that are drafted."""
    return lm_head[token_ids.to(lm_head.device)] if token_ids is not None else lm_head[:rows]


def _fit(stored: StoredHeads, lm_head: Tensor) -> HeadsConfig:
    """The shape that stored heads have on a base model; raises HeadsMismatch when they belong to another."""
    config, (base_vocab, base_hidden) = stored.config, lm_head.shape
    if config.hidden_size != base_hidden:
        raise HeadsMismatch(
            f"the heads in {str(stored.path)!r} were trained for hidden size {config.hidden_size}, "
            f"the base model has {base_hidden}; they belong to another base"
        )
    if stored.token_ids is not None:
        last = int(stored.token_ids.max())
        if last >= base_vocab:
            raise HeadsMismatch(
                f"the heads in {str(stored.path)!r} draft token {last}, the base model has {base_vocab} tokens; "
                "they belong to another base"
            )
        return config
    if kind_of(config) == "shared":
        return replace(config, vocab_size=base_vocab)
    if abs(config.vocab_size - base_vocab) > MAX_PADDING:
        raise HeadsMismatch(
            f"the heads in {str(stored.path)!r} draft from {config.vocab_size} tokens, the base model has "
            f"{base_vocab}, and no token map says which; they belong to another base"
        )
    # Rows beyond the base's are padding; with fewer rows the heads merely never draft the last tokens.
    return replace(config, vocab_size=min(config.vocab_size, base_vocab))

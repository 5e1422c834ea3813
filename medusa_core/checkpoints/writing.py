"""From draft heads to files, in any layout that has a place for them; a file appears whole or not at all."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor

from medusa_core.checkpoints.files import write_tensors
from medusa_core.checkpoints.full_model import copy_with_heads
from medusa_core.checkpoints.layouts import LAYOUTS, LOW_RANK, STYLES, Facts, Layout, LMHeadKind, kind_of
from medusa_core.errors import CheckpointError, ConfigurationError, HeadsMismatch
from medusa_core.heads import DraftHeads
from medusa_core.reasons import in_one_line

__all__ = ["layout_named", "no_half_written", "save_heads", "write_heads"]


def save_heads(
    folder: Path,
    heads: DraftHeads,
    base_model: str,
    layout: str = "medusa",
    base: Path | None = None,
    base_vocab_size: int | None = None,
) -> None:
    """Write heads into a folder; each file appears whole or not at all.

    base_model:      name of the base model, recorded for people and for engines that start from the heads.
    layout:          a key of LAYOUTS.
    base:            folder of the base model, whose files a full model is made of.
    base_vocab_size: tokens of the base model, where they are not the rows of the LM heads.

    Raises HeadsMismatch when the layout has no place for these heads, CheckpointError when the disk refuses.
    """
    with no_half_written(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as staging:
            write_heads(Path(staging), heads, base_model, layout, base, base_vocab_size)
            for file in Path(staging).iterdir():
                os.replace(file, folder / file.name)


def write_heads(
    folder: Path,
    heads: DraftHeads,
    base_model: str | None,
    layout: str,
    base: Path | None,
    base_vocab_size: int | None,
) -> None:
    """Write heads into an empty folder that nobody looks at yet; see save_heads."""
    target = layout_named(layout)
    kind = _kind_written(heads, layout, target)
    facts = _facts(heads, layout, target, kind, base_model, base_vocab_size)
    tensors = _tensors(heads, target, kind)
    if target.file is None:
        if base is None:
            raise ConfigurationError(
                f"layout {layout} is a full model: name the folder of the base model whose files it is made of"
            )
        copy_with_heads(base, folder, tensors, target.config(facts))
        return
    write_tensors(folder / target.file, tensors)
    (folder / "config.json").write_text(json.dumps(target.config(facts), indent=2) + "\n", encoding="utf-8")


def layout_named(name: str) -> Layout:
    """The layout of a name; raises ConfigurationError that lists them."""
    if name not in LAYOUTS:
        raise ConfigurationError(f"layout {name!r} is unknown; use {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def _kind_written(heads: DraftHeads, name: str, layout: Layout) -> LMHeadKind:
    """Which LM heads the file will hold: those there are, else the same written out in full where they have a place."""
    config, kind = heads.config, kind_of(heads.config)
    if heads.token_ids is not None and not layout.truncated:
        able = ", ".join(key for key, other in LAYOUTS.items() if other.truncated)
        raise HeadsMismatch(
            f"layout {name} has no place for a truncated vocabulary, and these heads draft from {config.vocab_size} "
            f"tokens; use {able}"
        )
    if kind in layout.holds:
        if kind == "shared" and layout.shared_depth is not None and config.num_layers > layout.shared_depth:
            raise HeadsMismatch(
                f"layout {name} reads heads without LM heads only when they have {layout.shared_depth} block, "
                f"these have {config.num_layers}; use medusa-v2"
            )
        return kind
    wider: dict[LMHeadKind, tuple[LMHeadKind, ...]] = {
        "shared": ("one", "own"),
        "low-rank": ("own",),
        "one": ("own",),
        "own": (),
    }
    for other in wider[kind]:
        if other in layout.holds:
            return other
    held = ", ".join(key for key, other in LAYOUTS.items() if kind in other.holds)
    raise HeadsMismatch(f"layout {name} has no place for LM heads, and these heads have their own; use {held}")


def _facts(
    heads: DraftHeads, name: str, layout: Layout, kind: LMHeadKind, base_model: str | None, vocab_size: int | None
) -> Facts:
    config = heads.config
    if layout.needs_name and base_model is None:
        raise ConfigurationError(f"layout {name} names the base model in its config; say which it is with --model")
    # without a base nobody knows the vocabulary of heads that share its LM head
    is_known = heads.token_ids is None and (kind != "shared" or config.vocab_size > 1)
    total = vocab_size if vocab_size is not None else (config.vocab_size if is_known else None)
    truncated = config.vocab_size if heads.token_ids is not None else None
    if total is None and not layout.holds >= {"shared"}:
        raise ConfigurationError(
            f"layout {name} says how many tokens the base model has; name the base with --model, so that they can be "
            "counted"
        )
    return Facts(base_model, total, config, kind, truncated)


def _tensors(heads: DraftHeads, layout: Layout, kind: LMHeadKind) -> dict[str, Tensor]:
    """The heads' tensors [...] by key, on the CPU, no two of them in the same memory."""
    config, style = heads.config, STYLES[layout.style]
    found: dict[str, Tensor] = {}
    for head in range(config.num_heads):
        for layer in range(config.num_layers):
            for name, stacked in (("weight", heads.weight), ("bias", heads.bias)):
                found[style.block.format(head=head, layer=layer, name=name)] = stacked[layer, head]
        if kind == "own":
            key = style.lm_head.format(head=head, layer=config.num_layers, name="weight")
            found[key] = _whole_lm_head(heads, head)
        if kind == "low-rank" and heads.down is not None and heads.up is not None:
            for name, stacked in (("down", heads.down), ("up", heads.up)):
                found[LOW_RANK.format(head=head, name=name)] = stacked[head]
    prefixed = {layout.prefix + key: tensor for key, tensor in found.items()}
    if kind == "one":
        prefixed["lm_head.weight"] = _whole_lm_head(heads, 0)
    if heads.token_ids is not None:
        prefixed["token_map"] = heads.token_ids
    return {key: tensor.detach().cpu().contiguous().clone() for key, tensor in prefixed.items()}


def _whole_lm_head(heads: DraftHeads, head: int) -> Tensor:
    """The LM head [V, H] of a head as one matrix."""
    if not heads.has_base:
        raise ConfigurationError(
            "the layout holds whole LM heads and these heads use the base model's; name the base with --model, "
            "so that its LM head can be written out"
        )
    return heads.lm_head_of(head)


@contextmanager
def no_half_written(target: Path) -> Iterator[None]:
    """Say in one sentence what a disk refuses; whoever writes does it under a temporary name."""
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        raise _unwritable(target, error) from error
    except RuntimeError as error:
        # torch's writer of zip files raises nothing better
        if "PytorchStreamWriter" not in str(error) and "unexpected pos" not in str(error):
            raise
        raise _unwritable(target, error) from error


def _unwritable(target: Path, error: Any) -> CheckpointError:
    reason = getattr(error, "strerror", None)
    said = reason if reason is not None else in_one_line(error)
    return CheckpointError(f"cannot write {str(target)!r}: {said}; nothing was left there")

"""What a folder, a file or a hub id of heads holds, as plain values."""

import re
from dataclasses import dataclass
from pathlib import Path

from medusa_core.adapters import find_adapter
from medusa_core.calibration import CALIBRATION_FILE, Calibration
from medusa_core.checkpoints.claims import false_claims
from medusa_core.checkpoints.files import Download, read_json, snapshot
from medusa_core.checkpoints.layouts import LAYOUTS, LMHeadKind, kind_of
from medusa_core.checkpoints.reading import heads_location, open_heads, read_heads

__all__ = ["HeadAccuracy", "HeadsReport", "base_named_by", "inspect_heads"]


@dataclass(frozen=True)
class HeadAccuracy:
    """How often a head was right, from the calibration beside it: its likeliest token, and one of its five."""

    top1: float
    top5: float
    samples: int


@dataclass(frozen=True)
class HeadsReport:
    """Facts about stored heads.

    layout:       a key of the table of layouts; `title` says it in words.
    lm_head:      `own` one each, `one` for all, `shared` with the base, `low-rank` shared with a correction each.
    rank:         of a low-rank LM head; None without.
    vocab_size:   rows of the LM heads in the file; None where only the base's LM head is used.
    truncated:    whether these rows are only some of the base's tokens.
    dtype:        in which they are used; `is_quantized` says whether the file holds FP8 and scales.
    bytes:        of the heads' tensors in the file.
    base_model:   as the config names it; None when it names none.
    has_biases:   whether every block has one; missing ones are zeros.
    false_claims: what the config says that the file does not bear out.
    has_adapter:  whether an adapter stands beside the heads, with which the base is meant to be used.
    accuracies:   one for each head; None without a calibration beside the heads.
    """

    path: str
    layout: str
    title: str
    num_heads: int
    num_layers: int
    lm_head: LMHeadKind
    rank: int | None
    hidden_size: int
    vocab_size: int | None
    truncated: bool
    dtype: str
    is_quantized: bool
    bytes: int
    base_model: str | None
    has_biases: bool
    false_claims: tuple[str, ...]
    has_adapter: bool
    accuracies: tuple[HeadAccuracy, ...] | None


def inspect_heads(source: str, download: Download = snapshot) -> HeadsReport:
    """Say what heads a folder, a file, a hub id or `demo` holds.

    Raises ModelNotFound when there are none, HeadsMismatch when what is there fits no layout.
    """
    opened = open_heads(heads_location(source), download)
    stored = read_heads(opened)
    config, shape = read_json(opened.folder / "config.json"), stored.config
    calibration = opened.folder / CALIBRATION_FILE
    kind = kind_of(shape)
    has_rows = kind != "shared" or stored.token_ids is not None
    return HeadsReport(
        path=str(stored.path),
        layout=stored.layout,
        title=LAYOUTS[stored.layout].title,
        num_heads=shape.num_heads,
        num_layers=shape.num_layers,
        lm_head=kind,
        rank=shape.lm_head_rank,
        hidden_size=shape.hidden_size,
        vocab_size=shape.vocab_size if has_rows else None,
        truncated=stored.token_ids is not None,
        dtype=str(stored.dtype).removeprefix("torch."),
        is_quantized=stored.is_quantized,
        bytes=stored.stored_bytes,
        base_model=base_named_by(opened.folder),
        has_biases=stored.has_bias,
        false_claims=tuple(false_claims(config, stored.layout, shape, stored.has_bias)),
        has_adapter=find_adapter(opened.path) is not None,
        accuracies=_accuracies(Calibration.load(calibration)) if calibration.is_file() else None,
    )


def base_named_by(folder: Path) -> str | None:
    """The base model that a folder's config or, where that has no room for it, its card names; None without."""
    config = read_json(folder / "config.json")
    names = [config.get(field) for field in ("base_model_name_or_path", "_name_or_path")]
    card = folder / "README.md"
    if card.is_file():
        written = re.search(
            r"\A---\n(?:.*\n)*?base_model: *(\S+)\n(?:.*\n)*?---", card.read_text("utf-8", "replace")[:4096]
        )
        names += [written[1]] if written else []
    return next((name for name in names if isinstance(name, str) and name), None)


def _accuracies(calibration: Calibration) -> tuple[HeadAccuracy, ...]:
    return tuple(
        HeadAccuracy(shares[0] if shares else 0.0, sum(shares[:5]), samples)
        for shares, samples in zip(calibration.accuracies, calibration.samples, strict=True)
    )

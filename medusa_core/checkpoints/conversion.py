"""Heads from one layout into another, as a folder that is complete or not there."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from medusa_core.adapters import ADAPTER_FOLDER, find_adapter
from medusa_core.calibration import CALIBRATION_FILE, Calibration
from medusa_core.checkpoints.base_files import base_folder, loaded_index, read_lm_head, vocab_size_of
from medusa_core.checkpoints.card import heads_card
from medusa_core.checkpoints.files import Download, open_file, read_json, snapshot
from medusa_core.checkpoints.inspection import base_named_by
from medusa_core.checkpoints.layouts import Layout, kind_of
from medusa_core.checkpoints.reading import StoredHeads, fill, heads_location, open_heads, read_heads
from medusa_core.checkpoints.writing import layout_named, no_half_written, write_heads
from medusa_core.errors import ConfigurationError, HeadsMismatch

__all__ = ["convert_heads"]

TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*")


def convert_heads(
    source: str, target: Path, layout: str, base: str | None = None, download: Download = snapshot
) -> None:
    """Write the heads of a folder, a file, a hub id or `demo` into a new folder in another layout.

    base: name of the base model, as `layout` records it; its files are read where the layout holds what the heads
          share with it, and copied where it is a full model.

    Weights keep their values and dtype; a calibration beside the source goes along and into the model card, an adapter
    goes along. Raises
    ConfigurationError for an unknown layout, a folder in the way or a base that must be named; HeadsMismatch when
    the layout has no place for these heads; CheckpointError when the disk refuses.
    """
    chosen = layout_named(layout)
    target = target.absolute()
    _refuse_occupied(target)
    opened = open_heads(heads_location(source), download)
    stored, described = read_heads(opened), read_json(opened.folder / "config.json")
    named = base if base is not None else base_named_by(opened.folder)
    needs_lm_head = kind_of(stored.config) in ("shared", "low-rank") and kind_of(stored.config) not in chosen.holds
    lm_head = read_lm_head(base, download) if base is not None and needs_lm_head else None
    heads = fill(stored, lm_head, stored.dtype, torch.device("cpu"))
    adapter = find_adapter(opened.path)
    if adapter is not None and chosen.file is None:
        raise HeadsMismatch(
            f"these heads belong to their base with the adapter {str(adapter)!r}; a full model would hold the base "
            "without it: merge it first, or choose a layout of heads only"
        )
    calibration = opened.folder / CALIBRATION_FILE
    measured = Calibration.load(calibration) if calibration.is_file() else None
    with _new_folder(target) as staging:
        whole = _whole_base(base, download) if chosen.file is None else None
        write_heads(staging, heads, named, layout, whole, _vocab_size(stored, described, chosen, base, download))
        dtype = str(stored.dtype).removeprefix("torch.")
        card = heads_card(named, layout, heads.config, dtype, measured)
        (staging / "README.md").write_text(card, encoding="utf-8")
        if measured is not None:
            shutil.copyfile(calibration, staging / CALIBRATION_FILE)
        if adapter is not None:
            shutil.copytree(adapter, staging / ADAPTER_FOLDER)
        if layout == "medusa-v2" and base is not None:
            _copy_tokenizer(base_folder(base, download, TOKENIZER_FILES), staging)


def _vocab_size(
    stored: StoredHeads, described: dict[str, object], layout: Layout, base: str | None, download: Download
) -> int | None:
    """Tokens of the base model, as far as the file does not say itself."""
    claimed = described.get("vocab_size")
    least = int(stored.token_ids.max()) + 1 if stored.token_ids is not None else stored.config.vocab_size
    if isinstance(claimed, int) and claimed >= least and (stored.token_ids is not None or stored.config.shared_lm_head):
        return claimed
    needs_more = stored.token_ids is not None or (stored.config.shared_lm_head and "shared" not in layout.holds)
    return vocab_size_of(base, download) if base is not None and needs_more else None


def _whole_base(base: str | None, download: Download) -> Path:
    """The folder of a base model with all of its files."""
    if base is None:
        raise ConfigurationError("the layout is a full model: name with --model the base whose files it is made of")
    folder = base_folder(base, download)
    if any(not file.is_file() for file in _weights_named(folder)):
        raise HeadsMismatch(f"the weights of {base!r} are not all here; download the model and name its folder")
    return folder


def _weights_named(folder: Path) -> Iterator[Path]:
    index = loaded_index(folder)
    if index is not None:
        yield from set(open_file(index).files.values())


def _copy_tokenizer(folder: Path, staging: Path) -> None:
    for pattern in TOKENIZER_FILES:
        for file in filter(Path.is_file, folder.glob(pattern)):
            shutil.copyfile(file, staging / file.name)


def _refuse_occupied(target: Path) -> None:
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise ConfigurationError(f"{str(target)!r} exists and is not an empty folder; name another or empty it")


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A folder under a temporary name that becomes `target` when all went well and vanishes otherwise."""
    staging = target.with_name(f".{target.name}.partial")
    with no_half_written(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if staging.exists():
            shutil.rmtree(staging)  # of a conversion that was killed
        staging.mkdir()
        try:
            yield staging
            if target.is_dir():
                target.rmdir()
            staging.rename(target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

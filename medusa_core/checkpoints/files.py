"""Where the tensors of a checkpoint are: a file, a folder, shards behind an index, a hub id. Knows no layout."""

import json
import logging
import pickle
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import safetensors
import torch
from huggingface_hub import snapshot_download
from safetensors.torch import save_file
from torch import Tensor

from medusa_core.config import split_revision
from medusa_core.errors import CheckpointError, ModelNotFound
from medusa_core.reasons import in_one_line

__all__ = [
    "HEADS_FILES",
    "Download",
    "HeadKeys",
    "StoredTensors",
    "cached_snapshot",
    "from_hub",
    "indices",
    "open_file",
    "open_folder",
    "open_source",
    "read_json",
    "snapshot",
    "write_tensors",
]

_log = logging.getLogger(__name__)

HEADS_FILES = ("medusa_lm_head.safetensors", "medusa_lm_head.pt")
# Where heads stand in files that are not named after them: full models, draft models, converted ones, PEFT's.
MODEL_FILES = (
    "model.safetensors",
    "rank0.safetensors",
    "pytorch_model.bin",
    "adapter_model.safetensors",
    "adapter_model.bin",
)
# What is small and says what a repository holds.
DESCRIPTIONS = ("*.index.json", "config.json", "calibration.json", "tokenizer.*", "tokenizer_config.json")

# What the unpickler raises on bytes that are no pickle, or only the beginning of one.
UNREADABLE = (
    OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError, struct.error,
    ArithmeticError,
)  # fmt: skip

HeadKeys = Callable[[Iterable[str]], Sequence[str]]
"""Those of some keys that belong to heads."""

Download = Callable[[str, str | None, Sequence[str]], Path]
"""Files of a hub id at a revision that match patterns, in a local folder."""


@dataclass(frozen=True)
class StoredTensors:
    """The keys of a checkpoint and the file behind each; nothing is read before it is asked for.

    path: the file, or the index of the shards.
    """

    path: Path
    files: Mapping[str, Path]

    @property
    def folder(self) -> Path:
        """Where configuration, tokenizer and calibration stand."""
        return self.path.parent

    def read(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """The tensors [...] of some keys on the CPU, out of only the files that hold them."""
        by_file: dict[Path, list[str]] = {}
        for key in keys:
            by_file.setdefault(self.files[key], []).append(key)
        found: dict[str, Tensor] = {}
        for file, wanted in by_file.items():
            if not file.is_file():
                raise CheckpointError(f"{str(self.path)!r} names the shard {file.name!r}, which is not beside it")
            found |= _read(file, wanted)
        return found


def open_source(source: str | Path, head_keys: HeadKeys, download: Download) -> StoredTensors:
    """The tensors of heads in a file, a folder or a hub id, `owner/name` or `owner/name@revision`.

    Raises ModelNotFound when there are none, CheckpointError when a file is damaged or more than tensors.
    """
    path = Path(source)
    if path.is_file():
        return open_file(path)
    if not path.is_dir():
        path = from_hub(str(source), head_keys, download)
    found = open_folder(path, head_keys)
    if found is None:
        raise ModelNotFound(
            f"no heads in {str(path)!r}: it holds neither {' nor '.join(HEADS_FILES)}, and no index and none of "
            f"{', '.join(MODEL_FILES)} with the keys of heads"
        )
    return found


def open_folder(folder: Path, head_keys: HeadKeys) -> StoredTensors | None:
    """The first file or index of a folder that holds heads; None when none does. Reads headers and indices only.

    A file that is named after heads must be readable. Of others it is enough that one is: a base model often keeps
    stale or empty forms of its weights beside the one that is loaded.
    """
    named = next((folder / name for name in HEADS_FILES if (folder / name).is_file()), None)
    if named is not None:
        return open_file(named)
    unreadable: list[CheckpointError] = []
    others = [*indices(folder), *(folder / name for name in MODEL_FILES if (folder / name).is_file())]
    for path in others:
        try:
            stored = open_file(path)
        except CheckpointError as error:
            unreadable.append(error)
            continue
        if head_keys(stored.files):
            return stored
    if unreadable and len(unreadable) == len(others):
        raise unreadable[0]
    for reason in unreadable:
        _log.warning("passed over in the search for heads: %s", reason)
    return None


def indices(folder: Path) -> list[Path]:
    """The indices of shards in a folder, those of safetensors before those of pickles of the same tensors."""
    return [path for kind in ("safetensors", "bin") for path in sorted(folder.glob(f"*.{kind}.index.json"))]


def open_file(path: Path) -> StoredTensors:
    """The keys of one file, or of the shards an index names."""
    if path.suffix == ".json":
        names = read_json(path).get("weight_map")
        if not isinstance(names, dict):
            raise CheckpointError(f"{str(path)!r} is no index of shards: it has no 'weight_map'")
        return StoredTensors(path, {key: path.parent / _inside(str(name), path) for key, name in names.items()})
    return StoredTensors(path, dict.fromkeys(_keys(path), path))


def _inside(name: str, index: Path) -> str:
    """The name of a shard, which an index from anywhere must not lead out of its folder."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise CheckpointError(f"{str(index)!r} names the shard {name!r}, which is outside of its folder")
    return name


def _keys(path: Path) -> list[str]:
    if path.suffix != ".safetensors":
        return list(_unpickle(path))
    with _calling_it_damaged(path), safetensors.safe_open(path, framework="pt") as file:
        return list(file.keys())


def _read(path: Path, keys: Sequence[str]) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        loaded = _unpickle(path)
        return {key: loaded[key] if key in loaded else _misses(path, key) for key in keys}
    with _calling_it_damaged(path), safetensors.safe_open(path, framework="pt") as file:
        known = set(file.keys())
        return {key: file.get_tensor(key) if key in known else _misses(path, key) for key in keys}


def _misses(path: Path, key: str) -> NoReturn:
    raise CheckpointError(f"the index says that {key!r} is in {str(path)!r}, which does not hold it")


def _unpickle(path: Path) -> dict[str, Tensor]:
    """All tensors of a pickled state dict, through the unpickler that builds nothing but tensors."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{str(path)!r} holds more than tensors and is refused, because loading it could run code; "
            "convert it to safetensors where you trust it"
        ) from error
    except UNREADABLE as error:
        raise _damaged(path, error) from error
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise CheckpointError(f"{str(path)!r} is not a state dict of tensors")
    return {str(key): value for key, value in loaded.items()}


def _is_zip(path: Path) -> bool:
    """Whether torch can map the file into memory, which it cannot for what torch before 1.6 wrote."""
    with _calling_it_damaged(path), path.open("rb") as file:
        return file.read(2) == b"PK"


@contextmanager
def _calling_it_damaged(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: BaseException) -> CheckpointError:
    return CheckpointError(f"{str(path)!r} is damaged: {in_one_line(error)}")


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors [...] as the file's name says, safetensors or a pickled state dict."""
    path.touch()
    mode = path.stat().st_mode
    if path.suffix == ".safetensors":
        save_file(dict(tensors), path, metadata={"format": "pt"})
    else:
        torch.save(dict(tensors), path)
    # safetensors leaves a file that nobody but its writer may read, such as a server under another user
    path.chmod(mode)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, empty when there is no such file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{str(path)!r} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{str(path)!r} holds no JSON object")
    return content


def from_hub(source: str, head_keys: HeadKeys, download: Download) -> Path:
    """A local folder with what is needed of a hub id: of a full model only the shards that hold heads.

    What a repository holds in several forms is fetched in one, safetensors where there are some.
    """
    name, at = split_revision(source)
    try:
        folder = download(name, at, DESCRIPTIONS)
        for file in HEADS_FILES:
            if (download(name, at, [file]) / file).is_file():
                return folder
        for stored in map(open_file, indices(folder)):
            shards = {stored.files[key].name for key in head_keys(stored.files)}
            if shards:
                return download(name, at, sorted(shards))
        for file in MODEL_FILES:
            if (download(name, at, [file]) / file).is_file() and head_keys(open_file(folder / file).files):
                break
        return folder
    except (OSError, ValueError) as error:
        reason = in_one_line(error)
        raise ModelNotFound(
            f"no heads at {source!r}: {reason}; give a folder, a file or a hub id such as 'owner/name@refs/pr/1'"
        ) from error


def snapshot(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """`Download` from the hub itself."""
    return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))


def cached_snapshot(source: str, cache: Path | None = None) -> Path | None:
    """The folder of a hub id of which something was fetched before; asks nobody. `cache` is the hub's own folder."""
    name, revision = split_revision(source)
    try:
        # without a pattern the hub's library finds a snapshot only once all files of the repository are there
        found = snapshot_download(
            name, revision=revision, cache_dir=cache, local_files_only=True, allow_patterns=["config.json"]
        )
    except (OSError, ValueError):
        return None
    return Path(found)

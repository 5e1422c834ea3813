"""`medusa doctor`."""

import os
import shutil
from importlib import metadata
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from server.commands.options import Heads, Model
from server.commands.shared import busy, one_line_errors, without_codes

__all__ = ["doctor"]

UNHEALTHY = 1
MARKS = {True: "[green]ok[/]     ", None: "[yellow]could be[/]", False: "[red]bad[/]    "}
# A model of a billion parameters in bfloat16, and what is read of it.
LEAST_DISK, LEAST_MEMORY = 5 * 2**30, 2 * 2**30


def doctor(model: Model = "demo", heads: Heads = None) -> None:
    """Say what this machine has and lacks, whether the packages fit, and whether the heads fit the model."""
    out, notes = Console(soft_wrap=True, highlight=False), Console(stderr=True)
    with one_line_errors(notes):
        rows = [*_packages(), _disk(), *_memory(Path("/proc/meminfo"))]
        with busy(notes, "looking at devices, the compiler and the model"):
            from medusa_core import check_machine, check_model

            found = [*check_machine(), *check_model(model, heads)]
        rows += [(finding.name, finding.text, finding.is_good) for finding in found]
    for name, text, is_good in rows:
        out.print(f"{MARKS[is_good]} {escape(name):<13} {escape(without_codes(text))}")
    if any(is_good is False for _, _, is_good in rows):
        raise SystemExit(UNHEALTHY)


def _packages() -> list[tuple[str, str, bool | None]]:
    """Whether what is installed is what the server was made for."""
    from packaging.requirements import Requirement

    wanted = [Requirement(line) for line in metadata.requires("medusa-server") or ()]
    rows: list[tuple[str, str, bool | None]] = []
    for requirement in wanted:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            rows.append((requirement.name, f"is not installed; {requirement.specifier} is needed", False))
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            rows.append((requirement.name, f"is {version}, {requirement.specifier} is needed", False))
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("medusa-server", "torch", "transformers"))
    return rows if rows else [("packages", versions, True)]


def _disk() -> tuple[str, str, bool | None]:
    home = os.environ.get("HF_HOME")
    folder = Path(home) if home is not None else Path.home() / ".cache" / "huggingface"
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    return "disk", f"{free / 2**30:.1f} GiB free for models in {folder}", True if free >= LEAST_DISK else None


def _memory(meminfo: Path) -> list[tuple[str, str, bool | None]]:
    """What programs can have, files that the system only keeps at hand left out; nothing where it does not say."""
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
    except OSError:
        return []
    facts = dict(line.split(":", 1) for line in lines)
    free = int(facts["MemAvailable"].split()[0]) * 2**10
    return [("memory", f"{free / 2**30:.1f} GiB free", True if free >= LEAST_MEMORY else None)]

"""What ran where: figures mean nothing without it."""

import os
import platform
import subprocess
from pathlib import Path

import torch
import transformers

from medusa_core.assembly import device_name

__all__ = ["machine"]


def machine() -> dict[str, object]:
    """Processor, card, threads, versions and, in a checkout, the revision."""
    has_card = torch.cuda.is_available()
    return {
        "cpu": device_name(torch.device("cpu")),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device_name(torch.device("cuda")) if has_card else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "revision": _revision(),
        "load_average": os.getloadavg()[0],
    }


def _revision() -> str | None:
    """The commit of the checkout that this package stands in; None for an installed one."""
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():
        return None
    command = ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()

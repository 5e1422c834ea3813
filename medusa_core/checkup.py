"""What this machine has for a model, and whether heads fit it, found out without loading the model."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from medusa_core.checkpoints import find_heads
from medusa_core.checkpoints.inspection import inspect_heads
from medusa_core.config import model_location
from medusa_core.errors import MedusaError
from medusa_core.fusion.native import build
from medusa_core.loading import read_config, refuse_by_config

__all__ = ["Finding", "check_machine", "check_model"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    is_good: None for what is slower or smaller than it could be, and works.
    """

    name: str
    text: str
    is_good: bool | None = True


def check_machine() -> list[Finding]:
    """Devices and the C compiler."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = [Finding("processor", f"{cores} cores, {torch.backends.cpu.get_cpu_capability()}"), *_gpus()]
    if build() is not None:
        return [*found, Finding("C compiler", "builds the kernels for small models on a CPU")]
    return [*found, Finding("C compiler", "none that builds kernels; install gcc, small models are faster then", None)]


def _gpus() -> list[Finding]:
    if torch.version.cuda is None:
        return [Finding("CUDA", "this torch is built without CUDA; models run on the CPU", None)]
    if not torch.cuda.is_available():
        return [Finding("CUDA", f"torch has CUDA {torch.version.cuda}, but no device or driver answers", None)]
    found = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        major, minor = torch.cuda.get_device_capability(index)
        name = f"{torch.cuda.get_device_name(index)}, compute capability {major}.{minor}"
        found.append(Finding(f"cuda:{index}", f"{name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"))
    return found


def check_model(model: str, heads: str | None) -> list[Finding]:
    """Whether the model can be served, and whether the heads, None for those in its folder, are made for one like it.

    Reads configurations and the shapes of the heads; a hub id may be asked of the hub.
    """
    try:
        config = read_config(model_location(model))
        refuse_by_config(config)
    except MedusaError as error:
        return [Finding("model", str(error), False)]
    size = config.get_text_config().hidden_size
    found = [Finding("model", f"{config.model_type} with hidden size {size}")]
    none = Finding("heads", "none in the model's folder; trees come from the text alone", None)
    is_folder = Path(model_location(model)).is_dir()
    try:
        if heads is None and is_folder and find_heads(model_location(model)) is None:
            return [*found, none]
        report = inspect_heads(heads if heads is not None else model)
    except MedusaError as error:
        # why the hub has none is not told apart from why it gives none
        return [*found, none if heads is None and not is_folder else Finding("heads", str(error), False)]
    if report.hidden_size != size:
        text = f"made for hidden size {report.hidden_size}, the model has {size}; these are another model's heads"
        return [*found, Finding("heads", text, False)]
    text = f"{report.num_heads} heads in layout {report.layout} fit"
    if report.accuracies is None:
        return [
            *found,
            Finding("heads", f"{text}, but were never calibrated: medusa calibrate makes trees better", None),
        ]
    return [*found, Finding("heads", f"{text} and are calibrated")]

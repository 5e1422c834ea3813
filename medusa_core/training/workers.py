"""The processes that train together: one alone, or as many as `accelerate launch` or `torchrun` started.

Each computes a part of a step's rows. Losses and gradients are summed over all of them, so a run gives the same curve
whatever their number.
"""

import os
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from medusa_core.errors import ConfigurationError
from medusa_core.loading import choose_device

__all__ = ["Alone", "Launched", "Workers", "of_the_leader", "sum_gradients", "workers_of_this_launch"]


class Workers(Protocol):
    """This process among those that train together; rank 0 leads, and alone writes files."""

    rank: int
    count: int
    device: torch.device

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes of a tensor [...] that each of them has."""
        ...

    def wait(self) -> None:
        """Return once every process has come here."""
        ...


class Alone:
    """One process."""

    rank, count = 0, 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def sum(self, tensor: Tensor) -> Tensor:
        """The tensor [...] itself."""
        return tensor

    def wait(self) -> None:
        """There is nobody to wait for."""


class Launched:
    """One of the processes that a launcher started, through `accelerate`."""

    def __init__(self, is_cpu: bool) -> None:
        try:
            from accelerate import Accelerator  # type: ignore[import-untyped]
        except ImportError as error:
            raise ConfigurationError(
                "training in several processes needs accelerate: pip install 'medusa-server[train]'"
            ) from error
        self._accelerator: Any = Accelerator(cpu=is_cpu)
        self.rank: int = self._accelerator.process_index
        self.count: int = self._accelerator.num_processes
        self.device: torch.device = self._accelerator.device

    def sum(self, tensor: Tensor) -> Tensor:
        """See Workers.sum; the tensor is [...]."""
        summed: Tensor = self._accelerator.reduce(tensor, reduction="sum")
        return summed

    def wait(self) -> None:
        """See Workers.wait."""
        self._accelerator.wait_for_everyone()


def workers_of_this_launch(device: str) -> Workers:
    """The processes this one was started with; `device` is auto, cpu or cuda, each process takes a GPU of its own."""
    chosen = choose_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Alone(chosen)
    return Launched(is_cpu=chosen.type == "cpu")


def of_the_leader(workers: Workers, value: float) -> float:
    """The leader's number in every process: what all decide by, though their devices may round differently."""
    own = torch.tensor(value if workers.rank == 0 else 0.0, dtype=torch.float64, device=workers.device)
    return float(workers.sum(own))


def sum_gradients(workers: Workers, parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its sum over all processes, in one exchange."""
    if workers.count == 1:
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in trained]
    summed = workers.sum(torch.cat([gradient.flatten() for gradient in gradients]))
    start = 0
    for parameter in trained:
        parameter.grad = summed[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()

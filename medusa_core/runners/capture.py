"""How work reaches a device: recorded once and replayed from then on, or simply done again.

What needs CUDA stands here and is as little as can be. Everything around it, in cuda_graph.py, cannot tell the two
launchers apart.
"""

import logging
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from medusa_core.errors import EngineError

__all__ = ["CudaLauncher", "HostReads", "Launcher", "PlainLauncher"]

_log = logging.getLogger(__name__)

Work = Callable[[], None]


class Launcher(Protocol):
    """Does work over buffers that stay where they are: work reads them, and leaves its results in them."""

    def warm_up(self, work: Work) -> None:
        """Do the work once, as it would be done while it is recorded."""
        ...

    def capture(self, work: Work) -> Work:
        """Record the work without doing it; what is returned does it."""
        ...

    def fetch(self, row: Tensor, slot: int) -> Callable[[], list[int]]:
        """Start to copy a row [R] int64 to the host, behind the work done so far; what is returned waits for it.

        slot: 0 or 1; a row must have been read before its slot is used again.
        """
        ...


class PlainLauncher:
    """Does all work when it is asked to, on any device; stands in for recorded work where nothing can be recorded."""

    def warm_up(self, work: Work) -> None:
        """See Launcher.warm_up."""
        work()

    def capture(self, work: Work) -> Work:
        """See Launcher.capture."""
        return work

    def fetch(self, row: Tensor, slot: int) -> Callable[[], list[int]]:
        """See Launcher.fetch; row [R] int64."""
        values: list[int] = row.tolist()
        return lambda: values


class CudaLauncher:
    """Records work as CUDA graphs that share one memory pool.

    Sharing is safe, because only one graph runs at a time and what one leaves for the next is in buffers from outside
    the pool. Source: PyTorch's notes on CUDA semantics, "Graph memory management".
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        self._pinned = [torch.empty(0, dtype=torch.int64)] * 2
        # blocking: a host that waits for a step sleeps, and lets go of the interpreter's lock
        self._events = [torch.cuda.Event(blocking=True) for _ in self._pinned]  # type: ignore[no-untyped-call]

    def warm_up(self, work: Work) -> None:
        """See Launcher.warm_up; on the stream that records, whose libraries then have what they need."""
        current = torch.cuda.current_stream(self._device)
        self._side.wait_stream(current)
        with torch.cuda.stream(self._side):
            work()
        current.wait_stream(self._side)

    def capture(self, work: Work) -> Work:
        """See Launcher.capture; raises EngineError when the work holds something that cannot be recorded."""
        graph = torch.cuda.CUDAGraph()
        recording = torch.cuda.graph(graph, pool=self._pool, stream=self._side, capture_error_mode="thread_local")
        try:
            # the outer context brings the current stream back even where the recording cannot be ended
            with torch.cuda.stream(torch.cuda.current_stream(self._device)), recording:
                work()
        except torch.OutOfMemoryError:
            raise  # whoever keeps memory may give some back
        except RuntimeError as error:
            raise EngineError(
                f"a step cannot be recorded as a CUDA graph ({error}); start with runner eager"
            ) from error
        replay: Work = graph.replay
        return replay

    def fetch(self, row: Tensor, slot: int) -> Callable[[], list[int]]:
        """See Launcher.fetch; row [R] int64."""
        length = row.shape[0]
        if self._pinned[slot].shape[0] < length:
            self._pinned[slot] = torch.empty(length, dtype=torch.int64, pin_memory=True)
        target, event = self._pinned[slot][:length], self._events[slot]
        target.copy_(row, non_blocking=True)
        event.record(torch.cuda.current_stream(self._device))

        def read() -> list[int]:
            event.synchronize()
            values: list[int] = target.tolist()
            return values

        return read


class HostReads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Names, while it is entered, the operations that make the host wait for a value of the device.

    Work that holds one cannot be recorded: mixtures of experts in eager form ask which experts are used, for one.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at one operation, then let it happen."""
        named = kwargs if kwargs is not None else {}
        if func.overloadpacket in _reading() or _is_bool_index(func, args) or _crosses(func, args, named):
            self.found.append(str(func))
        return func(*args, **named)


def _reading() -> tuple[Any, ...]:
    aten = torch.ops.aten
    return (
        aten._local_scalar_dense, aten.item, aten.is_nonzero, aten.equal, aten.nonzero, aten.masked_select,
        aten._unique2, aten.unique_consecutive, aten.unique_dim,
    )  # fmt: skip


def _is_bool_index(func: Any, args: Any) -> bool:
    """Whether something is picked by a mask, so that the size of what comes out depends on values."""
    if func.overloadpacket not in (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_):
        return False
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])


def _crosses(func: Any, args: Any, named: Any) -> bool:
    """Whether values go from the host to a device or back; a single number beside a tensor is part of the operation."""
    aten = torch.ops.aten
    if func.overloadpacket is aten.lift_fresh:  # a tensor made of values of the host; one number may stay there
        made: Tensor = args[0]
        return made.device.type != "cpu" or made.dim() > 0
    if func.overloadpacket not in (aten._to_copy, aten.copy_):
        return False
    devices = {value.device.type for value in args if isinstance(value, Tensor)}
    if named.get("device") is not None:
        devices.add(torch.device(named["device"]).type)
    return len(devices) > 1

"""Kernels in C for small models on a CPU, built by the system's compiler when a model is loaded.

Nothing of it stays on disk. Where there is no compiler, or it knows too little, torch's own kernels do the work.
"""

import ctypes
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from medusa_core.fusion.kernels import AttentionFunction, Kernels, TorchKernels

__all__ = ["NativeKernels", "build", "choose_kernels"]

_OPTIONS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
_LANES = 8
# Passes of more rows, as prefill has them, are better served by libraries that rearrange the weights first.
_MOST_ROWS = 32
_BUILD_TIMEOUT_S = 60.0
# So that chance does not choose: two kernels' results differ in their last bits.
_CLEARLY = 0.95
_TRIAL_ROWS, _TRIALS = (1, 8), 4
_CACHES, _MOST_COPIES = 2**25, 200
_POINTER, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_long, ctypes.c_float
_ARGUMENTS = {
    "product": [_POINTER] * 4 + [_LONG] * 4,
    "rms_norm": [_POINTER] * 3 + [_LONG] * 2 + [_FLOAT],
    "gate_silu": [_POINTER] * 2 + [_LONG] * 2,
    "turn": [_POINTER] * 2 + [_LONG] * 5,
    "attend": [_POINTER] * 7 + [_LONG] * 6 + [_FLOAT],
}


def choose_kernels(device: torch.device, dtype: torch.dtype, attention: AttentionFunction, compiled: bool) -> Kernels:
    """The fastest kernels there are for a device and a dtype; none that must be compiled unless `compiled`."""
    others = TorchKernels(attention)
    library = build() if compiled and device.type == "cpu" and dtype == torch.float32 else None
    return NativeKernels(library, others) if library is not None else others


class NativeKernels:
    """See Kernels; float32 on a CPU, and what they do not cover is left to torch."""

    def __init__(self, library: ctypes.CDLL, others: Kernels) -> None:
        """The functions of kernels.c in a loaded library, and who does what those do not."""
        self._library, self._others = library, others
        self._suited: dict[tuple[int, ...], Kernels] = {}

    def suited(self, weight: Tensor) -> Kernels:
        """See Kernels: weight [out, in] is tried once for each shape and number of torch's threads."""
        shape = (*weight.shape, torch.get_num_threads())
        if shape not in self._suited:
            # more than caches hold, so that each product finds its weight in memory, as in a step
            copies = [weight.clone() for _ in range(min(_MOST_COPIES, 1 + _CACHES // weight.nbytes))]
            is_faster = _seconds(self, copies) < _CLEARLY * _seconds(self._others, copies)
            self._suited[shape] = self if is_faster else self._others
        return self._suited[shape]

    def product(self, rows: Tensor, weight: Tensor, added: Tensor | None) -> Tensor:
        """See Kernels: [N, in], [out, in] and [N, out] or [out] to [N, out]."""
        (num_rows, width), out = rows.shape, weight.shape[0]
        if num_rows > _MOST_ROWS or width % _LANES or out < _LANES:
            return self._others.product(rows, weight, added)
        rows, result = rows.contiguous(), rows.new_empty(num_rows, out)
        stride = 0 if added is None or added.dim() == 1 else out
        place = added.data_ptr() if added is not None else None
        self._library.product(
            rows.data_ptr(), weight.data_ptr(), place, result.data_ptr(), num_rows, width, out, stride
        )
        return result

    def rms_norm(self, rows: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See Kernels: [N, H] to [N, H]."""
        num_rows, width = rows.shape
        if width % _LANES:
            return self._others.rms_norm(rows, weight, eps)
        result = torch.empty_like(rows)
        self._library.rms_norm(rows.data_ptr(), weight.data_ptr(), result.data_ptr(), num_rows, width, eps)
        return result

    def gate_silu(self, rows: Tensor) -> Tensor:
        """See Kernels: [N, 2 * I] to [N, I]."""
        num_rows, width = rows.shape[0], rows.shape[1] // 2
        result = rows.new_empty(num_rows, width)
        self._library.gate_silu(rows.data_ptr(), result.data_ptr(), num_rows, width)
        return result

    def turn(self, heads: Tensor, num_turned: int, factors: Tensor) -> None:
        """See Kernels: [N, heads, D] by [N, 2, D']."""
        num_rows, num_heads, dim = heads.shape
        self._library.turn(
            heads.data_ptr(), factors.data_ptr(), num_rows, num_turned, num_heads, dim, factors.shape[-1]
        )

    def attend(self, heads: Tensor, kept: Tensor, places: Tensor, mask: Tensor, scaling: float) -> Tensor:
        """See Kernels: [N, Hq + 2 * Hkv, D] to [N, Hq * D]."""
        num_rows, num_heads, dim = heads.shape
        num_kv_heads, capacity = kept.shape[1:3]
        folded, visible = mask.shape[-2:]
        if num_rows > _MOST_ROWS or dim % _LANES or visible < _LANES:
            return self._others.attend(heads, kept, places, mask, scaling)
        num_queries = num_heads - 2 * num_kv_heads
        result, scratch = heads.new_empty(num_rows, num_queries * dim), heads.new_empty(folded * (visible + dim))
        keys, values = kept.data_ptr(), kept.data_ptr() + kept.stride(0) * kept.element_size()
        pointers = heads.data_ptr(), keys, values, places.data_ptr(), mask.data_ptr(), scratch.data_ptr()
        self._library.attend(
            *pointers, result.data_ptr(), num_rows, num_queries, num_kv_heads, dim, capacity, visible, scaling
        )
        return result


@torch.inference_mode()
def _seconds(kernels: Kernels, copies: Sequence[Tensor]) -> float:
    """Time of products of each size with equal weights [out, in] one after another: the shortest of a few."""
    total = 0.0
    for num_rows in _TRIAL_ROWS:
        rows, taken = torch.ones(num_rows, copies[0].shape[1]), []
        for _ in range(_TRIALS):
            started = time.perf_counter()
            for weight in copies:
                kernels.product(rows, weight, None)
            taken.append(time.perf_counter() - started)
        total += min(taken)
    return total


@cache
def build() -> ctypes.CDLL | None:
    """Build and load the kernels, once for each process; None without a compiler that can."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        return None
    source = Path(__file__).with_name("kernels.c")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "kernels.so"
        command = [compiler, *_OPTIONS, str(source), "-o", str(library), "-lm"]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=_BUILD_TIMEOUT_S)
            return _load(library)
        except (OSError, AttributeError, subprocess.SubprocessError):
            return None


def _load(file: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(file))
    for name, arguments in _ARGUMENTS.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, None
    return library

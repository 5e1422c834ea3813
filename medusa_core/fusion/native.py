"""Kernels in C for small models on a CPU, built by the system's compiler when a model is loaded.

Nothing of it stays on disk. Where there is no compiler, or it knows too little, torch's own kernels do the work.
"""

import ctypes
import logging
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from medusa_core.fusion.choosing import fastest
from medusa_core.fusion.kernels import AttentionFunction, Kernels, Mask, Multiply, TorchKernels
from medusa_core.fusion.lengths import PrefixMask
from medusa_core.reasons import in_one_line

__all__ = ["NativeKernels", "build", "build_with", "choose_kernels"]

_log = logging.getLogger(__name__)

_COMPILERS = ("cc", "gcc", "clang")
_SPEED = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math")
# No other library's function of the same name may be called in place of one's own.
_OPTIONS = (*_SPEED, "-shared", "-fPIC", "-fno-semantic-interposition")
_LANES = 8
# Passes of more rows, as prefill has them, are better served by libraries that rearrange the weights first.
_MOST_ROWS = 32
# Sums of more of them could leave 32 bits.
_MOST_INT8_PRODUCTS = 8192
# Products within one attention that one thread has computed before several have begun.
_MOST_ALONE = 2**20
# Many times what a slow machine needs; a compiler that hangs keeps the start waiting for as long.
_BUILD_TIMEOUT_S = 20.0
_TRIAL_ROWS, _TRIALS = (1, 8), 4
# Bytes of bfloat16 copies: what a small model takes, and what a large one may.
_MOST_COPIED = 2**30
_CACHES, _MOST_COPIES = 2**25, 200
_POINTER, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_long, ctypes.c_float
_ARGUMENTS = {
    "product": [_POINTER] * 4 + [_LONG] * 4,
    "product_bfloat16": [_POINTER] * 4 + [_LONG] * 4,
    "product_int8": [_POINTER] * 5 + [_LONG] * 2,
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

    label = "compiled"

    def __init__(self, library: ctypes.CDLL, others: Kernels) -> None:
        """The functions of kernels.c in a loaded library, and who does what those do not."""
        self._library, self._others = library, others
        self._copied = 0
        self._choices: dict[tuple[int | bool, ...], int] = {}

    def multiply_by(self, weight: Tensor) -> Multiply:
        """See Kernels: for each shape [out, in] of a weight the fastest of three ways, tried with torch's threads.

        What is stored as bfloat16 though computed in float32 may be read as that: the results are the same to the bit.
        Of a large model as much as a GiB of such copies holds.
        """
        ways: list[Callable[[Tensor], Multiply]] = [self._others.multiply_by]
        if weight.dtype == torch.float32 and weight.shape[1] % _LANES == 0 and weight.shape[0] >= _LANES:
            ways.append(self.multiply_by_float)
            has_room = self._copied + weight.nbytes // 2 <= _MOST_COPIED
            if has_room and torch.equal(weight, weight.bfloat16().float()):
                ways.append(self.multiply_by_bfloat16)
        if len(ways) == 1:
            return self._others.multiply_by(weight)
        key = (*weight.shape, len(ways), torch.get_num_threads())
        if key not in self._choices:
            self._choices[key] = _fastest(ways, weight)
        chosen = ways[self._choices[key]]
        self._copied += weight.nbytes // 2 if chosen == self.multiply_by_bfloat16 else 0
        return chosen(weight)

    def multiply_by_float(self, weight: Tensor) -> Multiply:
        """The product with a weight [out, in] as it is."""
        return _NativeMultiply(self._library.product, weight, self._others.multiply_by(weight))

    def multiply_by_bfloat16(self, weight: Tensor) -> Multiply:
        """The product with a bfloat16 copy of a weight [out, in]."""
        others, copy = self._others.multiply_by(weight), weight.bfloat16().contiguous()
        return _NativeMultiply(self._library.product_bfloat16, copy, others)

    def multiply_by_int8(self, weight: Tensor, scales: Tensor) -> Callable[[Tensor], Tensor] | None:
        """See Kernels: weight [out, in] and scales [out]."""
        if weight.shape[1] > _MOST_INT8_PRODUCTS:
            return None
        return _NativeInt8(self._library.product_int8, weight.contiguous(), scales.float().contiguous())

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

    def attend(self, heads: Tensor, kept: Tensor, places: Tensor, mask: Mask, scaling: float) -> Tensor:
        """See Kernels: [N, Hq + 2 * Hkv, D] to [N, Hq * D]."""
        if isinstance(mask, PrefixMask):
            return self._others.attend(heads, kept, places, mask, scaling)
        num_rows, num_heads, dim = heads.shape
        num_kv_heads, capacity = kept.shape[1:3]
        folded, visible = mask.shape[-2:]
        is_short = torch.get_num_threads() == 1 or folded * visible * num_kv_heads * dim <= _MOST_ALONE
        if num_rows > _MOST_ROWS or dim % _LANES or visible < _LANES or not is_short:
            return self._others.attend(heads, kept, places, mask, scaling)
        num_queries = num_heads - 2 * num_kv_heads
        result, scratch = heads.new_empty(num_rows, num_queries * dim), heads.new_empty(folded * (visible + dim))
        keys, values = kept.data_ptr(), kept.data_ptr() + kept.stride(0) * kept.element_size()
        pointers = heads.data_ptr(), keys, values, places.data_ptr(), mask.data_ptr(), scratch.data_ptr()
        self._library.attend(
            *pointers, result.data_ptr(), num_rows, num_queries, num_kv_heads, dim, capacity, visible, scaling
        )
        return result


@dataclass(frozen=True)
class _NativeMultiply:
    """A function of kernels.c, the weight [out, in] it reads, and the product of more rows."""

    function: Callable[..., None]
    weight: Tensor
    others: Multiply

    def __call__(self, rows: Tensor, added: Tensor | None) -> Tensor:
        (num_rows, width), out = rows.shape, self.weight.shape[0]
        if num_rows > _MOST_ROWS:
            return self.others(rows, added)
        rows, result = rows.contiguous(), rows.new_empty(num_rows, out)
        stride = 0 if added is None or added.dim() == 1 else out
        place = added.data_ptr() if added is not None else None
        self.function(rows.data_ptr(), self.weight.data_ptr(), place, result.data_ptr(), num_rows, width, out, stride)
        return result


@dataclass(frozen=True)
class _NativeInt8:
    function: Callable[..., None]
    weight: Tensor
    scales: Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        out, width = self.weight.shape
        rows = rows.float().contiguous()
        result, steps = rows.new_empty(len(rows), out), torch.empty(width, dtype=torch.int16)
        weight, scales = self.weight.data_ptr(), self.scales.data_ptr()
        for row, outputs in zip(rows, result, strict=True):
            self.function(row.data_ptr(), weight, scales, steps.data_ptr(), outputs.data_ptr(), width, out)
        return result


@torch.inference_mode()
def _fastest(ways: Sequence[Callable[[Tensor], Multiply]], weight: Tensor) -> int:
    """Which way multiplies by weights like this one [out, in] in the least time.

    More of them than caches hold, so that each product finds its weight in memory, as in a step.
    """
    copies = [weight, *(weight.clone() for _ in range(min(_MOST_COPIES, _CACHES // weight.nbytes)))]

    def seconds(way: Callable[[Tensor], Multiply]) -> float:
        products = [way(copy) for copy in copies]
        return sum(_seconds(products, torch.ones(rows, weight.shape[1])) for rows in _TRIAL_ROWS)

    return fastest(map(seconds, ways))


def _seconds(products: Sequence[Multiply], rows: Tensor) -> float:
    """Time of products with rows [N, in], one after the other: the shortest of a few."""
    taken = []
    for _ in range(_TRIALS):
        started = time.perf_counter()
        for product in products:
            product(rows, None)
        taken.append(time.perf_counter() - started)
    return min(taken)


@cache
def build() -> ctypes.CDLL | None:
    """Build and load the kernels, once for each process; None without a compiler that can."""
    return build_with(filter(None, map(shutil.which, _COMPILERS)), None)


def build_with(compilers: Iterable[str], scratch: Path | None) -> ctypes.CDLL | None:
    """The kernels as built by the first compiler that can; the log says what is wrong with those that cannot.

    scratch: where to build, in a private folder that is gone afterwards; None is where temporary files belong.
    """
    source = Path(__file__).with_name("kernels.c")
    for compiler in compilers:
        try:
            # a file system may keep a name for what is loaded from it; that is no reason to do without
            with tempfile.TemporaryDirectory(dir=scratch, ignore_cleanup_errors=True) as folder:
                library = Path(folder) / "kernels.so"
                command = [compiler, *_OPTIONS, str(source), "-o", str(library), "-lm"]
                subprocess.run(command, check=True, capture_output=True, timeout=_BUILD_TIMEOUT_S)
                return _load(library)
        except (OSError, AttributeError, subprocess.SubprocessError) as reason:
            _log.info("%s builds no kernels: %s", compiler, in_one_line(reason))
    _log.info("no compiler here builds kernels for small models; they run on torch's")
    return None


def _load(file: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(file))
    for name, arguments in _ARGUMENTS.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, None
    return library

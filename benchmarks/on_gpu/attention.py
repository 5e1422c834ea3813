"""Ways to compute a tree's attention over the cache, beside the one that is in use.

All take folded queries [1, Hkv, g * N, D] but `prefix and tree`, which is the product's way without buckets: see
medusa_core/fusion/lengths.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.on_gpu.timing import device_ms
from medusa_core.errors import EngineError
from medusa_core.fusion.lengths import PrefixMask, attend_by_length, flash_prefix, masked_prefix
from medusa_core.runners.capture import CudaLauncher

__all__ = ["Case", "attention_ms", "by_length", "make_case"]

_BACKENDS = {
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}


@dataclass(frozen=True)
class Case:
    """One layer's attention of a tree of N nodes behind P committed rows.

    query:  [Hq, N, D]; keys, values: [Hkv, S, D], the tree's own rows at P .. P + N.
    among:  [N, N] bool, ancestors and the node itself.
    mask:   [1, 1, g * N, S], what of all rows is attended to, as attention adds it.
    past:   P, on the host; length: [1] int32, the same on the device.
    """

    query: Tensor
    keys: Tensor
    values: Tensor
    among: Tensor
    mask: Tensor
    past: int
    length: Tensor


def make_case(heads: int, kv_heads: int, nodes: int, past: int, rows: int, device: torch.device) -> Case:
    """Noise in the shape of a layer with heads of 128, in bfloat16 on CUDA; the tree is a chain."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    among = torch.ones(nodes, nodes, dtype=torch.bool, device=device).tril()
    allowed = (torch.arange(rows, device=device) < past).repeat(nodes, 1)
    allowed[:, past : past + nodes] = among
    mask = torch.zeros(nodes, rows, dtype=dtype, device=device).masked_fill(~allowed, torch.finfo(dtype).min)
    return Case(
        query=noise(heads, nodes, 128),
        keys=noise(kv_heads, rows, 128),
        values=noise(kv_heads, rows, 128),
        among=among,
        mask=mask.repeat(heads // kv_heads, 1)[None, None],
        past=past,
        length=torch.tensor([past], dtype=torch.int32, device=device),
    )


def folded(case: Case) -> Tensor:
    """All rows at once, under a mask: what is in use. Returns [Hq, N, D]."""
    query = case.query.reshape(1, case.keys.shape[0], -1, case.query.shape[2])
    output = F.scaled_dot_product_attention(query, case.keys[None], case.values[None], attn_mask=case.mask)
    return output.reshape(case.query.shape)


def by_length(case: Case, kept: Tensor, own: Tensor) -> Tensor:
    """As the product does it, from keys and values in one buffer: kept [2, Hkv, S, D] and own [2, Hkv, N, D]."""
    attend_prefix = flash_prefix if kept.device.type == "cuda" else masked_prefix
    mask = PrefixMask(case.length, case.among)
    return attend_by_length(case.query, kept, own, mask, case.query.shape[-1] ** -0.5, attend_prefix)


def attention_ms(case: Case, times: int) -> dict[str, float | str]:
    """Milliseconds of each way, and how far it is from exact; where one cannot run, its reason."""
    device = case.query.device
    wide = {name: getattr(case, name).float() for name in ("query", "keys", "values", "mask")}
    exact = folded(replace(case, **wide))

    def pinned(backend: SDPBackend) -> Callable[[], Tensor]:
        def work() -> Tensor:
            with sdpa_kernel(backend):
                return folded(case)

        return work

    ways: dict[str, Callable[[], Tensor]] = {name: pinned(backend) for name, backend in _BACKENDS.items()}
    kept = torch.stack([case.keys, case.values])
    own = kept[:, :, case.past : case.past + case.query.shape[1]].contiguous()
    ways["prefix and tree"] = lambda: by_length(case, kept, own)
    found: dict[str, float | str] = {}
    for name, work in ways.items():
        try:
            off = float((work().float() - exact).abs().max())
            found[name] = device_ms(graphed(work, device), device, times)
            found[f"{name}, off by"] = off
        except (EngineError, ImportError, NotImplementedError, RuntimeError, TypeError) as error:
            found[name] = f"does not run: {str(error).splitlines()[0][:100]}"
    return found


def graphed(work: Callable[[], Tensor], device: torch.device) -> Callable[[], object]:
    """Work as a step would run it: recorded, so that what the host does to issue it does not count."""
    if device.type != "cuda":
        return work

    def do() -> None:
        work()

    launcher = CudaLauncher(device)
    launcher.warm_up(do)
    return launcher.capture(do)

"""Ways to compute a tree's attention over the cache, beside the one that is in use.

All take folded queries [1, Hkv, g * N, D] but `prefix and tree`, which lets a kernel with lengths on the device read
the committed rows alone, computes the few rows of the tree densely, and merges the two by their log-sum-exps: there are
no buckets, and no row is read in vain.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.on_gpu.timing import device_ms
from medusa_core.errors import EngineError
from medusa_core.runners.capture import CudaLauncher

__all__ = ["Case", "attention_ms", "dense_with_sums", "make_case", "merged"]

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
    past:   P, on the host; lengths: [1] int32, the same on the device.
    ends:   [2] int32, 0 and N; rows: [2] int32, 0 and S.
    """

    query: Tensor
    keys: Tensor
    values: Tensor
    among: Tensor
    mask: Tensor
    past: int
    lengths: Tensor
    ends: Tensor
    rows: Tensor

    @property
    def group(self) -> int:
        """g, query heads for each head of the cache."""
        return self.query.shape[0] // self.keys.shape[0]


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
    lengths, ends, all_rows = (
        torch.tensor(values, dtype=torch.int32, device=device) for values in ([past], [0, nodes], [0, rows])
    )
    return Case(
        query=noise(heads, nodes, 128),
        keys=noise(kv_heads, rows, 128),
        values=noise(kv_heads, rows, 128),
        among=among,
        mask=mask.repeat(heads // kv_heads, 1)[None, None],
        past=past,
        lengths=lengths,
        ends=ends,
        rows=all_rows,
    )


def folded(case: Case) -> Tensor:
    """All rows at once, under a mask: what is in use. Returns [Hq, N, D]."""
    query = case.query.reshape(1, case.keys.shape[0], -1, case.query.shape[2])
    output = F.scaled_dot_product_attention(query, case.keys[None], case.values[None], attn_mask=case.mask)
    return output.reshape(case.query.shape)


def dense_with_sums(query: Tensor, keys: Tensor, values: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """Attention and its log-sum-exps, for few rows.

    query: [Hq, N, D]; keys, values: [Hkv, M, D]; allowed: [N, M] bool, at least one in each row.

    Returns [Hq, N, D] and [Hq, N] float32.
    """
    grouped = query.reshape(keys.shape[0], -1, *query.shape[1:])  # [Hkv, g, N, D]
    scores = (grouped @ keys[:, None].transpose(2, 3)).float() * query.shape[-1] ** -0.5
    scores = scores.masked_fill(~allowed, -torch.inf)
    sums = scores.logsumexp(dim=-1)
    output = (scores - sums[..., None]).exp().to(values.dtype) @ values[:, None]
    return output.reshape(query.shape), sums.reshape(query.shape[:2])


def merged(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
    """What attention over two sets of rows together gives, from the two and their log-sum-exps.

    Each is [Hq, N, D] and [Hq, N] float32; returns [Hq, N, D].
    """
    shares = torch.stack([one[1], other[1]]).softmax(dim=0)[..., None]
    return (one[0].float() * shares[0] + other[0].float() * shares[1]).to(one[0].dtype)


def prefix_and_tree(case: Case) -> Tensor:
    """The committed rows by a kernel that reads their number on the device, the tree densely. Returns [Hq, N, D]."""
    from torch.nn.attention.varlen import AuxRequest, varlen_attn

    nodes, rows = case.query.shape[1], case.keys.shape[1]
    keys, values = case.keys.transpose(0, 1), case.values.transpose(0, 1)
    output, sums = varlen_attn(
        case.query.transpose(0, 1).contiguous(), keys, values, case.ends, case.rows, nodes, rows,
        return_aux=AuxRequest(lse=True), enable_gqa=case.group > 1, seqused_k=case.lengths,
    )  # fmt: skip
    own = slice(case.past, case.past + nodes)
    tree = dense_with_sums(case.query, case.keys[:, own], case.values[:, own], case.among)
    return merged((output.transpose(0, 1), sums.reshape(case.query.shape[:2])), tree)


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
    ways["prefix and tree"] = lambda: prefix_and_tree(case)
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

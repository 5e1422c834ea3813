"""The layers of pre-norm decoders with rotary positions and grouped queries, read from a model's own modules.

What a module is called says where to look; whether it does what is expected of that name is found out by a trial of
the whole model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medusa_core.fusion.kernels import Kernels
from medusa_core.fusion.products import Product, join

__all__ = ["Attention", "FusedLayer", "GatedMlp", "HeadNorm", "RmsNorm", "read_layer", "read_norm"]


@dataclass(frozen=True)
class RmsNorm:
    """Scaling to unit mean square; weight [H]."""

    weight: Tensor
    eps: float
    kernels: Kernels

    def __call__(self, rows: Tensor) -> Tensor:
        """Map rows [N, H] to [N, H]."""
        return self.kernels.rms_norm(rows, self.weight, self.eps)


@dataclass(frozen=True)
class HeadNorm:
    """Scaling of each query and key head by itself; weight [Hq + Hkv, D]."""

    weight: Tensor
    eps: float

    def __call__(self, heads: Tensor) -> Tensor:
        """Map heads [N, Hq + Hkv, D] to [N, Hq + Hkv, D]."""
        return F.rms_norm(heads, self.weight.shape[1:], None, self.eps).mul_(self.weight)


@dataclass(frozen=True)
class Attention:
    """The projections around attention, and what it needs to know.

    num_heads:  Hq query heads of head_dim D; num_kv_heads: Hkv.
    head_norm:  None for families without.
    is_rotary:  some families leave positions out in some layers.
    """

    heads: Product
    output: Product
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scaling: float
    head_norm: HeadNorm | None
    is_rotary: bool


@dataclass(frozen=True)
class GatedMlp:
    """down(act(gate(x)) * up(x)) with gate and up in one product."""

    gate_up: Product
    gate: Callable[[Tensor], Tensor]
    down: Product

    def add_to(self, residual: Tensor, rows: Tensor) -> Tensor:
        """The residual [N, H] plus the outcome of rows [N, H], [N, H]."""
        return self.down.add_to(residual, self.gate(self.gate_up(rows)))


@dataclass(frozen=True)
class _Gate:
    activation: Callable[[Tensor], Tensor]

    def __call__(self, rows: Tensor) -> Tensor:
        gate, up = rows.chunk(2, dim=-1)
        return self.activation(gate) * up


@dataclass(frozen=True)
class FusedLayer:
    """One decoder layer; `mlp` is a ModuleProduct where it is no gated one, as with experts."""

    attention_norm: Callable[[Tensor], Tensor]
    attention: Attention
    mlp_norm: Callable[[Tensor], Tensor]
    mlp: Product | GatedMlp


def read_layer(layer: Any, config: Any, kernels: Kernels) -> FusedLayer:
    """A decoder layer of transformers in fused form.

    Raises AttributeError where it lacks what such layers have, ValueError where it has more.
    """
    known = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
    others = [name for name, child in layer.named_children() if name not in known and type(child) is not nn.Dropout]
    if others:
        raise ValueError(f"its layers have a part called {others[0]}")
    return FusedLayer(
        read_norm(layer.input_layernorm, kernels),
        _read_attention(layer.self_attn, config, kernels),
        read_norm(layer.post_attention_layernorm, kernels),
        _read_mlp(layer.mlp, kernels),
    )


def read_norm(norm: Any, kernels: Kernels) -> Callable[[Tensor], Tensor]:
    """A norm [N, H] to [N, H], by one call of torch's own where it has the form that most families share."""
    if hasattr(norm, "variance_epsilon") and getattr(norm, "bias", None) is None:
        return RmsNorm(norm.weight.detach(), norm.variance_epsilon, kernels)
    found: Callable[[Tensor], Tensor] = norm
    return found


def _read_attention(module: Any, config: Any, kernels: Kernels) -> Attention:
    num_heads: int = config.num_attention_heads
    num_kv_heads: int = config.num_key_value_heads
    joint = getattr(module, "qkv_proj", None)
    return Attention(
        heads=join([joint] if joint is not None else [module.q_proj, module.k_proj, module.v_proj], kernels),
        output=join([module.o_proj], kernels),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=module.head_dim,
        scaling=module.scaling,
        head_norm=_read_head_norm(module, num_heads, num_kv_heads),
        is_rotary=bool(getattr(module, "use_rope", True)),
    )


def _read_head_norm(module: Any, num_heads: int, num_kv_heads: int) -> HeadNorm | None:
    if getattr(module, "q_norm", None) is None:
        return None
    query, key = module.q_norm, module.k_norm
    weights = query.weight.detach().expand(num_heads, module.head_dim), key.weight.expand(num_kv_heads, module.head_dim)
    return HeadNorm(torch.cat(weights).detach(), query.variance_epsilon)


def _read_mlp(mlp: Any, kernels: Kernels) -> Product | GatedMlp:
    joint, down = getattr(mlp, "gate_up_proj", None), getattr(mlp, "down_proj", None)
    if not isinstance(down, nn.Module):
        return join([mlp], kernels)
    gate_up = join([joint] if joint is not None else [mlp.gate_proj, mlp.up_proj], kernels)
    activation = mlp.activation_fn if hasattr(mlp, "activation_fn") else mlp.act_fn
    sample = torch.linspace(-3, 3, 7)
    is_silu = torch.equal(activation(sample), F.silu(sample))
    return GatedMlp(gate_up, kernels.gate_silu if is_silu else _Gate(activation), join([down], kernels))

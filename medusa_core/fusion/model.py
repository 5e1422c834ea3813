"""A forward pass of few kernels over the parameters of a transformers model.

Knows decoders that normalise before attention and before the MLP, as Llama does. It is no model of its own: every
module it does not compute itself is called, and it is used only where a trial shows it equal to the model's own pass.
"""

from collections.abc import Collection, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from medusa_core.fusion.kernels import Kernels, Mask
from medusa_core.fusion.layers import Attention, FusedLayer, read_layer, read_norm
from medusa_core.fusion.products import join
from medusa_core.kv_cache import KVCache

__all__ = ["FusedModel", "Pass"]


class Pass(Protocol):
    """How a tree of N nodes is computed; writes the cache's scratch rows, which were prepared for it."""

    def __call__(
        self, tokens: Tensor, positions: Tensor, masks: Mapping[str, Mask], cache: KVCache, keep: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Tokens and positions [N], for each kind of layer a mask.

        keep: [R] int64, the nodes whose logits are wanted; None wants all.

        Returns the hidden states [N, H] after the final norm, and logits [N, V], or [R, V].
        """
        ...


class FusedModel:
    """See Pass. Holds no state between calls."""

    @torch.no_grad()
    def __init__(self, model: Any, kinds: Collection[str], positions: int, kernels: Kernels) -> None:
        """Read a model's parameters.

        kinds:     the kinds of layer that masks are made for.
        positions: how many positions may occur; positions behind them are read as the last.

        Raises AttributeError, TypeError or ValueError where the model is not of the kind that is known here.
        """
        config, base = model.config.get_text_config(), model.base_model
        self._kernels = kernels
        self._embed: nn.Module = model.get_input_embeddings()
        self._layers: list[FusedLayer] = [read_layer(layer, config, kernels) for layer in base.layers]
        named = getattr(config, "layer_types", None)
        self._kinds: list[str] = list(named) if len(kinds) > 1 and named else list(kinds) * len(self._layers)
        self._norm = read_norm(base.norm, kernels)
        self._lm_head = join([model.get_output_embeddings()], kernels)
        self._turns = _turns(base.rotary_emb, self._embed.weight, positions)

    def __call__(
        self, tokens: Tensor, positions: Tensor, masks: Mapping[str, Mask], cache: KVCache, keep: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """See Pass: [N] tokens and positions; hidden [N, H] and logits [N, V] or [R, V]."""
        turns = self._turns.index_select(0, positions)  # [N, 2, D]
        rows = self._embed(tokens)
        for index, (layer, kind) in enumerate(zip(self._layers, self._kinds, strict=True)):
            normed = layer.attention_norm(rows)
            mixed = self._attention(layer.attention, index, normed, turns, masks[kind], cache)
            rows = layer.attention.output.add_to(rows, mixed)
            rows = layer.mlp.add_to(rows, layer.mlp_norm(rows))
        hidden = self._norm(rows)
        return hidden, self._lm_head(hidden.index_select(0, keep) if keep is not None else hidden)

    def _attention(self, own: Attention, layer: int, rows: Tensor, turns: Tensor, mask: Mask, cache: KVCache) -> Tensor:
        """Attention of rows [N, H] over the cache, before its output projection: [N, Hq * D]."""
        num_nodes, num_turned = rows.shape[0], own.num_heads + own.num_kv_heads
        heads = own.heads(rows).view(num_nodes, num_turned + own.num_kv_heads, own.head_dim)
        if own.head_norm is not None:
            turned = heads[:, :num_turned]
            turned.copy_(own.head_norm(turned))
        if own.is_rotary:
            self._kernels.turn(heads, num_turned, turns)
        return self._kernels.attend(heads, cache.buffer[:, layer, 0], cache.write_rows, mask, own.scaling)


def _turns(rotary: Any, like: Tensor, positions: int) -> Tensor:
    """What rotary positions multiply with, [positions, 2, D]: the cosine, and the sine with its sign folded in."""
    cosine, sine = rotary(like[:1, None], torch.arange(positions, device=like.device)[None])
    signed = sine[0].clone()
    signed[:, : signed.shape[1] // 2].neg_()
    return torch.stack([cosine[0], signed], dim=1)

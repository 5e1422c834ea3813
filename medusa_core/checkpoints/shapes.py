"""Whether the tensors of heads are complete and fit each other, and what shape they give."""

from collections.abc import Mapping

from torch import Tensor

from medusa_core.checkpoints.layouts import LOW_RANK, STYLES, Part
from medusa_core.config import HeadsConfig
from medusa_core.errors import HeadsMismatch

__all__ = ["ONE_LM_HEAD", "shape_of"]

ONE_LM_HEAD = Part("lm_head.weight", 0, 0, "")


def shape_of(
    tensors: Mapping[Part, Tensor], truncated: int | None, style: str, spelt: Mapping[Part, str], source: str
) -> HeadsConfig:
    """Shape of the heads: blocks [H, H] and [H], LM heads [V, H], low-rank factors [r, H] and [V, r].

    truncated: tokens of a truncated vocabulary; None without one.
    style:     a key of STYLES, by which what is missing is named; `spelt` names what is there.

    Raises HeadsMismatch for a gap, for a tensor that has no place, for a shape that does not fit, each by key.
    """
    blocks = [part for part in tensors if part.role == "block" and part.name == "weight"]
    num_heads = 1 + max((part.head for part in blocks), default=-1)
    num_layers = 1 + max((part.layer for part in blocks), default=-1)
    depth = num_layers if style == "numbered" else 0
    roles = {part.role for part in tensors}
    needed = [Part("block", head, layer, "weight") for head in range(num_heads) for layer in range(num_layers)]
    if "lm_head" in roles:
        needed += [Part("lm_head", head, depth, "weight") for head in range(num_heads)]
    if "low_rank" in roles:
        needed += [Part("low_rank", head, 0, name) for head in range(num_heads) for name in ("down", "up")]
    counted = f"{num_heads} heads of {num_layers} blocks"
    for part in needed:
        if part not in tensors:
            raise HeadsMismatch(f"{source!r} has {counted} but lacks {_spell(part, style, num_layers)!r}")
    biases = {part._replace(name="bias") for part in blocks}
    for part in tensors.keys() - set(needed) - biases:
        if part.role in ("block", "lm_head", "low_rank"):
            raise HeadsMismatch(f"{source!r} has {counted}, among which {spelt[part]!r} has no place")
    if len(roles & {"lm_head", "low_rank", ONE_LM_HEAD.role}) > 1:
        raise HeadsMismatch(f"{source!r} holds LM heads of more than one kind, so it is unclear which of them draft")
    return _checked_shapes(tensors, num_heads, num_layers, truncated, spelt, source)


def _checked_shapes(
    tensors: Mapping[Part, Tensor],
    num_heads: int,
    num_layers: int,
    truncated: int | None,
    spelt: Mapping[Part, str],
    source: str,
) -> HeadsConfig:
    hidden_size = tensors[Part("block", 0, 0, "weight")].shape[-1]
    of_vocabulary = [tensor for part, tensor in tensors.items() if part.role in ("lm_head", ONE_LM_HEAD.role)]
    factors = {part.name: tensor for part, tensor in tensors.items() if part.role == "low_rank" and part.head == 0}
    of_vocabulary += [factors["up"]] if factors else []
    stored_rows = of_vocabulary[0].shape[0] if of_vocabulary else 1
    vocab_size = truncated if truncated is not None else stored_rows
    rank = factors["down"].shape[0] if factors else None
    expected = {
        ("block", "weight"): [hidden_size, hidden_size],
        ("block", "bias"): [hidden_size],
        ("lm_head", "weight"): [vocab_size, hidden_size],
        (ONE_LM_HEAD.role, ""): [vocab_size, hidden_size],
        ("low_rank", "down"): [rank, hidden_size],
        ("low_rank", "up"): [vocab_size, rank],
    }
    for part, tensor in tensors.items():
        shape = expected.get((part.role, part.name))
        if shape is not None and list(tensor.shape) != shape:
            key = spelt.get(part, part.role)
            raise HeadsMismatch(f"{key!r} in {source!r} has shape {list(tensor.shape)}, expected {shape}")
    is_shared = not any(part.role in ("lm_head", ONE_LM_HEAD.role) for part in tensors)
    return HeadsConfig(num_heads, num_layers, hidden_size, vocab_size, is_shared, rank, ONE_LM_HEAD in tensors)


def _spell(part: Part, style: str, num_layers: int) -> str:
    if part.role == "low_rank":
        return LOW_RANK.format(head=part.head, name=part.name)
    template = STYLES[style].block if part.role == "block" else STYLES[style].lm_head
    layer = part.layer if part.role == "block" else num_layers
    return template.format(head=part.head, layer=layer, name=part.name)

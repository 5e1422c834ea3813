"""Heads with quantised weights, as ModelOpt writes them: a weight times its scale is what was meant."""

from collections.abc import Mapping

import torch
from torch import Tensor

from medusa_core.checkpoints.layouts import Part
from medusa_core.errors import HeadsMismatch

__all__ = ["dequantized"]

_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
# Extras that are no weights: which tokens are drafted.
_INTEGERS = ("token_map", "d2t", "t2d")
# The scale of activations: heads compute in the base's dtype, so nothing is to be scaled.
_UNUSED = "input_scale"


def dequantized(tensors: Mapping[Part, Tensor], source: str) -> tuple[dict[Part, Tensor], bool]:
    """Weights [out, in] times their scales, and whether there were any; other tensors as they are.

    A scale holds one number for the tensor or one for each of its rows. Raises HeadsMismatch for any other kind, for a
    scale without a weight, and for weights of 8 bits without a scale.
    """
    scales = {part: tensor for part, tensor in tensors.items() if "scale" in part.name or part.name.endswith("_zero")}
    found = {part: tensor for part, tensor in tensors.items() if part not in scales}
    for part, scale in scales.items():
        weight = part._replace(name="weight")
        if part.name not in ("weight_scale", _UNUSED):
            raise HeadsMismatch(
                f"{source!r} holds {part.name!r}, a kind of scale that cannot be undone here; "
                "export the heads in FP8 with one scale for each tensor, or in bf16"
            )
        if weight not in found:
            raise HeadsMismatch(f"{source!r} holds a {part.name!r} of head {part.head} without its weight")
        if part.name == "weight_scale":
            found[weight] = _multiplied(found[weight], scale, source)
    for part, tensor in found.items():
        if tensor.dtype in _FLOAT8 or not (tensor.is_floating_point() or part.role in _INTEGERS):
            raise HeadsMismatch(
                f"the {part.role} of head {part.head} in {source!r} is {str(tensor.dtype).removeprefix('torch.')} "
                "without a 'weight_scale', so its size is unknown"
            )
    return found, bool(scales)


def _multiplied(weight: Tensor, scale: Tensor, source: str) -> Tensor:
    """A weight [out, in] in bfloat16 from its FP8 form and a scale of 1 or `out` numbers."""
    if weight.dtype not in _FLOAT8:
        raise HeadsMismatch(
            f"{source!r} scales weights of {str(weight.dtype).removeprefix('torch.')}, only FP8 can be undone here; "
            "export the heads in FP8 with one scale for each tensor, or in bf16"
        )
    # by shape: as many numbers may also be one for each column, or for each of several blocks
    if scale.numel() != 1 and list(scale.shape) not in ([len(weight)], [len(weight), 1]):
        raise HeadsMismatch(
            f"{source!r} has a 'weight_scale' of shape {list(scale.shape)} for a weight of shape "
            f"{list(weight.shape)}; only one scale for the tensor, or for each row, can be undone here"
        )
    return (weight.float() * scale.float().reshape(-1, 1)).bfloat16()

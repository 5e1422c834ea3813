"""Matrix products of a layer: those of one input become one, over one weight that the model's own parameters share."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from medusa_core.fusion.kernels import Kernels, Multiply

__all__ = ["DenseProduct", "ModuleProduct", "Product", "join"]


class Product(Protocol):
    """A linear map, for rows in one matrix."""

    def __call__(self, rows: Tensor) -> Tensor:
        """Map rows [N, in] to [N, out]."""
        ...

    def add_to(self, residual: Tensor, rows: Tensor) -> Tensor:
        """The residual [N, out] plus the map of rows [N, in], [N, out]."""
        ...


class DenseProduct:
    """A product with ordinary weights and a bias [out] or None."""

    def __init__(self, multiply: Multiply, bias: Tensor | None) -> None:
        self._multiply, self._bias = multiply, bias

    def __call__(self, rows: Tensor) -> Tensor:
        """See Product: [N, in] to [N, out]."""
        return self._multiply(rows, self._bias)

    def add_to(self, residual: Tensor, rows: Tensor) -> Tensor:
        """See Product: [N, out] and [N, in] to [N, out]."""
        added = self._multiply(rows, residual)
        return added if self._bias is None else added.add_(self._bias)


class ModuleProduct:
    """Products that only their own modules know how to compute, such as those with quantised weights."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = tuple(modules)

    def __call__(self, rows: Tensor) -> Tensor:
        """See Product: [N, in] to [N, out]."""
        # in a batch of one, as the model's own pass would call them
        outputs = [module(rows[None])[0] for module in self._modules]
        return torch.cat(outputs, dim=-1) if len(outputs) > 1 else outputs[0]

    def add_to(self, residual: Tensor, rows: Tensor) -> Tensor:
        """See Product: [N, out] and [N, in] to [N, out]."""
        return residual + self(rows)


@torch.no_grad()
def join(modules: Sequence[nn.Module], kernels: Kernels) -> Product:
    """One product of several of the same input, with their outputs side by side.

    The parameters of ordinary linear layers become views of the joint weight: the model holds what it held, under the
    names it had, and needs no more memory.
    """
    linears = [module for module in modules if type(module) is nn.Linear and type(module.weight) is nn.Parameter]
    if len(linears) < len(modules) or len({linear.bias is None for linear in linears}) > 1:
        return ModuleProduct(modules)
    has_bias = linears[0].bias is not None
    weight = _share([linear.weight for linear in linears])
    return DenseProduct(kernels.multiply_by(weight), _share([linear.bias for linear in linears]) if has_bias else None)


def _share(parameters: Sequence[Tensor]) -> Tensor:
    """The parameters in one tensor along their first dimension, of which they become views."""
    if len(parameters) == 1:
        return parameters[0].detach()
    joint = torch.cat([parameter.detach() for parameter in parameters])
    shares = torch.split(joint, [len(parameter) for parameter in parameters])
    for parameter, rows in zip(parameters, shares, strict=True):
        parameter.data = rows
    return joint

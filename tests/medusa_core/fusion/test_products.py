import torch
import torch.nn.functional as F
from torch import nn

from medusa_core.fusion.products import DenseProduct, ModuleProduct, join
from tests.medusa_core.fusion.cast import TORCH

ROWS = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


def linears(*widths: int, bias: bool = False) -> list[nn.Linear]:
    torch.manual_seed(1)
    return [nn.Linear(8, width, bias=bias) for width in widths]


def test_products_of_one_input_stand_side_by_side_in_one() -> None:
    for bias in (False, True):
        modules = linears(4, 6, bias=bias)
        expected = torch.cat([module(ROWS) for module in modules], dim=-1)

        assert torch.allclose(join(modules, TORCH)(ROWS), expected, atol=1e-6)


def test_the_residual_is_added_with_and_without_a_bias() -> None:
    residual = torch.ones(3, 5)
    for bias in (False, True):
        (module,) = linears(5, bias=bias)

        assert torch.allclose(join([module], TORCH).add_to(residual, ROWS), residual + module(ROWS), atol=1e-6)


def test_joined_parameters_become_views_of_one_weight_and_keep_their_values() -> None:
    modules = linears(4, 6)
    before = [module.weight.detach().clone() for module in modules]

    join(modules, TORCH)

    first, second = (module.weight for module in modules)
    assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
    assert first.untyped_storage().nbytes() == first.nbytes + second.nbytes
    assert all(torch.equal(module.weight, old) for module, old in zip(modules, before, strict=True))


def test_a_change_of_a_parameter_is_seen_by_the_joint_product() -> None:
    modules = linears(4, 6)
    product = join(modules, TORCH)

    with torch.no_grad():
        modules[1].weight.zero_()

    assert product(ROWS)[:, 4:].abs().max() == 0


def test_a_layer_that_is_more_than_linear_is_called_and_left_as_it_is() -> None:
    class Doubled(nn.Linear):
        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            assert rows.dim() == 3, "modules see a batch"
            return 2 * F.linear(rows, self.weight)

    torch.manual_seed(2)
    modules = [Doubled(8, 4, bias=False), nn.Linear(8, 6, bias=False)]
    storage = modules[0].weight.untyped_storage().data_ptr()

    product = join(modules, TORCH)

    assert isinstance(product, ModuleProduct)
    assert isinstance(join(linears(4), TORCH), DenseProduct)
    expected = torch.cat([2 * F.linear(ROWS, modules[0].weight), modules[1](ROWS)], dim=-1)
    assert torch.allclose(product(ROWS), expected, atol=1e-6)
    assert torch.allclose(product.add_to(expected, ROWS), 2 * expected, atol=1e-6)
    assert modules[0].weight.untyped_storage().data_ptr() == storage

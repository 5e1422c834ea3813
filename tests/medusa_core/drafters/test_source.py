import torch

from medusa_core.config import SpeculationParams
from medusa_core.drafters import DrafterSource, MedusaDrafter, MergedDrafter, RootOnly
from tests.cast import CPU, random_heads

HEADS = random_heads(torch.randn(23, 16, generator=torch.Generator().manual_seed(0)), 3)


def test_equal_parameters_get_the_same_drafter() -> None:
    source = DrafterSource(HEADS, torch.ones(3), 8, 8, CPU)

    assert source.get(SpeculationParams()) is source.get(SpeculationParams())
    assert source.get(SpeculationParams(max_nodes=4)) is not source.get(SpeculationParams())


def test_without_heads_every_mode_is_plain_decoding() -> None:
    source = DrafterSource(None, torch.ones(0), 8, 8, CPU)

    assert isinstance(source.get(SpeculationParams(mode="tree")), RootOnly)


def test_off_and_a_single_node_are_plain_decoding() -> None:
    source = DrafterSource(HEADS, torch.ones(3), 8, 8, CPU)

    assert isinstance(source.get(SpeculationParams(mode="off")), RootOnly)
    assert isinstance(source.get(SpeculationParams(max_nodes=1)), RootOnly)


def test_lookup_joins_the_heads_unless_it_is_off() -> None:
    tree = SpeculationParams(mode="tree")

    assert isinstance(DrafterSource(HEADS, torch.ones(3), 8, 8, CPU).get(tree), MergedDrafter)
    assert isinstance(DrafterSource(HEADS, torch.ones(3), 8, 0, CPU).get(tree), MedusaDrafter)

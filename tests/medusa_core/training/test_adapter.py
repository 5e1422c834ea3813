import copy
from pathlib import Path

import pytest
import torch

from medusa_core.adapters import merge_adapter
from medusa_core.training.adapter import Adapter
from medusa_core.training.base import FrozenBase
from medusa_core.training.plan import JointPlan
from tests.medusa_core.training.cast import alone, base

TEXT = alone(*range(5, 20))


def adapted() -> tuple[FrozenBase, Adapter]:
    """A copy of the tiny base behind an adapter that changes something."""
    own = FrozenBase.of("tiny", copy.deepcopy(base().model), base().tokenizer)
    adapter = Adapter(own, 4, JointPlan(), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in own.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return own, adapter


def test_a_new_adapter_changes_nothing_and_only_it_wants_gradients() -> None:
    own = FrozenBase.of("tiny", copy.deepcopy(base().model), base().tokenizer)

    Adapter(own, 4, JointPlan(), seed=0)

    torch.testing.assert_close(own.hidden(TEXT), base().hidden(TEXT))
    wanting = [name for name, parameter in own.model.named_parameters() if parameter.requires_grad]
    assert wanting
    assert all("lora_" in name for name in wanting)
    assert not any("lm_head" in name or "embed" in name for name in wanting)


def test_switched_off_the_base_is_untouched_to_the_bit() -> None:
    own, adapter = adapted()
    own.model.train()

    with adapter.off():
        inside = own.hidden(TEXT)

    assert torch.equal(inside, base().hidden(TEXT))
    assert own.model.training  # as it was
    own.model.eval()
    assert not torch.allclose(own.hidden(TEXT), inside)


def test_a_written_adapter_does_to_a_fresh_base_what_it_did_here(tmp_path: Path) -> None:
    own, adapter = adapted()
    own.model.eval()

    adapter.save(tmp_path)

    assert sorted(file.name for file in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    loaded = merge_adapter(copy.deepcopy(base().model), tmp_path / "adapter")
    again = FrozenBase.of("tiny", loaded.eval(), base().tokenizer)
    torch.testing.assert_close(again.hidden(TEXT), own.hidden(TEXT))


def test_merged_it_is_part_of_the_weights() -> None:
    own, adapter = adapted()
    own.model.eval()
    before = own.hidden(TEXT)

    adapter.merge()

    torch.testing.assert_close(own.hidden(TEXT), before)
    assert not any("lora" in name for name, _ in own.model.named_parameters())


@pytest.mark.parametrize("seed", [0, 1])
def test_the_start_is_a_function_of_the_seed(seed: int) -> None:
    starts = []
    for chosen in (0, seed):
        own = FrozenBase.of("tiny", copy.deepcopy(base().model), base().tokenizer)
        Adapter(own, 4, JointPlan(), chosen)
        starts.append(torch.cat([p.flatten() for name, p in own.model.named_parameters() if "lora_A" in name]))

    assert torch.equal(*starts) == (seed == 0)

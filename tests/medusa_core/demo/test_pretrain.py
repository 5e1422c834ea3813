from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medusa_core.demo.packing import Mixture
from medusa_core.demo.pretrain import (
    ModelShape,
    PretrainPlan,
    build_model,
    language_loss,
    optimizers,
    pretrain,
    rate,
)
from medusa_core.training.loop import read_log, steps_done
from tests.medusa_core.training.cast import tokenizer

SHAPE = ModelShape(hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, intermediate_size=48, max_positions=64)
PLAN = PretrainPlan(
    steps=6, tokens_per_step=64, length=16, long_length=32, long_every=3, warmup_steps=2, save_every=4,
    evaluate_every=3, compile=False,
)  # fmt: skip
CPU = torch.device("cpu")


def model() -> Any:
    return build_model(SHAPE, tokenizer(), seed=0)


def mixture() -> Mixture:
    counting = np.arange(400, dtype=np.uint16) % 50 + 10
    return Mixture(counting.reshape(-1, 16), counting, filler=0, chat_share=0.5, seed=0)


def run(trained: Any, folder: Path, plan: PretrainPlan = PLAN) -> list[float]:
    """The losses that the log holds afterwards."""
    held_out = {"chat": mixture().batch(99, 64, 16)}
    pretrain(trained, mixture(), held_out, plan, folder, CPU)
    return [line["loss"] for line in read_log(folder) if "loss" in line]


def test_a_model_learns_to_count(tmp_path: Path) -> None:
    losses = run(model(), tmp_path, replace(PLAN, steps=120, decay_share=0.3))

    assert losses[0] > 5.0
    assert losses[-1] < 1.5


def test_a_resumed_run_is_the_undisturbed_one(tmp_path: Path) -> None:
    undisturbed, first, second = model(), model(), model()
    run(undisturbed, tmp_path / "a")
    run(first, tmp_path / "b")
    assert steps_done(tmp_path / "b") == 6
    (tmp_path / "c").mkdir()
    run(second, tmp_path / "c", replace(PLAN, save_every=4, evaluate_every=100))

    for name, tensor in undisturbed.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])
        assert torch.equal(tensor, first.state_dict()[name])


def test_a_killed_run_continues_from_its_last_whole_state(tmp_path: Path) -> None:
    undisturbed, killed, resumed = model(), model(), model()
    run(undisturbed, tmp_path / "a")

    class Killed(Exception):
        pass

    class Dying(Mixture):
        def batch(self, step: int, tokens: int, length: int) -> torch.Tensor:
            if step == 5:
                raise Killed
            return super().batch(step, tokens, length)

    torn = Dying(**{name: getattr(mixture(), name) for name in Mixture.__dataclass_fields__})
    with pytest.raises(Killed):
        pretrain(killed, torn, {}, PLAN, tmp_path / "b", CPU)
    assert steps_done(tmp_path / "b") == 4

    run(resumed, tmp_path / "b")
    for name, tensor in undisturbed.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name])


def test_the_log_holds_losses_and_held_out_losses(tmp_path: Path) -> None:
    run(model(), tmp_path)

    records = read_log(tmp_path)
    assert [record["step"] for record in records if "loss" in record] == [1, 2, 3, 4, 5, 6]
    assert [record["step"] for record in records if "held_out_chat" in record.get("evaluation", {})] == [3, 6]


def test_a_run_may_be_made_longer_when_it_goes_on(tmp_path: Path) -> None:
    run(model(), tmp_path)

    assert len(run(model(), tmp_path, replace(PLAN, steps=8))) == 8


def test_every_parameter_has_exactly_one_optimizer() -> None:
    own = model()
    held = [id(p) for optimizer in optimizers(own, PLAN) for group in optimizer.param_groups for p in group["params"]]

    assert sorted(held) == sorted(id(parameter) for parameter in own.parameters())


def test_filler_after_filler_costs_nothing() -> None:
    own = model()
    tokens = torch.tensor([[5, 6, 7, 0]])

    padded = torch.tensor([[5, 6, 7, 0, 0, 0]])

    torch.testing.assert_close(language_loss(own, padded, filler=0), language_loss(own, tokens, filler=0))


def test_the_rate_warms_up_holds_and_decays_to_nothing() -> None:
    plan = replace(PLAN, steps=100, warmup_steps=10, decay_share=0.4)

    assert [rate(step, plan) for step in (0, 9, 50, 60)] == [0.1, 1.0, 1.0, 1.0]
    assert rate(80, plan) == pytest.approx(0.5)
    assert rate(100, plan) == 0.0


def test_the_shipped_shape_has_five_million_parameters() -> None:
    parameters = build_model(ModelShape(), tokenizer(), seed=0).num_parameters()

    assert parameters == 4_132_096 + len(tokenizer()) * 256

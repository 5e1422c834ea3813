import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from medusa_core.demo.joint import JointPlan, joint_loss, joint_optimizers, train_jointly
from medusa_core.demo.packing import Mixture
from medusa_core.demo.pretrain import ModelShape, build_model
from medusa_core.heads import DraftHeads
from medusa_core.training.loss import head_loss
from tests.medusa_core.training.cast import tokenizer

CPU = torch.device("cpu")
SHAPE = ModelShape(hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, intermediate_size=48, max_positions=64)
PLAN = JointPlan(steps=6, tokens_per_step=64, length=16, warmup_steps=2, save_every=4, heads_share=1.0, compile=False)


def cast() -> tuple[LlamaForCausalLM, DraftHeads]:
    model = build_model(SHAPE, tokenizer(), seed=0)
    return model, DraftHeads.from_base(model.lm_head.weight.detach(), 2, shared_lm_head=False)


def mixture() -> Mixture:
    counting = np.arange(400, dtype=np.uint16) % 50 + 10
    return Mixture(counting.reshape(-1, 16), counting, filler=0, chat_share=0.5, seed=0)


def run(model: LlamaForCausalLM, heads: DraftHeads, folder: Path, plan: JointPlan = PLAN) -> list[tuple[float, float]]:
    losses: list[tuple[float, float]] = []
    train_jointly(model, heads, mixture(), plan, folder, CPU, lambda own, ahead: losses.append((own, ahead)))
    return losses


def test_the_heads_part_is_the_loss_that_heads_are_trained_with() -> None:
    model, heads = cast()
    tokens = mixture().batch(0, 64, 16)

    _, ahead = joint_loss(model, heads, tokens, torch.arange(64), 0, PLAN)

    hidden = model.model(input_ids=tokens).last_hidden_state
    torch.testing.assert_close(ahead, head_loss(heads(hidden), tokens, PLAN.decay))


def test_the_heads_loss_reaches_the_base() -> None:
    model, heads = cast()
    _, ahead = joint_loss(model, heads, mixture().batch(0, 64, 16), torch.arange(64), 0, PLAN)

    ahead.backward()

    assert all(parameter.grad is not None for parameter in model.model.layers.parameters())


def test_both_learn_to_count(tmp_path: Path) -> None:
    losses = run(*cast(), tmp_path, replace(PLAN, steps=150, save_every=1000, matrix_lr=0.02))

    assert losses[-1][0] < 0.5 * losses[0][0]
    assert losses[-1][1] < 0.7 * losses[0][1]


def test_a_killed_run_ends_where_an_undisturbed_one_does(tmp_path: Path) -> None:
    undisturbed, killed, resumed = cast(), cast(), cast()
    run(*undisturbed, tmp_path / "a")

    class Killed(Exception):
        pass

    def dies(own: float, ahead: float) -> None:
        if (tmp_path / "b" / "state.pt").exists():
            raise Killed

    with pytest.raises(Killed):
        train_jointly(*killed, mixture(), PLAN, tmp_path / "b", CPU, dies)

    assert len(run(*resumed, tmp_path / "b")) == 2
    for whole, part in zip(undisturbed, resumed, strict=True):
        for name, tensor in whole.state_dict().items():
            assert torch.equal(tensor, part.state_dict()[name])


def test_the_log_keeps_both_losses(tmp_path: Path) -> None:
    losses = run(*cast(), tmp_path)

    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(record["loss"], record["heads"]) for record in records] == [
        (round(own, 4), round(ahead, 4)) for own, ahead in losses
    ]


def test_every_parameter_has_exactly_one_optimizer() -> None:
    model, heads = cast()
    optims = joint_optimizers(model, heads, PLAN)
    held = [id(p) for optimizer in optims for group in optimizer.param_groups for p in group["params"]]

    assert sorted(held) == sorted(id(parameter) for parameter in [*model.parameters(), *heads.parameters()])

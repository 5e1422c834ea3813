import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from medusa_core.demo.joint import JointPlan, choose_positions, joint_loss, train_jointly
from medusa_core.demo.packing import JudgedRows
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


def rows() -> JudgedRows:
    counting = np.arange(400, dtype=np.uint16).reshape(-1, 16) % 50 + 10
    return JudgedRows(counting, np.ones_like(counting, dtype=np.bool_), seed=0)


def run(model: LlamaForCausalLM, heads: DraftHeads, folder: Path, plan: JointPlan = PLAN) -> list[tuple[float, float]]:
    losses: list[tuple[float, float]] = []
    train_jointly(model, heads, rows(), plan, folder, CPU, lambda own, ahead: losses.append((own, ahead)))
    return losses


def test_the_heads_part_is_the_loss_that_heads_are_trained_with() -> None:
    model, heads = cast()
    tokens, judged = rows().batch(0, 4)

    _, ahead = joint_loss(model, heads, tokens, judged, torch.arange(64), PLAN.decay)

    hidden = model.model(input_ids=tokens).last_hidden_state
    torch.testing.assert_close(ahead, head_loss(heads(hidden), tokens, PLAN.decay))


def test_the_heads_loss_reaches_the_base() -> None:
    model, heads = cast()
    _, ahead = joint_loss(model, heads, *rows().batch(0, 4), torch.arange(64), PLAN.decay)

    ahead.backward()

    assert all(parameter.grad is not None for parameter in model.model.layers.parameters())


def test_both_learn_to_count(tmp_path: Path) -> None:
    losses = run(*cast(), tmp_path, replace(PLAN, steps=150, save_every=1000, base_lr=0.01))

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
        train_jointly(*killed, rows(), PLAN, tmp_path / "b", CPU, dies)

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


def test_what_is_not_judged_teaches_nothing() -> None:
    model, heads = cast()
    tokens, _ = rows().batch(0, 4)
    judged = torch.zeros_like(tokens, dtype=torch.bool)
    judged[:, 8:12] = True

    losses = joint_loss(model, heads, tokens, judged, torch.arange(64), PLAN.decay)
    changed = tokens.clone()
    changed[:, 12:] = 5  # behind everything that is judged

    for loss, again in zip(
        losses, joint_loss(model, heads, changed, judged, torch.arange(64), PLAN.decay), strict=True
    ):
        torch.testing.assert_close(loss, again)


def test_heads_are_asked_where_a_judged_token_lies_ahead() -> None:
    judged = torch.zeros(2, 16, dtype=torch.bool)
    judged[0, 6] = True  # head 1 is asked for it from position 4, head 2 from position 3

    assert sorted(choose_positions(judged, 2, 2, seed=0).tolist()) == [3, 4]
    assert len(set(choose_positions(judged, 2, 20, seed=0).tolist())) == 20

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from medusa_core.heads import DraftHeads
from medusa_core.training.calibrate import calibrate_heads
from medusa_core.training.loop import LoopPlan, fit, read_log
from medusa_core.training.medusa1 import HeadsRecipe
from medusa_core.training.plan import TrainPlan
from medusa_core.training.workers import Alone, Workers
from tests.medusa_core.training.cast import base, counting, packed

CPU = torch.device("cpu")
PLAN = TrainPlan(
    num_heads=2,
    epochs=15,
    rows_per_pass=1,
    passes_per_step=2,
    warmup_steps=5,
    learning_rate=1e-2,
    shared_lm_head=False,
    max_length=32,
)
LM_HEADS = {"own": {"shared_lm_head": False}, "shared": {"shared_lm_head": True}, "low_rank": {"lm_head_rank": 4}}


def fresh_heads(plan: TrainPlan = PLAN) -> DraftHeads:
    torch.manual_seed(0)
    return DraftHeads.from_base(base().lm_head, plan.num_heads, plan.num_layers, plan.shared_lm_head, plan.lm_head_rank)


def recipe(heads: DraftHeads, plan: TrainPlan = PLAN, workers: Workers | None = None) -> HeadsRecipe:
    rows = packed(*counting(), length=plan.max_length)
    return HeadsRecipe(base(), heads, rows, rows, plan, workers if workers is not None else Alone(CPU))


def run(heads: DraftHeads, folder: Path, plan: TrainPlan = PLAN) -> None:
    made = recipe(heads, plan)
    loop = LoopPlan("heads", made.steps, 1.0, save_every=1000, evaluate_every=plan.evaluate_every, patience=None)
    fit(made, loop, folder, "run", Alone(CPU))


def test_heads_learn_to_count_and_not_a_bit_of_the_base_changes(tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in base().model.state_dict().items()}
    heads = fresh_heads()

    run(heads, tmp_path)

    accuracies = calibrate_heads(base(), heads, packed(*counting()).in_order(4)).accuracies
    assert min(shares[0] for shares in accuracies) > 0.9
    assert all(torch.equal(before[name], tensor) for name, tensor in base().model.state_dict().items())
    assert all(parameter.grad is None for parameter in base().model.parameters())


@pytest.mark.parametrize("kind", LM_HEADS)
def test_every_kind_of_lm_head_learns_with_every_head(tmp_path: Path, kind: str) -> None:
    plan = replace(PLAN, epochs=6, shared_lm_head=True)
    plan = replace(plan, **LM_HEADS[kind])
    heads = fresh_heads(plan)
    before = recipe(heads, plan).scores()

    run(heads, tmp_path, plan)

    after = recipe(heads, plan).scores()
    assert all(later < earlier for earlier, later in zip(before.nats, after.nats, strict=True))


def gradients(plan: TrainPlan, workers: Workers | None = None) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    heads = fresh_heads(plan)
    said = recipe(heads, plan, workers).accumulate(0)
    found = {name: p.grad.clone() for name, p in heads.named_parameters() if p.grad is not None}
    return found, {name: value for name, value in said.items() if isinstance(value, float)}


@pytest.mark.parametrize(("rows", "passes", "chunk"), [(1, 4, 2048), (4, 1, 2048), (2, 2, 7)])
def test_a_step_is_the_same_however_it_is_cut(rows: int, passes: int, chunk: int) -> None:
    whole, losses = gradients(replace(PLAN, rows_per_pass=4, passes_per_step=1))

    parts, same = gradients(replace(PLAN, rows_per_pass=rows, passes_per_step=passes, rows_per_chunk=chunk))

    assert same == pytest.approx(losses, rel=1e-5)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, atol=1e-6, rtol=1e-4)


def test_no_more_rows_than_a_chunk_have_logits_at_once() -> None:
    heads, seen = fresh_heads(), []
    made = recipe(heads, replace(PLAN, rows_per_pass=4, rows_per_chunk=7))
    heads.register_forward_hook(lambda _, __, logits: seen.append(logits.shape[1]))

    made.accumulate(0)
    made.scores()

    assert len(seen) > 2
    assert max(seen) == 7


def test_a_killed_run_ends_with_the_heads_and_the_curve_of_an_undisturbed_one(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    class Dying(HeadsRecipe):
        def accumulate(self, step: int) -> Mapping[str, float | list[float]]:
            if step == 7:
                raise Killed
            return super().accumulate(step)

    def train(kind: type[HeadsRecipe], folder: Path) -> DraftHeads:
        plan = replace(PLAN, epochs=2, lm_head_rank=4, shared_lm_head=True)
        heads, rows = fresh_heads(plan), packed(*counting(), length=plan.max_length)
        made = kind(base(), heads, rows, rows, plan, Alone(CPU))
        fit(made, LoopPlan("heads", made.steps, 1.0, 3, 5, None), folder, "run", Alone(CPU))
        return heads

    def curve(folder: Path) -> list[dict[str, object]]:
        return [{name: value for name, value in line.items() if name != "seconds"} for line in read_log(folder)]

    whole = train(HeadsRecipe, tmp_path / "a").state_dict()
    with pytest.raises(Killed):
        train(Dying, tmp_path / "b")

    resumed = train(HeadsRecipe, tmp_path / "b").state_dict()

    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    assert curve(tmp_path / "a") == curve(tmp_path / "b")


def test_the_log_tells_of_every_head_on_held_out_text(tmp_path: Path) -> None:
    run(fresh_heads(), tmp_path, replace(PLAN, epochs=2, evaluate_every=5))

    measured = [line["evaluation"] for line in read_log(tmp_path) if "evaluation" in line]
    assert len(measured) > 1
    assert set(measured[0]) == {
        "held_out_loss", "head_nats", "top_1", "top_2", "top_3", "top_4", "top_5", "expected_tokens_per_step",
    }  # fmt: skip
    assert [len(measured[0][name]) for name in ("head_nats", "top_1", "top_5")] == [2, 2, 2]
    assert measured[-1]["held_out_loss"] < measured[0]["held_out_loss"]
    assert measured[-1]["expected_tokens_per_step"] >= 1.0


def test_the_rate_follows_a_cosine_over_the_runs_own_steps() -> None:
    made = recipe(fresh_heads(), replace(PLAN, warmup_steps=5))

    assert made.rate(4) == 1.0
    assert made.rate(made.steps - 1) < 0.01

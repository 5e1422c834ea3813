import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from medusa_core.heads import DraftHeads
from medusa_core.training.adapter import Adapter
from medusa_core.training.base import FrozenBase
from medusa_core.training.loop import LoopPlan, fit, read_log
from medusa_core.training.loss import IGNORED, head_loss, next_labels
from medusa_core.training.medusa2 import JointRecipe, mean_nats, own_nats
from medusa_core.training.packing import Batch, PackedRows
from medusa_core.training.plan import JointPlan, TrainPlan
from medusa_core.training.workers import Alone
from tests.medusa_core.training.cast import alone, base, counting, packed

CPU = torch.device("cpu")
PLAN = TrainPlan(num_heads=2, rows_per_pass=2, passes_per_step=2, warmup_steps=2, max_length=32, shared_lm_head=False)
JOINT = JointPlan(
    two_stages=False, adapter_rank=4, adapter_dropout=0.0, epochs=10, learning_rate=5e-3, heads_weight=0.5
)
ON_DATA = replace(JOINT, self_distilled=False)
WHOLE_BASE = replace(ON_DATA, adapter_rank=None)


ROWS = packed(*counting(), length=PLAN.max_length)


def cast(
    joint: JointPlan = JOINT, plan: TrainPlan = PLAN, kind: type[JointRecipe] = JointRecipe
) -> tuple[FrozenBase, DraftHeads, JointRecipe]:
    own = FrozenBase.of("tiny", copy.deepcopy(base().model), base().tokenizer)
    torch.manual_seed(0)
    heads = DraftHeads.from_base(base().lm_head, plan.num_heads, shared_lm_head=False)
    adapter = Adapter(own, joint.adapter_rank, joint, plan.seed) if joint.adapter_rank is not None else None
    if adapter is None:
        own.model.requires_grad_(True)
    rows = packed(*counting(), length=plan.max_length)
    return own, heads, kind(own, adapter, heads, rows, rows, plan, joint, Alone(CPU))


def run(recipe: JointRecipe, folder: Path, save_every: int = 1000, steps: int | None = None) -> None:
    steps = steps if steps is not None else recipe.steps
    fit(recipe, LoopPlan("joint", steps, 1.0, save_every, None, None), folder, "run", Alone(CPU))


def gradients(joint: JointPlan, plan: TrainPlan) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    own, heads, recipe = cast(joint, plan)
    if joint.adapter_rank is not None:
        with torch.no_grad():  # a new adapter's second half is zero and hides the gradient of its first
            for name, parameter in own.model.named_parameters():
                if "lora_B" in name:
                    parameter.fill_(0.05)
    said = recipe.accumulate(0)
    named = [*own.model.named_parameters(), *heads.named_parameters()]
    losses = {name: value for name, value in said.items() if isinstance(value, float)}
    return {name: p.grad.clone() for name, p in named if p.grad is not None}, losses


@pytest.mark.parametrize("joint", [JOINT, ON_DATA, WHOLE_BASE], ids=["self-distilled", "on data", "whole base"])
def test_a_step_is_the_same_however_it_is_cut(joint: JointPlan) -> None:
    whole, losses = gradients(joint, replace(PLAN, rows_per_pass=4, passes_per_step=1))

    parts, same = gradients(joint, replace(PLAN, rows_per_pass=1, passes_per_step=4, rows_per_chunk=5))

    assert same == pytest.approx(losses, rel=1e-4, abs=1e-6)
    assert whole.keys() == parts.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, atol=1e-5, rtol=1e-3)


def test_gradients_in_chunks_are_those_of_the_plain_sum_of_both_losses() -> None:
    plan = replace(PLAN, rows_per_pass=1, passes_per_step=1, rows_per_chunk=3)
    own, heads, recipe = cast(WHOLE_BASE, plan)
    recipe.accumulate(0)
    found = {name: p.grad.clone() for name, p in own.model.named_parameters() if p.grad is not None}
    own.model.zero_grad()
    batch = packed(*counting(), length=plan.max_length).batch(0, 1)
    row = batch.tokens[:, :16]  # two examples of 16 tokens stand in the row

    total = torch.zeros(())
    hidden = own.hidden(batch)
    labels = next_labels(batch)
    own_loss = F.cross_entropy(own.logits(hidden).flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
    both = torch.cat([row, batch.tokens[:, 16:]])
    states = torch.cat([hidden[:, :16], hidden[:, 16:]])
    total = own_loss + WHOLE_BASE.heads_weight * head_loss(heads(states), both, plan.decay)
    total.backward()

    for name, parameter in own.model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, atol=1e-6, rtol=1e-3)


def test_with_an_adapter_not_a_bit_of_the_base_changes(tmp_path: Path) -> None:
    own, _, recipe = cast()

    run(recipe, tmp_path, steps=10)

    after = {name.replace(".base_layer", ""): tensor for name, tensor in own.model.state_dict().items()}
    assert all(torch.equal(tensor, after[name]) for name, tensor in base().model.state_dict().items())
    assert any("lora_B" in name and bool(tensor.any()) for name, tensor in after.items())


def test_base_and_heads_learn_from_data_together(tmp_path: Path) -> None:
    own, _, recipe = cast(WHOLE_BASE)
    before, rows = recipe.scores(), list(packed(*counting()).in_order(4))
    nats = mean_nats(own, rows, 100)

    run(recipe, tmp_path)

    assert mean_nats(own, rows, 100) < 0.7 * nats
    assert all(later < earlier for earlier, later in zip(before.nats, recipe.scores().nats, strict=True))


def test_self_distillation_keeps_what_the_base_says(tmp_path: Path) -> None:
    moved = {}
    for name, joint in {"held": JOINT, "free": ON_DATA}.items():
        own, _, recipe = cast(replace(joint, heads_weight=0.02, epochs=15))
        run(recipe, tmp_path / name)
        text = alone(*range(5, 30))
        with torch.no_grad():
            now, was = own.logits(own.hidden(text)), base().logits(base().hidden(text))
        moved[name] = float((now.softmax(-1) - was.softmax(-1)).abs().sum(-1).mean())

    assert moved["held"] < 0.5 * moved["free"]


def test_divergence_is_nothing_from_itself_and_counts_judged_rows_only() -> None:
    logits = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    other = logits.flip(0)
    labels = torch.tensor([1, IGNORED, 2])

    assert float(own_nats(logits, labels, logits)) == pytest.approx(0.0, abs=1e-6)
    p, q = other.softmax(-1), logits.softmax(-1)
    expected = float((p[[0, 2]] * (p[[0, 2]] / q[[0, 2]]).log()).sum())
    assert float(own_nats(logits, labels, other)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("two_stages", "first"), [(True, 5), (False, 0)])
def test_a_second_stage_goes_on_through_the_rows_where_the_first_one_ended(two_stages: bool, first: int) -> None:
    asked: list[int] = []

    class Watched(PackedRows):
        def batch(self, step: int, rows: int) -> Batch:
            asked.append(step)
            return super().batch(step, rows)

    own, heads, _ = cast()
    rows = Watched(**{name: getattr(ROWS, name) for name in PackedRows.__dataclass_fields__})
    joint = replace(WHOLE_BASE, two_stages=two_stages)
    recipe = JointRecipe(own, None, heads, rows, rows, replace(PLAN, epochs=2), joint, Alone(CPU))

    recipe.accumulate(0)

    assert asked == [first]


def test_the_ramp_is_a_quarter_of_a_sine() -> None:
    _, _, recipe = cast(replace(JOINT, heads_ramp=True, epochs=8))  # an even number of steps has a middle
    _, _, constant = cast(JOINT)

    weights = [recipe.heads_weight(step) for step in range(recipe.steps)]

    assert weights == sorted(weights)
    assert weights[recipe.steps // 2 - 1] == pytest.approx(0.5 * math.sin(math.pi / 4))
    assert weights[-1] == pytest.approx(0.5)
    assert constant.heads_weight(0) == 0.5


def test_the_heads_learn_faster_than_the_base() -> None:
    _, _, recipe = cast()

    (optimizer,) = recipe.optimizers()

    assert [group["lr"] for group in optimizer.param_groups] == [5e-3, 2e-2]


@pytest.mark.parametrize("joint", [replace(JOINT, adapter_dropout=0.3), WHOLE_BASE], ids=["dropout", "whole base"])
def test_a_resumed_run_is_the_undisturbed_one(tmp_path: Path, joint: JointPlan) -> None:
    class Killed(Exception):
        pass

    class Dying(JointRecipe):
        def accumulate(self, step: int) -> dict[str, float | list[float]]:
            if step == 6:
                raise Killed
            return dict(super().accumulate(step))

    joint = replace(joint, epochs=4)
    undisturbed, killed, resumed = cast(joint), cast(joint, kind=Dying), cast(joint)
    run(undisturbed[2], tmp_path / "a", save_every=4)
    with pytest.raises(Killed):
        run(killed[2], tmp_path / "b", save_every=4)

    run(resumed[2], tmp_path / "b", save_every=4)

    for whole, part in ((undisturbed[0].model, resumed[0].model), (undisturbed[1], resumed[1])):
        ended = part.state_dict()
        assert all(torch.equal(tensor, ended[name]) for name, tensor in whole.state_dict().items())


def test_the_log_tells_of_both_losses_and_of_the_base_on_held_out_text(tmp_path: Path) -> None:
    _, _, recipe = cast()

    run(recipe, tmp_path, steps=4)

    lines = read_log(tmp_path)
    assert {"own", "heads"} <= lines[0].keys()
    measured = lines[-1]["evaluation"]
    assert measured["held_out_loss"] > measured["own_nats"] > 0.0

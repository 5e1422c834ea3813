"""A short training run on the demo model's own answers; to its end it is run by `make demo`."""

from pathlib import Path

import torch

from medusa_core.heads import DraftHeads
from medusa_core.training.base import FrozenBase
from medusa_core.training.distill import DistillPlan, distill
from medusa_core.training.encoding import read_examples
from medusa_core.training.loop import LoopPlan, fit
from medusa_core.training.medusa1 import HeadsRecipe
from medusa_core.training.packing import Examples, PackedRows
from medusa_core.training.plan import TrainPlan
from medusa_core.training.workers import Alone

CPU = torch.device("cpu")
PROMPTS = Path(__file__).parents[2] / "medusa_core" / "demo" / "held_out.jsonl"
# Some 2,000 tokens of 40 answers, four times: a few seconds of one core.
PLAN = TrainPlan(epochs=4, max_length=256, rows_per_pass=1, passes_per_step=1)


def test_seconds_of_training_lower_the_held_out_loss_of_every_head_and_leaves_the_base_alone(tmp_path: Path) -> None:
    prompts, answers = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    lines = PROMPTS.read_text(encoding="utf-8").splitlines(keepends=True)
    prompts.write_text("".join(line for line in lines if "messages" in line), encoding="utf-8")
    distill("demo", prompts, answers, DistillPlan(max_tokens=64), "cpu")
    base = FrozenBase.load("demo", CPU)
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    parts = Examples.of(read_examples(answers, base.tokenizer, PLAN.max_length)).split(20.0)
    trained, held_out = (PackedRows.pack(part, PLAN.max_length, PLAN.seed, base.packs) for part in parts)
    heads = DraftHeads.from_base(base.lm_head, PLAN.num_heads)
    recipe = HeadsRecipe(base, heads, trained, held_out, PLAN, Alone(CPU))
    untrained = recipe.scores()

    fit(
        recipe, LoopPlan("training heads", recipe.steps, PLAN.gradient_norm, 1000, None, None), tmp_path, "", Alone(CPU)
    )

    pairs = list(zip(untrained.nats, recipe.scores().nats, strict=True))
    assert [(earlier, later) for earlier, later in pairs if not later < 0.9 * earlier] == []  # it is by 30 %
    assert [name for name, tensor in base.model.state_dict().items() if not torch.equal(tensor, before[name])] == []

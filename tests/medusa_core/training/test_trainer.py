import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from medusa_core.calibration import Calibration
from medusa_core.checkpoints import load_heads
from medusa_core.errors import ConfigurationError
from medusa_core.heads import DraftHeads
from medusa_core.training.calibrate import calibrate_heads
from medusa_core.training.encoding import Example
from medusa_core.training.trainer import TrainPlan, batches, rate, split_held_out, train, train_heads
from tests.medusa_core.training.cast import base, saved_base

PLAN = TrainPlan(
    num_heads=2, epochs=60, tokens_per_batch=64, warmup_steps=5, learning_rate=1e-2, save_every=10, shared_lm_head=False
)
COUNTING = [Example(tuple((start + step) % 40 + 5 for step in range(16)), (True,) * 16) for start in range(0, 40, 2)]


def fresh_heads() -> DraftHeads:
    return DraftHeads.from_base(base().lm_head, PLAN.num_heads, shared_lm_head=False)


def test_heads_learn_to_count_and_the_base_stays_as_it_was(tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in base().model.state_dict().items()}
    heads = fresh_heads()

    train_heads(base(), heads, COUNTING, PLAN, tmp_path)

    accuracies = calibrate_heads(base(), heads, [COUNTING]).accuracies
    assert min(shares[0] for shares in accuracies) > 0.9
    assert all(torch.equal(before[name], tensor) for name, tensor in base().model.state_dict().items())


def test_a_resumed_run_ends_where_an_undisturbed_one_does(tmp_path: Path) -> None:
    plan = replace(PLAN, epochs=6, save_every=20)
    undisturbed, first, second = fresh_heads(), fresh_heads(), fresh_heads()
    train_heads(base(), undisturbed, COUNTING, plan, tmp_path / "a")
    train_heads(base(), first, COUNTING, plan, tmp_path / "b")  # leaves the state of step 20 behind, the run has 30

    assert torch.load(tmp_path / "b" / "training_state.pt", weights_only=True)["step"] == 20

    train_heads(base(), second, COUNTING, plan, tmp_path / "b")

    torch.testing.assert_close(second.weight, undisturbed.weight)


def test_another_plan_does_not_resume_an_old_run(tmp_path: Path) -> None:
    plan = replace(PLAN, epochs=2)
    train_heads(base(), fresh_heads(), COUNTING, plan, tmp_path)

    with pytest.raises(ConfigurationError, match="another plan or other data"):
        train_heads(base(), fresh_heads(), COUNTING, replace(plan, learning_rate=1e-3), tmp_path)


def test_train_writes_heads_and_calibration_and_no_leftovers(tmp_path: Path) -> None:
    model = saved_base(tmp_path / "model")
    data = tmp_path / "data.jsonl"
    texts = [f"def dedent{n}(text):\n    return text.strip({n})\n" for n in range(30)]
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    out = tmp_path / "heads"

    calibration = train(str(model), data, out, replace(PLAN, epochs=1, held_out_percent=30.0), "cpu")

    assert Calibration.load(out / "calibration.json").samples == calibration.samples
    assert load_heads(out, base().lm_head).config.num_heads == 2
    assert sorted(path.name for path in out.iterdir()) == [
        "calibration.json",
        "config.json",
        "log.jsonl",
        "medusa_lm_head.safetensors",
    ]


def test_too_little_data_is_refused(tmp_path: Path) -> None:
    model = saved_base(tmp_path / "model")
    (tmp_path / "data.jsonl").write_text('{"text": "def dedent(text):"}\n')

    with pytest.raises(ConfigurationError, match="give more data"):
        train(str(model), tmp_path / "data.jsonl", tmp_path / "heads", PLAN, "cpu")


def test_every_example_is_in_one_batch_and_batches_keep_their_size() -> None:
    examples = [Example((1,) * length, (True,) * length) for length in range(1, 30)]

    made = batches(examples, tokens_per_batch=60, seed=3)

    assert sorted(len(example.tokens) for batch in made for example in batch) == list(range(1, 30))
    assert all(len(batch) * max(len(example.tokens) for example in batch) <= 60 for batch in made)
    assert made != batches(examples, tokens_per_batch=60, seed=4)


def test_equal_examples_fall_on_the_same_side_of_the_split() -> None:
    trained, held_out = split_held_out(COUNTING * 2, 30.0)

    assert len(trained) + len(held_out) == 2 * len(COUNTING)
    assert not {example.tokens for example in trained} & {example.tokens for example in held_out}
    assert held_out


def test_the_rate_rises_falls_and_ends_at_nothing() -> None:
    rates = [rate(step, 100, 10) for step in range(101)]

    assert rates[9] == 1.0
    assert rates == sorted(rates[:10]) + sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0.0)

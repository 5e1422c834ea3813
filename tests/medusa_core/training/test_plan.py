from dataclasses import replace
from typing import Any

import pytest

from medusa_core.errors import ConfigurationError
from medusa_core.training.plan import JointPlan, TrainPlan, fingerprint


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"num_heads": 0}, "num_heads is 0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"num_heads": 8, "max_length": 9}, "8 heads need rows of at least 10 tokens"),
        ({"lm_head_rank": 8, "shared_lm_head": False}, "lm_head_rank"),
        ({"patience": 3}, "evaluate_every"),
        ({"held_out_percent": 100.0}, "held_out_percent is 100.0"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_a_plan_that_cannot_work_is_refused(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        TrainPlan(**values)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"adapter_rank": 0}, "adapter_rank is 0"),
        ({"adapter_rank": None}, "self-distillation"),
        ({"heads_weight": 0.0}, "heads_weight is 0.0"),
    ],
)
def test_a_joint_plan_that_cannot_work_is_refused(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        JointPlan(**values)


def test_steps_cover_all_rows_in_every_pass() -> None:
    plan = TrainPlan(rows_per_pass=2, passes_per_step=3)

    assert plan.rows_per_step == 6
    assert plan.steps(rows=7, epochs=2) == 3
    assert plan.steps(rows=1, epochs=1) == 1


def test_logits_in_memory_do_not_grow_with_heads_and_vocabulary() -> None:
    def most(heads: int, vocabulary: int) -> int:
        return TrainPlan(num_heads=heads, rows_per_chunk=2048).chunk_rows(vocabulary) * heads * vocabulary

    assert TrainPlan(num_heads=4, rows_per_chunk=2048).chunk_rows(4096) == 2048
    assert all(most(heads, vocabulary) <= 2**28 for heads in (1, 4, 10) for vocabulary in (32_000, 256_000))
    assert TrainPlan().chunk_rows(2**30) == 1


def test_a_run_is_told_from_others_by_what_it_learns_and_not_by_what_it_writes() -> None:
    plan, joint = TrainPlan(), JointPlan()
    own = fingerprint(plan, joint, "model")

    assert own == fingerprint(
        replace(plan, save_every=7), replace(joint, merge=True, max_perplexity_percent=9.0), "model"
    )
    others = [
        (replace(plan, seed=1), joint, "model"),
        (plan, replace(joint, epochs=3), "model"),
        (plan, joint, "other"),
    ]
    assert own not in {fingerprint(*facts) for facts in others}

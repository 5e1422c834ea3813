import pytest
import torch

from medusa_core.heads import DraftHeads
from medusa_core.training.calibrate import best_temperature, calibrate_heads
from medusa_core.training.scores import COUNTED_RANKS, judged_rows
from tests.medusa_core.training.cast import alone, base

TEXT = alone(5, 6, 7, 8, 9, 10, 11, 12)


def test_every_head_is_divided_by_its_own_count() -> None:
    # One text of 8 tokens: head 1 is judged on 6 of them, head 4 on 3. A common divisor would understate later heads.
    own = base()
    heads = DraftHeads.from_base(own.lm_head, num_heads=4)

    calibration = calibrate_heads(own, heads, [TEXT])

    assert calibration.samples == (6, 5, 4, 3)


def test_accuracies_are_what_the_heads_really_guess() -> None:
    own = base()
    heads = DraftHeads.from_base(own.lm_head, num_heads=1)
    rows, labels = judged_rows(own, TEXT, 1)
    right = (heads(rows)[0].argmax(dim=-1) == labels[0]).float().mean()

    calibration = calibrate_heads(own, heads, [TEXT])

    assert calibration.accuracies[0][0] == pytest.approx(float(right))
    assert len(calibration.accuracies[0]) == COUNTED_RANKS


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_made_the_labels_is_found(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3.0 * torch.randn(20_000, 12, generator=generator)
    labels = (logits / temperature).softmax(dim=-1).multinomial(1, generator=generator)[:, 0]

    assert best_temperature(logits, labels) == pytest.approx(temperature, rel=0.05)


def test_without_samples_the_temperature_is_one() -> None:
    assert best_temperature(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)) == 1.0


def test_heads_that_draft_from_few_tokens_are_measured_on_all() -> None:
    own = base()
    few = torch.tensor([7, 9, 11])
    heads = DraftHeads.from_base(own.lm_head, num_heads=1, token_ids=few)

    calibration = calibrate_heads(own, heads, [TEXT])

    # of the six tokens asked for, 7 to 12, three can never be guessed
    assert calibration.samples == (6,)
    assert sum(calibration.accuracies[0][:3]) == pytest.approx(0.5)
    assert 0.25 <= calibration.temperatures[0] <= 4.0

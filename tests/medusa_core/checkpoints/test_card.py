from medusa_core.calibration import Calibration
from medusa_core.checkpoints.card import heads_card
from medusa_core.config import HeadsConfig

CONFIG = HeadsConfig(2, 1, 16, 40, True, 4)


def test_a_card_names_the_base_for_the_hub_and_tells_measured_accuracies() -> None:
    measured = Calibration(((0.5, 0.2, 0.1), (0.25, 0.1)), (100, 90), (1.0, 1.0), tokens_per_step={16: 2.25})

    card = heads_card("some/base", "medusa", CONFIG, "bfloat16", measured)

    assert card.startswith("---\nbase_model: some/base\n")
    assert "| 1 | 2 | 0.500 | 0.700 | 0.800 | 100 |" in card
    assert "| 2 | 3 | 0.250 | 0.350 | 0.350 | 90 |" in card
    assert "2.25 at 16 nodes" in card
    assert "low-rank" in card and "bfloat16" in card


def test_without_a_calibration_a_card_says_who_makes_one_and_links_to_no_folder() -> None:
    card = heads_card("/home/me/model", "medusa", CONFIG, "float32", None)

    assert "medusa calibrate" in card
    assert "base_model:" not in card

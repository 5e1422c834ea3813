from medusa_core.calibration import Calibration
from medusa_core.demo.card import Results, is_recalled, measure_demo, model_card
from medusa_core.demo.corpus import Corpus, Document, Entry
from medusa_core.demo.measure import Answered, Measurer, Speculated
from medusa_core.demo.pretrain import PretrainPlan
from medusa_core.training.plan import JointPlan, TrainPlan

ENTRY = Entry("box.open", "function", "Opens it.", held_out=False)
CORPUS = Corpus((Document("box.py", "x = 1\n", False),), (ENTRY, Entry("box.shut", "function", "Shuts it.", True)))
RESULTS = Results(
    speculated=Speculated({16: 2.75}, {16: 2.5}, {16: 3.0}),
    heads_alone=Speculated({16: 2.25}, {16: 2.375}, {16: 2.0}),
    calibration=Calibration(((0.61, 0.1), (0.41, 0.2)), (10, 9), (1.2, 1.4)),
    recalled=(150, 200),
    well_known={"len": True, "sorted": False},
    ended=(38, 40),
    losses={"conversations": 1.5},
)


class Parrot(Measurer):
    """Gives one answer to everything."""

    def __init__(self, answer: Answered) -> None:
        self._answer = answer

    def answer(self, prompt: dict[str, object], tree_nodes: int) -> Answered:
        return self._answer


def test_the_card_quotes_what_was_measured() -> None:
    card = model_card(CORPUS, PretrainPlan(steps=77), TrainPlan(), JointPlan(), RESULTS)

    assert "| 16 | 2.75 (2.25) | 2.50 (2.38) | 3.00 (2.00) |" in card
    assert "| 1 | 0.610 | 0.710 | 1.20 |" in card
    assert "150 of 200 sampled" in card
    assert "1 of 2 (len; not: sorted)" in card
    assert "38 of 40" in card
    assert "--steps 77" in card


def test_the_card_names_licences_and_limits() -> None:
    card = model_card(CORPUS, PretrainPlan(), TrainPlan(), JointPlan(), RESULTS)

    assert "license: apache-2.0" in card
    assert "PSF License" in card
    assert "## Limits" in card


def test_only_the_documentation_itself_and_an_end_count_as_recalled() -> None:
    assert is_recalled(Parrot(Answered("Opens it.", 5, 2, ended=True)), ENTRY)
    assert not is_recalled(Parrot(Answered("Opens it.", 5, 2, ended=False)), ENTRY)
    assert not is_recalled(Parrot(Answered("Opens it. Or not.", 5, 2, ended=True)), ENTRY)


def test_measuring_is_public() -> None:
    assert callable(measure_demo)

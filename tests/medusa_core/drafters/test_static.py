import pytest
import torch

from medusa_core.calibration import Calibration
from medusa_core.config import SpeculationMode, SpeculationParams
from medusa_core.drafters import Asked, Drafter, DrafterSource, DraftState, MedusaDrafter, StaticTrees
from medusa_core.errors import InvalidParameter
from medusa_core.heads import DraftHeads
from tests.cast import CPU, MockBackbone, make_engine, random_heads, run

HEADS = random_heads(torch.randn(23, 16, generator=torch.Generator().manual_seed(0)), 2)
CALIBRATION = Calibration(((0.6, 0.2, 0.1), (0.4, 0.1, 0.0)), (9, 9), (1.0, 1.0), trees={3: ((0,), (1,))})


def drafter(
    mode: SpeculationMode = "auto",
    max_nodes: int | None = None,
    is_default: bool = True,
    has_grammar: bool = False,
    prediction: tuple[int, ...] = (),
    calibration: Calibration | None = CALIBRATION,
) -> Drafter:
    others = DrafterSource(HEADS, torch.ones(2), 4, 8, True, CPU)
    source = StaticTrees(HEADS, torch.ones(2), calibration, 4, is_default, others)
    return source.get(Asked(SpeculationParams(mode, max_nodes), prediction, 1, has_grammar))


def shape(found: Drafter) -> list[tuple[int, int]]:
    """Parent and depth of every node."""
    hidden = torch.randn(16, generator=torch.Generator().manual_seed(1))
    tree = found.draft(DraftState(torch.tensor(5), hidden, torch.tensor(12)))
    return list(zip(tree.parent.tolist(), tree.depth.tolist(), strict=True))


def test_the_shape_is_the_calibrations_whatever_the_heads_say() -> None:
    assert shape(drafter()) == [(0, 0), (0, 1), (0, 1), (1, 2)]  # 0.6, 0.2 and 0.6 x 0.4
    assert shape(drafter(max_nodes=3)) == [(0, 0), (0, 1), (0, 1)]  # as stored, though 0.6 x 0.4 is likelier


def test_a_request_gets_no_larger_tree_than_there_is_room_for() -> None:
    assert drafter("static", max_nodes=99).num_nodes == 4


def test_a_vocabulary_that_was_cut_leaves_out_the_guesses_it_has_no_room_for() -> None:
    cut = DraftHeads.from_base(torch.randn(23, 16), 2, token_ids=torch.tensor([3, 7])).requires_grad_(False)
    others = DrafterSource(cut, torch.ones(2), 4, 8, True, CPU)
    calibration = Calibration(((0.5, 0.3, 0.1), (0.01, 0.0, 0.0)), (9, 9), (1.0, 1.0))
    found = StaticTrees(cut, torch.ones(2), calibration, 4, True, others).get(Asked(SpeculationParams(), (), 1, False))

    assert shape(found) == [(0, 0), (0, 1), (0, 1)]


def test_heads_that_were_never_right_leave_plain_decoding() -> None:
    found = drafter(calibration=Calibration(((0.0,), (0.0,)), (9, 9), (1.0, 1.0)))

    assert shape(found) == [(0, 0)]


def test_auto_is_what_the_operator_chose_and_a_request_may_ask_for_either() -> None:
    assert isinstance(drafter("auto"), MedusaDrafter)
    assert not isinstance(drafter("tree"), MedusaDrafter)
    assert not isinstance(drafter("auto", is_default=False), MedusaDrafter)
    assert isinstance(drafter("static", is_default=False), MedusaDrafter)


def test_what_comes_and_goes_is_drafted_into_a_tree_that_changes() -> None:
    assert not isinstance(drafter(has_grammar=True), MedusaDrafter)
    assert not isinstance(drafter(prediction=(1, 2)), MedusaDrafter)


def test_off_and_a_single_node_are_plain_decoding() -> None:
    assert drafter("off").num_nodes == 1
    assert drafter("static", max_nodes=1).num_nodes == 1


def test_without_a_calibration_no_shape_is_known() -> None:
    with pytest.raises(InvalidParameter, match="medusa calibrate"):
        drafter("static", calibration=None)


def test_a_static_tree_changes_no_token() -> None:
    backbone = MockBackbone()
    heads = random_heads(backbone.lm_head, 2)
    plain = run(make_engine(backbone), (3, 1, 4), max_tokens=40)
    static = StaticTrees(
        heads, torch.ones(2), CALIBRATION, 4, True, DrafterSource(heads, torch.ones(2), 4, 8, True, CPU)
    ).get(Asked(SpeculationParams(), (), 3, False))

    assert run(make_engine(backbone, heads, drafter=static), (3, 1, 4), max_tokens=40) == plain

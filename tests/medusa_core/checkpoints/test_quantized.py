import pytest
import torch

from medusa_core.checkpoints.layouts import Part
from medusa_core.checkpoints.quantized import dequantized
from medusa_core.checkpoints.shapes import ONE_LM_HEAD
from medusa_core.errors import HeadsMismatch

WEIGHT, SCALE = Part("block", 0, 0, "weight"), Part("block", 0, 0, "weight_scale")
EIGHT = torch.tensor([[1.0, 2.0], [-3.0, 4.0]]).to(torch.float8_e4m3fn)


@pytest.mark.parametrize("scale", [torch.tensor(0.5), torch.tensor([0.5]), torch.tensor([[0.5], [0.5]])])
def test_a_weight_times_its_scale_is_what_was_meant(scale: torch.Tensor) -> None:
    unused = {Part("block", 0, 0, "input_scale"): torch.tensor(7.0)}
    found, is_quantized = dequantized({WEIGHT: EIGHT, SCALE: scale, **unused}, "test")

    assert is_quantized and set(found) == {WEIGHT}
    assert found[WEIGHT].tolist() == [[0.5, 1.0], [-1.5, 2.0]]


def test_what_has_no_scale_stays_as_it_is() -> None:
    tensors = {WEIGHT: torch.ones(2, 2)}

    assert dequantized(tensors, "test") == (tensors, False)


REFUSED = {
    "of several blocks": ({WEIGHT: EIGHT, SCALE: torch.ones(2, 2)}, r"'weight_scale' of shape \[2, 2\]"),
    "of each column": ({WEIGHT: EIGHT, SCALE: torch.ones(1, 2)}, r"'weight_scale' of shape \[1, 2\]"),
    "of as many blocks as rows": (
        {WEIGHT: torch.ones(4, 4).to(torch.float8_e4m3fn), SCALE: torch.ones(2, 2)},
        r"'weight_scale' of shape \[2, 2\]",
    ),
    "of another kind": ({WEIGHT: EIGHT, Part("block", 0, 0, "pre_quant_scale"): torch.ones(2)}, "'pre_quant_scale'"),
    "of packed integers": ({WEIGHT: torch.ones(2, 2, dtype=torch.uint8), SCALE: torch.ones(1)}, "uint8, only FP8"),
    "without a weight": ({SCALE: torch.ones(1)}, "without its weight"),
    "that is not there": ({WEIGHT: EIGHT}, "float8_e4m3fn without a 'weight_scale'"),
    "of integers that is not there": ({ONE_LM_HEAD: torch.ones(2, 2, dtype=torch.int8)}, "int8 without"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_scale_that_cannot_be_undone_is_refused(case: str) -> None:
    tensors, reason = REFUSED[case]
    with pytest.raises(HeadsMismatch, match=reason):
        dequantized(tensors, "test")

import torch

from medusa_core.training.precision import bf16_pays, mixed_precision


def test_a_gpu_is_not_asked() -> None:
    assert bf16_pays("cuda")


def test_products_keep_float32_where_bfloat16_does_not_pay() -> None:
    matrix = torch.eye(4)
    with mixed_precision(torch.device("cpu")):
        product = matrix @ matrix

    assert product.dtype == (torch.bfloat16 if bf16_pays("cpu") else torch.float32)

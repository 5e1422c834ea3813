import ctypes
import logging
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from medusa_core.fusion.kernels import TorchKernels
from medusa_core.fusion.native import NativeKernels, build, build_with, choose_kernels
from tests.medusa_core.fusion.cast import TORCH, attention

CPU = torch.device("cpu")
GENERATOR = torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def native() -> NativeKernels:
    library = build()
    if library is None:
        pytest.skip("no C compiler here can build the kernels")
    return NativeKernels(library, TORCH)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR)


@pytest.mark.parametrize(("width", "out"), [(8, 8), (64, 61), (256, 40), (24, 100)])
@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 7, 8, 15, 32, 33])
def test_products_equal_torchs(native: NativeKernels, num_rows: int, width: int, out: int) -> None:
    rows, weight = random(num_rows, width), random(out, width)
    for added in (None, random(num_rows, out), random(out)):
        expected = TORCH.multiply_by(weight)(rows, added)

        assert torch.allclose(native.multiply_by_float(weight)(rows, added), expected, atol=1e-5 * width**0.5)


def test_a_weight_that_is_stored_in_bfloat16_gives_the_same_bits_read_as_that(native: NativeKernels) -> None:
    weight = random(61, 64).bfloat16().float()
    for num_rows in (1, 6, 15):
        rows = random(num_rows, 64)

        found = native.multiply_by_bfloat16(weight)(rows, None)

        assert torch.equal(found, native.multiply_by_float(weight)(rows, None))


def test_a_row_among_others_is_bitwise_what_it_is_alone(native: NativeKernels) -> None:
    rows, weight, added = random(15, 64), random(61, 64), random(15, 61)
    multiply = native.multiply_by_float(weight)
    together = multiply(rows, added)

    for row in range(15):
        one = slice(row, row + 1)
        assert torch.equal(multiply(rows[one], added[one]), together[one])


def test_shapes_that_the_kernels_do_not_know_are_left_to_torch(native: NativeKernels) -> None:
    for width, out in ((12, 16), (16, 5)):
        rows, weight = random(4, width), random(out, width)

        assert torch.equal(native.multiply_by(weight)(rows, None), TORCH.multiply_by(weight)(rows, None))
    rows, weight = random(4, 16).double(), random(16, 16).double()
    assert torch.equal(native.multiply_by(weight)(rows, None), TORCH.multiply_by(weight)(rows, None))
    rows, weight = random(4, 12), random(12)
    assert torch.equal(native.rms_norm(rows, weight, 1e-6), TORCH.rms_norm(rows, weight, 1e-6))


def test_rows_need_not_be_contiguous(native: NativeKernels) -> None:
    wide, weight = random(4, 32), random(16, 16)

    found = native.multiply_by_float(weight)(wide[:, 16:], None)

    assert torch.allclose(found, wide[:, 16:] @ weight.T, atol=1e-4)


@pytest.mark.parametrize("is_exact", [False, True])
def test_the_way_that_is_chosen_for_a_weight_multiplies_by_it(native: NativeKernels, is_exact: bool) -> None:
    for _ in range(2):  # the second of a shape is not tried again
        rows, weight = random(8, 64), random(64, 64)
        weight = weight.bfloat16().float() if is_exact else weight

        assert torch.allclose(native.multiply_by(weight)(rows, None), rows @ weight.T, atol=1e-4)


def test_int8_weights_are_multiplied_more_exactly_than_they_are_rounded(native: NativeKernels) -> None:
    rows, weight, scales = random(2, 100), torch.randint(-127, 128, (70, 100), generator=GENERATOR), random(70).abs()
    expected = rows @ (weight * scales[:, None]).T

    multiply = native.multiply_by_int8(weight.to(torch.int8), scales)

    assert multiply is not None and native.multiply_by_int8(torch.zeros(1, 8200, dtype=torch.int8), scales) is None
    assert float((multiply(rows) - expected).abs().max()) < 2e-3 * float(expected.abs().max())


def test_norms_equal_torchs(native: NativeKernels) -> None:
    rows, weight = random(5, 64), random(64)

    assert torch.allclose(native.rms_norm(rows, weight, 1e-3), TORCH.rms_norm(rows, weight, 1e-3), atol=1e-6)


def test_gates_equal_torchs_for_small_large_and_extreme_values(native: NativeKernels) -> None:
    rows = torch.cat([random(3, 22), 30 * random(2, 22), torch.full((1, 22), -200.0), torch.full((1, 22), 200.0)])

    assert torch.allclose(native.gate_silu(rows), TORCH.gate_silu(rows), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("part", [8, 4, 2])
def test_heads_are_turned_as_torch_turns_them(native: NativeKernels, part: int) -> None:
    heads, factors = random(3, 6, 8), random(3, 2, part)
    expected = heads.clone()
    TORCH.turn(expected, 5, factors)

    native.turn(heads, 5, factors)

    assert torch.allclose(heads, expected, atol=1e-6)


@pytest.mark.parametrize(("num_heads", "num_kv_heads", "dim"), [(4, 2, 64), (6, 2, 24), (3, 3, 8)])
@pytest.mark.parametrize("num_rows", [1, 2, 7, 32, 33])
def test_attention_equals_torchs(
    native: NativeKernels, num_rows: int, num_heads: int, num_kv_heads: int, dim: int
) -> None:
    heads, buffer = random(num_rows, num_heads + 2 * num_kv_heads, dim), random(2, 3, 1, num_kv_heads, 70, dim)
    places, other = 20 + torch.randperm(num_rows, generator=GENERATOR), buffer.clone()
    allowed = torch.rand(num_rows, 61, generator=GENERATOR) < 0.4
    allowed[:, 3] = True
    mask = torch.zeros(num_rows, 61).masked_fill(~allowed, torch.finfo(torch.float32).min)
    folded = mask.repeat(num_heads // num_kv_heads, 1)[None, None]

    expected = TORCH.attend(heads, buffer[:, 1, 0], places, folded, 0.2)
    found = native.attend(heads, other[:, 1, 0], places, folded, 0.2)

    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.equal(other, buffer)


def test_rows_that_a_mask_hides_weigh_nothing_whatever_stands_there(native: NativeKernels) -> None:
    heads, kept, mask = random(2, 6, 16), random(2, 1, 40, 16), torch.zeros(1, 1, 8, 40)
    kept[1, :, 10:20], mask[..., 10:20] = 1e38, torch.finfo(torch.float32).min
    found, expected = (by.attend(heads, kept, torch.tensor([5, 6]), mask, 0.2) for by in (native, TORCH))

    assert torch.allclose(found, expected, atol=1e-5)


def test_long_attention_is_left_to_torch_where_that_has_several_threads(native: NativeKernels) -> None:
    def is_torchs(threads: int, visible: int) -> bool:
        torch.set_num_threads(threads)
        heads, kept, mask = random(8, 16, 64), random(2, 4, 1024, 64), torch.zeros(1, 1, 16, visible)
        found, expected = (by.attend(heads, kept, torch.arange(8), mask, 0.1) for by in (native, TORCH))
        return torch.equal(found, expected)

    before = torch.get_num_threads()
    try:
        assert [is_torchs(1, 1024), is_torchs(2, 64), is_torchs(2, 1024)] == [False, False, True]
    finally:
        torch.set_num_threads(before)


def a_compiler() -> str:
    found = shutil.which("cc")
    if found is None:
        pytest.skip("no C compiler here")
    return found


def test_a_compiler_that_fails_is_passed_over_for_one_that_can(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="medusa_core")
    works, failing, lying = a_compiler(), tmp_path / "failing", tmp_path / "lying"
    failing.write_text("#!/bin/sh\nexit 1\n")
    lying.write_text("#!/bin/sh\nexit 0\n")
    for script in (failing, lying):
        script.chmod(0o755)

    assert build_with([str(failing), str(lying), works], None) is not None
    assert [f"{script} builds no kernels" in caplog.text for script in (failing, lying, works)] == [True, True, False]


def test_without_a_folder_to_build_in_torch_does_the_work(tmp_path: Path) -> None:
    assert build_with([a_compiler()], tmp_path / "absent") is None


def test_nothing_of_a_build_stays(tmp_path: Path) -> None:
    build_with([a_compiler(), str(tmp_path / "no compiler")], tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_a_function_of_the_same_name_elsewhere_is_not_taken_for_ones_own(tmp_path: Path) -> None:
    compiler, source, other = a_compiler(), tmp_path / "other.c", tmp_path / "other.so"
    source.write_text("void product(void) {}")
    subprocess.run([compiler, "-shared", "-fPIC", str(source), "-o", str(other)], check=True)
    ctypes.CDLL(str(other), mode=ctypes.RTLD_GLOBAL)

    library = build_with([compiler], None)
    assert library is not None
    heads, kept, mask = random(2, 6, 16), torch.zeros(2, 1, 40, 16), torch.zeros(1, 1, 8, 40)
    mixed = NativeKernels(library, TORCH).attend(heads, kept, torch.tensor([5, 6]), mask, 0.2)

    assert torch.allclose(mixed, TORCH.attend(heads, kept, torch.tensor([5, 6]), mask, 0.2), atol=1e-5)


def test_compiled_kernels_are_for_float32_on_a_cpu_only() -> None:
    assert isinstance(choose_kernels(CPU, torch.float32, attention, False), TorchKernels)
    assert isinstance(choose_kernels(CPU, torch.bfloat16, attention, True), TorchKernels)
    assert isinstance(choose_kernels(torch.device("cuda"), torch.float32, attention, True), TorchKernels)
    if shutil.which("gcc") is not None:
        assert isinstance(choose_kernels(CPU, torch.float32, attention, True), NativeKernels)

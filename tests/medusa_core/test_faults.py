import pytest
import torch

from medusa_core.errors import CheckpointError, DeviceFault, OutOfMemory
from medusa_core.faults import fault_of, told_as_faults


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), OutOfMemory),
        (MemoryError(), OutOfMemory),
        (RuntimeError("CUDA error: out of memory"), OutOfMemory),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), OutOfMemory),
        (RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors"), DeviceFault),
        (torch.AcceleratorError("device-side assert triggered"), DeviceFault),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), None),
    ],
)
def test_a_failing_operation_is_told_by_what_it_means(error: RuntimeError, expected: type | None) -> None:
    fault = fault_of(error, "less, please")

    assert type(fault) is (expected if expected is not None else type(None))
    if expected is OutOfMemory:
        assert str(fault) == "less, please"


def test_what_a_processor_says_without_memory_is_understood() -> None:
    with pytest.raises(OutOfMemory, match="less, please"), told_as_faults("less, please"):
        torch.empty(1 << 50)


def test_of_a_lost_device_the_first_line_is_told() -> None:
    fault = fault_of(RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might"), "")

    assert "(CUDA error: an illegal memory access was encountered)" in str(fault)


def test_other_errors_pass_as_they_are() -> None:
    for error in (RuntimeError("a bug"), CheckpointError("no heads")):
        with pytest.raises(type(error), match=str(error)), told_as_faults("less, please"):
            raise error

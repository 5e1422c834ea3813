import pytest
import torch
from torch import nn

from medusa_core.errors import ConfigurationError
from medusa_core.training.workers import Alone, of_the_leader, sum_gradients, workers_of_this_launch

CPU = torch.device("cpu")


class Twins(Alone):
    """Two processes of which the other one has the very same tensors."""

    count = 2

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor * 2


def test_a_process_that_nobody_launched_is_alone() -> None:
    workers = workers_of_this_launch("cpu")

    assert (workers.rank, workers.count, workers.device) == (0, 1, CPU)
    assert workers.sum(torch.ones(2)).tolist() == [1.0, 1.0]


class Follower(Alone):
    """The second of two processes; the first has a 3 wherever this one adds nothing."""

    rank, count = 1, 2

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor + 3.0


def test_all_go_by_the_leaders_number() -> None:
    assert of_the_leader(Alone(CPU), 7.1) == 7.1
    assert of_the_leader(Follower(CPU), 7.1) == 3.0


def test_gradients_are_summed_each_in_its_own_shape() -> None:
    first, second = nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(4))
    first.grad, second.grad = torch.ones(2, 3), torch.arange(4.0)

    sum_gradients(Twins(CPU), [first, second])

    assert first.grad.tolist() == [[2.0] * 3] * 2
    assert second.grad is not None
    assert second.grad.tolist() == [0.0, 2.0, 4.0, 6.0]


def test_a_parameter_without_a_gradient_takes_part_all_the_same() -> None:
    # or the processes would exchange blocks of different lengths
    parameter = nn.Parameter(torch.zeros(3))

    sum_gradients(Twins(CPU), [parameter])

    assert parameter.grad is not None
    assert parameter.grad.tolist() == [0.0, 0.0, 0.0]


def test_alone_gradients_stay_as_they_are() -> None:
    parameter = nn.Parameter(torch.zeros(3))

    sum_gradients(Alone(CPU), [parameter])

    assert parameter.grad is None


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigurationError, match="'tpu'"):
        workers_of_this_launch("tpu")

from collections.abc import Callable
from typing import Any

import pytest
import torch

from medusa_core.runners.capture import HostReads, PlainLauncher

NUMBERS = torch.arange(6)

READS: dict[str, Callable[[], Any]] = {
    "a number": lambda: int(NUMBERS.sum()),
    "a condition": lambda: bool((NUMBERS > 3).any()),
    "an index without dimensions": lambda: NUMBERS[torch.tensor(3)],
    "a mask as index": lambda: NUMBERS[NUMBERS > 3],
    "places": lambda: (NUMBERS > 3).nonzero(),
    "a tensor made of values": lambda: torch.tensor([1, 2]),
}
FREE: dict[str, Callable[[], Any]] = {
    "arithmetic": lambda: (NUMBERS + 1) * 2.5,
    "an index": lambda: NUMBERS[NUMBERS.flip(0)],
    "a mask": lambda: NUMBERS.masked_fill(NUMBERS > 3, 0),
    "a range": lambda: torch.arange(4),
    "a number that stays on the host": lambda: NUMBERS * torch.tensor(2.5),
    "a copy": lambda: NUMBERS.to(torch.float32).clone(),
}


@pytest.mark.parametrize("work", READS.values(), ids=READS)
@torch.inference_mode()
def test_what_the_host_waits_for_is_noticed(work: Callable[[], Any]) -> None:
    with HostReads() as reads:
        work()

    assert reads.found != []


@pytest.mark.parametrize("work", FREE.values(), ids=FREE)
@torch.inference_mode()
def test_what_stays_on_the_device_is_not(work: Callable[[], Any]) -> None:
    with HostReads() as reads:
        work()

    assert reads.found == []


def test_a_plain_launcher_does_what_a_recording_one_would() -> None:
    launcher, buffer = PlainLauncher(), torch.zeros(2, dtype=torch.long)

    def work() -> None:
        buffer.add_(1)

    launcher.warm_up(work)
    replay = launcher.capture(work)
    assert buffer.tolist() == [1, 1]  # recording does nothing
    replay()
    read = launcher.fetch(buffer, 0)
    replay()
    assert read() == [2, 2]

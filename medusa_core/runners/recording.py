"""One piece of work over buffers that stay where they are: done the ordinary way, then recorded, then replayed."""

import logging
from collections.abc import Callable
from typing import Generic, TypeVar

from medusa_core.runners.capture import HostReads, Launcher
from medusa_core.runners.held import fill, hold

__all__ = ["WARM_UPS", "Recording"]

_log = logging.getLogger(__name__)

# Times before work is recorded: libraries choose and allocate in the first ones.
WARM_UPS = 3

Outcome = TypeVar("Outcome")


class Recording(Generic[Outcome]):
    """Work whose outcome is always found in the same place, which the next time overwrites.

    The times before it is recorded count as well: nothing is computed to be thrown away. Work that makes the host wait
    for the device is found out the first time, and never recorded.
    """

    def __init__(self, launcher: Launcher, work: Callable[[], Outcome], name: str) -> None:
        """`name` says in the log what the work is."""
        self._launcher, self._work, self._name = launcher, work, name
        self._times = 0
        self._outcome: Outcome | None = None
        self._replay: Callable[[], None] | None = None
        self._is_recordable = True

    @property
    def outcome(self) -> Outcome:
        """What the work left the last time."""
        assert self._outcome is not None, "work has an outcome once it was done"
        return self._outcome

    def run(self) -> Outcome:
        """Do the work."""
        if self._times == 0:
            with HostReads() as reads:
                self._launcher.warm_up(self._do)
            if reads.found:
                self._is_recordable = False
                _log.warning("%s is not recorded: %s makes the host wait", self._name, reads.found[0])
        elif self._times < WARM_UPS or not self._is_recordable:
            self._launcher.warm_up(self._do)
        else:
            if self._replay is None:
                self._replay = self._launcher.capture(self._do)
            self._replay()
        self._times += 1
        return self.outcome

    def _do(self) -> None:
        outcome = self._work()
        if self._outcome is None:
            self._outcome = hold(outcome)
        else:
            fill(self._outcome, outcome)

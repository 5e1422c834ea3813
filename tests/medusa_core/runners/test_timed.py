from itertools import islice

import pytest
import torch

from medusa_core.drafters import DrafterSource
from medusa_core.memory import Memory
from medusa_core.pacing import Situation
from medusa_core.runners import EagerRunner, GraphRunner
from medusa_core.runners.timed import timed_steps
from tests.cast import CPU, MockBackbone, random_heads
from tests.medusa_core.runners.cast import TapeLauncher


@pytest.mark.parametrize("situation", [Situation(5), Situation(70), Situation(5, is_sampled=True)])
def test_steps_of_any_size_are_timed_behind_rows_that_nobody_computed(situation: Situation) -> None:
    backbone = MockBackbone()
    cache = backbone.new_cache(128)
    drafters = DrafterSource(random_heads(backbone.lm_head), torch.ones(3), 8, 8, True, CPU)
    begin = timed_steps(backbone, cache, EagerRunner(backbone, cache), drafters, Memory(backbone.vocab_size, CPU))

    for nodes in (1, 8):
        computed = backbone.computed
        seconds = list(islice(begin(nodes, situation), 3))

        assert all(taken > 0.0 for taken in seconds)
        assert backbone.computed - computed == 3 * nodes
    assert torch.equal(cache.buffer[..., : situation.rows, :], torch.zeros_like(cache.buffer[..., : situation.rows, :]))


def test_a_runner_that_records_settles_before_it_is_timed() -> None:
    backbone, launcher = MockBackbone(), TapeLauncher()
    cache = backbone.new_cache(512)
    drafters = DrafterSource(None, torch.ones(0), 8, 8, True, CPU)
    runner = GraphRunner(backbone, cache, launcher)
    begin = timed_steps(backbone, cache, runner, drafters, Memory(backbone.vocab_size, CPU))
    for visit in (begin(8, Situation(5)), begin(8, Situation(5))):
        next(visit)
        before = len(launcher.log)
        list(islice(visit, 3))

        assert set(launcher.log[before:]) == {"replay", "copy 0", "copy 1", "read 0", "read 1"}

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from medusa_core.config import SpeculationParams
from medusa_core.drafters import (
    Asked,
    Drafter,
    DrafterSource,
    DraftState,
    Grammatical,
    MedusaDrafter,
    RootOnly,
    forced_span,
)
from medusa_core.memory import Memory
from medusa_core.sampling import Sampler, SamplingParams
from medusa_core.tree import TreeTopology
from tests.cast import CPU, FixedDrafter, Oracle, random_heads

HEADS = random_heads(torch.randn(23, 16, generator=torch.Generator().manual_seed(0)), 3)
STATE = DraftState(
    torch.tensor(5),
    torch.randn(16, generator=torch.Generator().manual_seed(1)),
    torch.tensor(12),
    history=torch.tensor([4, 5, 6, 7, 8, 9, 1, 2, 3, 2, 3, 4, 5, *range(10)]),
    grammar=Grammatical(torch.arange(23) > 5, forced_span([6, 7], 8, CPU)),
    sampler=Sampler.of_request(SamplingParams(1.0, seed=3), CPU),
    memory=Memory(23, CPU),
)


def tree(
    has_lookup: bool = True, prediction: tuple[int, ...] = (), has_grammar: bool = False, recycles: bool = False
) -> Drafter:
    source = DrafterSource(HEADS, torch.ones(3), 12, 8, has_lookup, CPU, 23 if recycles else None)
    return source.get(Asked(SpeculationParams(), prediction, 10, has_grammar))


DRAFTERS: dict[str, Callable[[], Drafter]] = {
    "plain": lambda: RootOnly(CPU),
    "heads alone": lambda: tree(has_lookup=False),
    "heads and lookup": tree,
    "all": lambda: tree(prediction=(2, 3, 4, 6, 7), has_grammar=True, recycles=True),
    "chain": lambda: MedusaDrafter.static(HEADS, torch.ones(3), TreeTopology.chain(3)),
    "oracle": lambda: Oracle(range(40), 0, 23),
    "fixed": lambda: FixedDrafter(TreeTopology.chain(2), [1, 2]),
}


@pytest.mark.parametrize("make", DRAFTERS.values(), ids=DRAFTERS)
def test_every_drafter_keeps_the_contract(make: Callable[[], Drafter]) -> None:
    drafter = make()
    drafted = drafter.draft(STATE)

    assert drafted.num_nodes == drafter.num_nodes
    assert drafted.max_depth == drafter.max_depth >= int(drafted.depth.max())
    assert int(drafted.tokens[0]) == 5
    siblings = list(
        zip(drafted.parent[drafted.used][1:].tolist(), drafted.tokens[drafted.used][1:].tolist(), strict=True)
    )
    assert len(set(siblings)) == len(siblings)
    assert torch.equal(drafted.depth[1:], drafted.depth[drafted.parent[1:]] + 1)


class HostReads(TorchDispatchMode):
    """Counts the places where the host waits for a value of the device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.item, torch.ops.aten.nonzero):
            self.found.append(str(func))
        return func(*args, **(kwargs if kwargs is not None else {}))


@pytest.mark.parametrize("name", ["plain", "heads alone", "heads and lookup", "all", "chain"])
def test_drafting_never_makes_the_host_wait_for_the_device(name: str) -> None:
    drafter = DRAFTERS[name]()
    draft = getattr(type(drafter).draft, "__wrapped__", type(drafter).draft)  # inference mode hides what is read

    with torch.no_grad(), HostReads() as reads:
        draft(drafter, STATE)

    assert reads.found == []


def test_an_index_of_no_dimension_is_a_read_that_is_noticed() -> None:
    with HostReads() as reads:
        torch.arange(5)[torch.tensor(3)]

    assert reads.found != []

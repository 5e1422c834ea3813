import math

import pytest
import torch

from medusa_core.memory import GUESS, IMPOSSIBLE, NOTHING, Memory, kind_of
from medusa_core.tree import GRADES, SOURCES, CandidateTree, TreeTopology
from tests.cast import CPU

LOOKUP = kind_of("lookup", 2)


def chain(tokens: list[int], kind: int = LOOKUP) -> CandidateTree:
    made = CandidateTree.from_topology(TreeTopology.chain(len(tokens) - 1), torch.tensor(tokens))
    made.kind[1:] = kind
    return made


def chance(memory: Memory, kind: int) -> float:
    return math.exp(float(memory.log_chances()[kind]))


def test_before_anything_was_learnt_the_prior_is_believed() -> None:
    chances = Memory(11, CPU).log_chances()

    assert chances.shape == (len(SOURCES) * GRADES,)
    assert float(chances[LOOKUP]) == pytest.approx(math.log(0.6))
    assert float(chances[kind_of("grammar", 0)]) == float(chances[GUESS]) == 0.0
    assert float(chances[NOTHING]) == IMPOSSIBLE
    assert bool(torch.isfinite(chances).all())


def test_what_is_accepted_again_and_again_is_believed_and_what_never_is_is_not() -> None:
    memory = Memory(11, CPU)
    for _ in range(60):
        memory.learn(chain([1, 2, 3]), torch.tensor([0, 1, 2]))
        memory.learn(chain([1, 2, 3], kind_of("recycling", 7)), torch.tensor([0, 0, 0]))

    assert chance(memory, LOOKUP) > 0.9
    assert chance(memory, kind_of("recycling", 7)) < 0.3
    assert chance(memory, kind_of("lookup", 3)) == pytest.approx(0.9)


def test_only_nodes_behind_accepted_ones_were_tried() -> None:
    memory = Memory(11, CPU)
    memory.learn(chain([1, 2, 3, 4]), torch.tensor([0, 1, 0, 0]))

    accepted, tried = memory.outcomes[LOOKUP].tolist()
    assert (accepted, tried) == (1, 2)
    assert float(memory.outcomes.sum()) == 3


def test_what_was_learnt_long_ago_is_forgotten() -> None:
    memory = Memory(11, CPU)
    for _ in range(60):
        memory.learn(chain([1, 2]), torch.tensor([0, 0]))
    given_up = chance(memory, LOOKUP)
    for _ in range(400):
        memory.learn(chain([1, 2], kind_of("recycling", 0)), torch.tensor([0, 0]))

    assert given_up < 0.15
    assert chance(memory, LOOKUP) == pytest.approx(0.6, abs=0.05)


def test_successors_are_those_of_the_used_node_that_ranks_highest_and_graded_by_probability() -> None:
    memory, tree = Memory(11, CPU), chain([4, 7, 4])
    tree.used[1] = False
    logits = torch.full((3, 11), -20.0)
    logits[0, [9, 2]], logits[1, 5], logits[2, 1] = torch.tensor([0.88, 0.12]).log(), 0.0, 0.0

    memory.keep_successors(tree, logits)

    known = memory.successors
    assert known is not None
    assert known.tokens[4, :2].tolist() == [9, 2]
    assert known.kinds[4, :3].tolist() == [kind_of("recycling", grade) for grade in (7, 3, 0)]
    assert bool((known.kinds[7] == NOTHING).all())
    memory.forget_successors()
    assert bool((known.kinds == NOTHING).all())


def test_where_nobody_recycles_no_successors_are_kept() -> None:
    memory = Memory(11, CPU, keeps_successors=False)
    memory.keep_successors(chain([4, 7]), torch.zeros(2, 11))

    assert memory.successors is None

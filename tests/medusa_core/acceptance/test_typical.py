import math

import pytest
import torch

from medusa_core.acceptance import Exact, Typical, make_rule
from medusa_core.config import SpeculationParams
from medusa_core.sampling import Sampler, SamplingParams
from medusa_core.tree import CandidateTree, TreeTopology
from tests.cast import CPU

PAST = torch.tensor(10)


def sampler(temperature: float = 1.0) -> Sampler:
    return Sampler.of_request(SamplingParams(temperature=temperature, seed=4), CPU)


def log_rows(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows).log()


@pytest.mark.parametrize(
    ("epsilon", "delta", "passes"), [(0.3, 1.0, False), (0.2, 1.0, True), (0.3, 0.5, True), (0.26, 0.9, False)]
)
def test_a_draft_passes_above_the_smaller_of_epsilon_and_delta_times_exp_minus_entropy(
    epsilon: float, delta: float, passes: bool
) -> None:
    """The draft has p = 0.25; the entropy is 1.213 nats, so exp(-entropy) is 0.297."""
    tree = CandidateTree.from_topology(TreeTopology.chain(1), torch.tensor([0, 1]))
    rows = log_rows([0.5, 0.25, 0.125, 0.125], [0.25] * 4)

    accepted = Typical.of_request(sampler(), epsilon, delta).accept(tree, rows, PAST)

    assert int(accepted.count) == (2 if passes else 1)


def test_the_deepest_living_node_wins_and_ties_go_to_the_likelier_path() -> None:
    topology = TreeTopology.from_paths([(0,), (1,), (0, 0), (1, 0)])
    tree = CandidateTree.from_topology(topology, torch.tensor([3, 0, 1, 2, 2]))
    level = [0.25, 0.35, 0.3, 0.1]
    rows = log_rows(level, [0.1, 0.1, 0.4, 0.4], [0.1, 0.1, 0.4, 0.4], level, level)

    accepted = Typical.of_request(sampler(), 0.2, 1.0).accept(tree, rows, PAST)

    assert accepted.path[: int(accepted.count)].tolist() == [0, 2, 4]  # through token 1 (0.35), not token 0 (0.25)
    assert accepted.tokens[:2].tolist() == [1, 2]


def test_the_bonus_is_the_draw_of_the_exact_rule() -> None:
    tree = CandidateTree.from_topology(TreeTopology.root_only(), torch.tensor([0]))
    rows = log_rows([0.3, 0.3, 0.4])

    typical, exact = Typical.of_request(sampler(), 0.09, 0.3), Exact(sampler())

    assert int(typical.accept(tree, rows, PAST).bonus) == int(exact.accept(tree, rows, PAST).bonus)


def test_a_forbidden_token_is_not_accepted_and_does_not_poison_the_entropy() -> None:
    tree = CandidateTree.from_topology(TreeTopology.chain(1), torch.tensor([1, 0]))
    rows = torch.tensor([[-math.inf, 0.0, 0.0], [0.0, 0.0, 0.0]])

    assert int(Typical.of_request(sampler(), 0.01, 0.01).accept(tree, rows, PAST).count) == 1


def test_at_temperature_zero_every_rule_is_the_exact_one() -> None:
    assert isinstance(make_rule(sampler(0.0), SpeculationParams(acceptance="typical")), Exact)
    assert isinstance(make_rule(sampler(1.0), SpeculationParams(acceptance="typical")), Typical)

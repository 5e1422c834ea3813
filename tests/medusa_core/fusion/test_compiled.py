from typing import Any

import pytest
import torch

from medusa_core.attending import attend_by_length
from medusa_core.backbone import TransformersBackbone
from medusa_core.fusion import CompiledPass
from medusa_core.tree import CandidateTree, TreeTopology
from tests.cast import CPU, GREEDY, MockBackbone, make_engine, random_heads, run, tiny_backbone
from tests.medusa_core.runners.cast import PROMPT, Tape


class Counting:
    """A backend that runs what it is given, and counts."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.graphs += 1
        return graph.forward


def refusing(graph: Any, inputs: Any) -> Any:
    raise RuntimeError("there is no compiler here")


def tree_of(nodes: int) -> CandidateTree:
    topology = TreeTopology.from_paths([(rank,) for rank in range(nodes - 1)])
    return CandidateTree.from_topology(topology, torch.arange(3, 3 + nodes))


def step(backbone: TransformersBackbone, nodes: int, rows: int = 64, **keep: Any) -> torch.Tensor:
    cache = backbone.new_cache(128)
    cache.buffer.copy_(torch.randn(cache.buffer.shape, generator=torch.Generator().manual_seed(3)))
    return backbone.forward(tree_of(nodes), torch.tensor(20, device=CPU), cache, rows, **keep).logits


@pytest.fixture(autouse=True)
def forgets() -> Any:
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(("family", "shapes"), [("gemma2", [(4, 64)]), ("llama", [(4, 64), (8, 64), (8, 128)])])
def test_compiled_steps_are_what_they_were_and_each_shape_is_compiled_once(
    family: str, shapes: list[tuple[int, int]]
) -> None:
    backbone, counting = tiny_backbone(family), Counting()
    backbone.fuse(256, compiled=False)
    expected = [step(backbone, *shape) for shape in shapes]
    backbone.compile_steps(counting)
    for _ in range(2):
        for shape, logits in zip(shapes, expected, strict=True):
            torch.testing.assert_close(step(backbone, *shape), logits)

    assert counting.graphs == len(shapes)
    assert backbone.kernels_label.endswith("inductor")


def test_attention_by_length_is_compiled_for_each_number_of_nodes_alone() -> None:
    backbone, counting = tiny_backbone("llama"), Counting()
    backbone.fuse(256, compiled=False)
    expected = step(backbone, 8)
    assert attend_by_length(backbone)
    backbone.compile_steps(counting)

    torch.testing.assert_close(step(backbone, 8, 128), expected)
    assert counting.graphs == 1


def test_prompts_and_what_is_watched_are_not_compiled() -> None:
    backbone, counting = tiny_backbone("llama"), Counting()
    backbone.compile_steps(counting)
    step(backbone, 8, keep=torch.tensor([7]))
    with Tape():
        step(backbone, 8)

    assert counting.graphs == 0


def test_where_nothing_can_be_compiled_steps_stay_as_they_are_and_the_log_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    backbone = tiny_backbone("llama", num_hidden_layers=1)
    backbone.fuse(256, compiled=False)
    expected = step(backbone, 8)
    backbone.compile_steps(refusing)

    for _ in range(2):
        assert torch.equal(step(backbone, 8), expected)
    assert len([record for record in caplog.records if "steps are not compiled" in record.getMessage()]) == 1
    assert "there is no compiler here" in caplog.text


def test_shapes_behind_the_most_that_are_compiled_are_computed_as_they_were() -> None:
    def double(tokens: torch.Tensor, positions: torch.Tensor, *others: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return 2 * tokens[:, None], positions[:, None]

    counting = Counting()
    compute = CompiledPass(double, counting, most_variants=2)
    for nodes in (2, 3, 4, 5, 3, 4):
        tokens = torch.arange(nodes)
        assert torch.equal(compute(tokens, tokens, {}, MockBackbone().new_cache(8), None)[0], 2 * tokens[:, None])

    assert counting.graphs == 2
    assert compute.is_compiled


def test_answers_are_the_same_compiled() -> None:
    answers = []
    for is_compiled in (False, True):
        backbone = tiny_backbone("llama", num_hidden_layers=1)
        backbone.fuse(256, compiled=False)
        if is_compiled:
            backbone.compile_steps("aot_eager")
        engine = make_engine(backbone, random_heads(backbone.lm_head), tree_nodes=6)
        answers.append(run(engine, PROMPT, GREEDY, max_tokens=20))

    assert answers[1] == answers[0]

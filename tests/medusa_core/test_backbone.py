from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from medusa_core.backbone import TransformersBackbone, attention_windows, tree_attention, tree_mask
from medusa_core.errors import UnsupportedModel
from medusa_core.tree import CandidateTree, TreeTopology
from tests.cast import FAMILIES, tiny_backbone, tiny_model
from tests.medusa_core.test_tree import topologies

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]
BUSHY = TreeTopology.from_paths([(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0)])
TOKENS = torch.tensor([10, 11, 12, 13, 14, 15, 16])
MORE = "cohere cohere2 gemma3_text glm4 gpt2 gpt_oss granite opt phi stablelm starcoder2".split()
SHAPES = {
    "cohere2": {"sliding_window": 9, "head_dim": 8},
    "gemma3_text": {"sliding_window": 9, "head_dim": 8},
    "glm4": {"head_dim": 8},
    "gpt_oss": {"sliding_window": 9, "head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1},
    "opt": {"word_embed_proj_dim": 32, "ffn_dim": 48},
}


def tree_logits(backbone: TransformersBackbone, tree: CandidateTree) -> torch.Tensor:
    cache = backbone.new_cache(64)
    backbone.forward(CandidateTree.chain(torch.tensor(PROMPT)), torch.tensor(0), cache, 64)
    return backbone.forward(tree, torch.tensor(len(PROMPT)), cache, 64).logits


def path_tokens(tree: CandidateTree, node: int) -> list[int]:
    return tree.tokens[tree.ancestors[node]].tolist()


@pytest.mark.parametrize("family", [*FAMILIES, *MORE])
def test_every_node_equals_a_plain_forward_of_its_path(family: str) -> None:
    model = tiny_model(family, **SHAPES.get(family, {}))
    tree = CandidateTree.from_topology(BUSHY, TOKENS)
    logits = tree_logits(TransformersBackbone(model), tree)

    model.set_attn_implementation("eager")
    with torch.inference_mode():
        for node in range(tree.num_nodes):
            expected = model(torch.tensor([PROMPT + path_tokens(tree, node)])).logits[0, -1]
            assert torch.allclose(logits[node], expected, atol=3e-5), f"node {node}"


@pytest.mark.parametrize("family", [*FAMILIES, *MORE])
def test_a_wrong_mask_would_be_noticed(family: str) -> None:
    backbone = TransformersBackbone(tiny_model(family, **SHAPES.get(family, {})))
    right = CandidateTree.from_topology(BUSHY, TOKENS)
    chain = CandidateTree.chain(TOKENS)
    wrong = replace(right, tokens=TOKENS, ancestors=chain.ancestors)

    assert float((tree_logits(backbone, right) - tree_logits(backbone, wrong)).abs().max()) > 1e-2


def test_hidden_states_come_after_the_final_norm() -> None:
    backbone = tiny_backbone("llama")
    cache = backbone.new_cache(32)
    output = backbone.forward(CandidateTree.chain(torch.tensor(PROMPT)), torch.tensor(0), cache, 32)

    with torch.inference_mode():
        assert torch.allclose(F.linear(output.hidden, backbone.lm_head), output.logits, atol=1e-5)


def test_asking_for_the_last_row_only_gives_the_last_row() -> None:
    backbone = tiny_backbone("gemma2")
    chain, zero = CandidateTree.chain(torch.tensor(PROMPT)), torch.tensor(0)
    every = backbone.forward(chain, zero, backbone.new_cache(32), 32)
    last = backbone.forward(chain, zero, backbone.new_cache(32), 32, keep=torch.tensor([chain.num_nodes - 1]))

    assert torch.allclose(every.logits[-1:], last.logits, atol=1e-5)


@pytest.mark.parametrize(("softcap", "sinks"), [(None, False), (5.0, False), (None, True)])
def test_folded_attention_equals_attention_with_repeated_keys(softcap: float | None, sinks: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 6, 5, 8, generator=generator)
    key, value = (torch.randn(1, 2, 9, 8, generator=generator) for _ in range(2))
    allowed = torch.rand(5, 9, generator=generator) < 0.6
    allowed[:, 0] = True
    mask = torch.zeros(5, 9).masked_fill(~allowed, torch.finfo(torch.float32).min)
    s_aux = torch.randn(6, generator=generator) if sinks else None

    module = torch.nn.Identity()
    folded, _ = tree_attention(module, query, key, value, mask.repeat(3, 1)[None, None], 0.4, softcap, s_aux)

    scores = query @ key.repeat_interleave(3, 1).transpose(2, 3) * 0.4
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores + mask
    if s_aux is not None:
        scores = torch.cat([scores, s_aux[None, :, None, None].expand(1, -1, 5, 1)], -1)
    expected = (scores.softmax(-1)[..., :9] @ value.repeat_interleave(3, 1)).transpose(1, 2)
    assert torch.allclose(folded, expected, atol=1e-6)


@settings(deadline=None)
@given(topologies(), st.integers(0, 10), st.one_of(st.none(), st.integers(1, 8)))
def test_the_mask_shows_each_node_the_prefix_and_its_ancestors_within_the_window(
    topology: TreeTopology, past: int, window: int | None
) -> None:
    tree = CandidateTree.from_topology(topology, torch.zeros(topology.num_nodes, dtype=torch.long))
    mask = tree_mask(tree, torch.tensor(past), 32, window)

    positions = [*range(past), *(past + depth for depth in topology.depths)]
    for node in range(tree.num_nodes):
        for row in range(32):
            seen = row < past or (row < past + tree.num_nodes and bool(tree.ancestors[node, row - past]))
            if seen and window is not None:
                seen = past + topology.depths[node] - positions[row] < window
            assert bool(mask[node, row]) == seen, (node, row)


def test_an_unused_slot_attends_to_itself_alone() -> None:
    tree = CandidateTree.from_topology(TreeTopology.chain(1), torch.tensor([1, 2]))
    eye = torch.eye(2, dtype=torch.bool)
    unused = replace(tree, ancestors=eye, used=torch.tensor([True, False]))

    assert tree_mask(unused, torch.tensor(3), 8, None)[1].nonzero().flatten().tolist() == [4]


def test_a_model_that_ignores_its_mask_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModel, match=r"'mpt'.*does not honour the attention mask"):
        tiny_backbone("mpt")


def test_windows_are_read_from_the_configuration() -> None:
    assert attention_windows(tiny_model("llama").config) == {"full_attention": None}
    assert attention_windows(tiny_model("mistral").config) == {"full_attention": 9}
    assert attention_windows(tiny_model("gemma2").config) == {"full_attention": None, "sliding_attention": 9}

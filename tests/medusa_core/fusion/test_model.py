from typing import Any

import pytest
import torch

from medusa_core.backbone import Forward, TransformersBackbone, tree_mask
from medusa_core.fusion.kernels import Multiply
from medusa_core.fusion.model import FusedModel
from medusa_core.fusion.native import NativeKernels, build
from medusa_core.kv_cache import KVCache
from medusa_core.tree import CandidateTree, TreeTopology
from tests.cast import make_engine, random_heads, run, tiny_backbone, tiny_model
from tests.medusa_core.fusion.cast import TORCH

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]
BUSHY = TreeTopology.from_paths([(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0)])
TOKENS = torch.tensor([10, 11, 12, 13, 14, 15, 16])
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
# Every structure that the fused form knows: name of a family, what is special, how to make it.
KNOWN: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, rope scaled": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "mistral, window": ("mistral", {}),
    "mixtral, experts of another form": ("mixtral", {}),
    "ministral3, scaled behind the context only": ("ministral3", {}),
    "gemma, norms of its own": ("gemma", {}),
    "granite, scores scaled": ("granite", {"attention_multiplier": 0.2}),
    "olmo, norms without weights": ("olmo", {}),
    "phi3, joint weights": ("phi3", {}),
    "phi3, partly rotary": ("phi3", {"partial_rotary_factor": 0.5}),
    "qwen2, biases": ("qwen2", {}),
    "qwen2, two kinds of layer": (
        "qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": ["full_attention", "sliding_attention"],
            "max_window_layers": 1,
        },
    ),
    "qwen3, head norms": ("qwen3", {}),
    "qwen3_moe, experts": ("qwen3_moe", EXPERTS),
    "smollm3, layers without positions": ("smollm3", {"no_rope_layers": [1, 0]}),
    "stablelm, norms with biases, partly rotary": ("stablelm", {}),
    "starcoder2, another mlp": ("starcoder2", {}),
}


def tree_pass(backbone: TransformersBackbone) -> tuple[Forward, KVCache]:
    cache = backbone.new_cache(64)
    backbone.forward(CandidateTree.chain(torch.tensor(PROMPT)), torch.tensor(0), cache, 64)
    return backbone.forward(CandidateTree.from_topology(BUSHY, TOKENS), torch.tensor(len(PROMPT)), cache, 64), cache


@pytest.mark.parametrize("compiled", [False, True], ids=["torch", "compiled"])
@pytest.mark.parametrize("known", KNOWN.values(), ids=KNOWN)
def test_a_fused_pass_equals_the_models_own(known: tuple[str, dict[str, Any]], compiled: bool) -> None:
    family, changes = known
    backbone = tiny_backbone(family, **changes)
    own, own_cache = tree_pass(backbone)

    backbone.fuse(128, compiled)
    fused, fused_cache = tree_pass(backbone)

    assert backbone.is_fused
    assert torch.allclose(fused.hidden, own.hidden, atol=1e-5)
    assert torch.allclose(fused.logits, own.logits, atol=3e-5)
    assert torch.allclose(fused_cache.buffer, own_cache.buffer, atol=1e-5)


@pytest.mark.parametrize("compiled", [False, True], ids=["torch", "compiled"])
@pytest.mark.parametrize("known", KNOWN.values(), ids=KNOWN)
def test_a_fused_model_writes_what_transformers_would(known: tuple[str, dict[str, Any]], compiled: bool) -> None:
    family, changes = known
    model = tiny_model(family, **changes)
    theirs = reference(model)
    backbone = TransformersBackbone(model)
    backbone.fuse(128, compiled)
    heads = random_heads(backbone.lm_head)

    for nodes in (1, 8, 16):
        assert run(make_engine(backbone, heads, tree_nodes=nodes), PROMPT, max_tokens=40) == theirs, f"{nodes} nodes"


def reference(model: Any) -> list[int]:
    model.set_attn_implementation("eager")
    found = model.generate(
        torch.tensor([PROMPT]), max_new_tokens=40, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    model.set_attn_implementation("medusa_tree")
    answer: list[int] = found[0, len(PROMPT) :].tolist()
    return answer


def test_asking_for_the_last_row_only_gives_the_last_row() -> None:
    backbone = tiny_backbone("llama")
    backbone.fuse(128, compiled=False)
    chain, zero = CandidateTree.chain(torch.tensor(PROMPT)), torch.tensor(0)
    every = backbone.forward(chain, zero, backbone.new_cache(32), 32)
    last = backbone.forward(chain, zero, backbone.new_cache(32), 32, keep=torch.tensor([chain.num_nodes - 1]))

    assert torch.allclose(every.logits[-1:], last.logits, atol=1e-5)
    assert every.hidden.shape == last.hidden.shape


def test_the_model_keeps_its_names_its_values_and_its_size() -> None:
    model: Any = tiny_model("qwen2")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    backbone = TransformersBackbone(model)
    own, _ = tree_pass(backbone)

    backbone.fuse(128, compiled=False)

    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in after.values()}
    assert sum(storages.values()) == sum(tensor.nbytes for tensor in before.values())
    again, _ = tree_pass(TransformersBackbone(model))
    assert torch.equal(own.logits, again.logits), "the model's own pass went on as before"


def test_positions_behind_the_context_are_read_as_its_last() -> None:
    backbone = tiny_backbone("llama")
    backbone.fuse(14, compiled=False)
    fused, _ = tree_pass(backbone)

    assert backbone.is_fused
    assert bool(fused.logits.isfinite().all())


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_compiled_a_node_of_a_tree_is_bitwise_what_its_path_gives_token_by_token(family: str) -> None:
    library = build()
    if library is None:
        pytest.skip("no C compiler here can build the kernels")

    class Always(NativeKernels):
        def multiply_by(self, weight: torch.Tensor) -> Multiply:
            return self.multiply_by_float(weight)

    model: Any = tiny_model(family, vocab_size=64)
    fused = FusedModel(model, ["full_attention"], 128, Always(library, TORCH))
    backbone = TransformersBackbone(model)

    def compute(tree: CandidateTree, past: int, cache: KVCache) -> torch.Tensor:
        rows = tree.num_nodes
        cache.prepare(torch.tensor(past), rows, 64)
        mask = torch.zeros(rows, 64).masked_fill(
            ~tree_mask(tree, torch.tensor(past), 64, None), torch.finfo(torch.float32).min
        )
        with torch.inference_mode():
            masks = {"full_attention": mask.repeat(2, 1)[None, None]}
            return fused(tree.tokens, past + tree.depth, masks, cache, None)[1]

    tree, cache = CandidateTree.from_topology(BUSHY, TOKENS), backbone.new_cache(64)
    compute(CandidateTree.chain(torch.tensor(PROMPT)), 0, cache)
    together = compute(tree, len(PROMPT), cache)

    for node in range(tree.num_nodes):
        path = tree.tokens[tree.ancestors[node]]
        for past, token in enumerate(path, start=len(PROMPT)):
            alone = compute(CandidateTree.chain(token[None]), past, cache)
        assert torch.equal(alone[0], together[node])

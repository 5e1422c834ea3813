"""The cast of the engine's tests: a model that costs nothing, a drafter that knows the answer, tiny real models."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from medusa_core.backbone import ATTENTION, Forward, TransformersBackbone, register_attention, tree_mask
from medusa_core.calibration import Place
from medusa_core.constraints import GrammarVocabulary
from medusa_core.drafters import Asked, Drafter, DrafterSource, DraftState
from medusa_core.engine import Engine
from medusa_core.generation import EngineInfo, GenerationRequest
from medusa_core.heads import DraftHeads
from medusa_core.kv_cache import KVCache
from medusa_core.memory import Memory
from medusa_core.prefix_cache import PrefixStore
from medusa_core.runners import EagerRunner, MakeRunner
from medusa_core.sampling import SamplingParams
from medusa_core.tree import CandidateTree, TreeTopology

CPU = torch.device("cpu")
GREEDY = SamplingParams(temperature=0.0)


class MockBackbone:
    """A model whose answer depends on every attended (token, position) pair, exactly: its sums are of integers.

    A wrong mask, position, cache row or commit changes the next token at once, and nothing is ever a near-tie.
    """

    hidden_size = 16
    max_positions = 512
    device = CPU
    has_buckets = True

    def __init__(self, vocab_size: int = 23, seed: int = 0, sharpness: float = 4.0) -> None:
        self.vocab_size, self._sharpness = vocab_size, sharpness
        generator = torch.Generator().manual_seed(seed)
        self._embedding = torch.randint(0, 64, (vocab_size, self.hidden_size), generator=generator).double()
        self._frequencies = torch.rand(self.hidden_size, generator=generator, dtype=torch.float64) * 3
        self.lm_head = torch.randn(vocab_size, self.hidden_size, generator=generator, dtype=torch.float64)
        self.computed = 0  # rows, so that tests can see what was not computed again

    def new_cache(self, rows: int) -> KVCache:
        return KVCache(1, 1, self.hidden_size, rows, torch.float64, CPU)

    def forward(
        self, tree: CandidateTree, past: Tensor, cache: KVCache, visible_rows: int, keep: Tensor | None = None
    ) -> Forward:
        cache.prepare(past, tree.num_nodes, visible_rows)
        self.computed += tree.num_nodes
        positions = past + tree.depth
        rows = self._embedding[tree.tokens] * (1 + positions[:, None] % 7)  # [N, H]
        keys, _ = cache.layers[0].update(rows[None, None], rows[None, None])
        attended = tree_mask(tree, past, visible_rows, None).double() @ keys[0, 0]
        hidden = torch.sin(attended * self._frequencies)
        logits = self._sharpness * hidden @ self.lm_head.T
        return Forward(hidden, logits[keep] if keep is not None else logits)


class Oracle:
    """Hides the right continuation in a bushy tree, among siblings that are wrong."""

    def __init__(self, answer: Sequence[int], start: int, vocab_size: int, depth: int = 3, width: int = 3) -> None:
        """`answer[i]` is the token at absolute position start + i."""
        self._answer, self._start, self._vocab_size, self._width = list(answer), start, vocab_size, width
        self.max_depth, self.num_nodes = depth, 1 + depth * width

    def draft(self, state: DraftState) -> CandidateTree:
        past = int(state.past)
        paths, tokens, parent = [], [int(state.root)], ()
        for depth in range(1, self.max_depth + 1):
            index = past + depth - self._start
            right = self._answer[index] if index < len(self._answer) else 0
            place = (past + depth) % self._width
            for rank in range(self._width):
                paths.append((*parent, rank))
                tokens.append((right + (rank - place)) % self._vocab_size)
            parent = (*parent, place)
        return CandidateTree.from_topology(TreeTopology.from_paths(paths), torch.tensor(tokens))

    def learn(self, state: DraftState, tree: CandidateTree, path: Tensor, logits: Tensor) -> None:
        pass


class FixedDrafter:
    """One tree of given tokens at every step, under whatever root there is."""

    def __init__(self, topology: TreeTopology, tokens: Sequence[int]) -> None:
        self._topology, self._tokens = topology, list(tokens)
        self.num_nodes, self.max_depth = topology.num_nodes, topology.max_depth

    def draft(self, state: DraftState) -> CandidateTree:
        return CandidateTree.from_topology(self._topology, torch.tensor([int(state.root), *self._tokens]))

    def learn(self, state: DraftState, tree: CandidateTree, path: Tensor, logits: Tensor) -> None:
        pass


class Always:
    """A drafter source that knows one drafter."""

    def __init__(self, drafter: Drafter) -> None:
        self._drafter = drafter

    def get(self, asked: Asked) -> Drafter:
        return self._drafter


def random_heads(lm_head: Tensor, num_heads: int = 3, seed: int = 0, shared: bool = True) -> DraftHeads:
    """Heads that guess without having learnt anything, but differently from each other."""
    heads = DraftHeads.from_base(lm_head, num_heads, shared_lm_head=shared)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        heads.weight.copy_(torch.randn(heads.weight.shape, generator=generator) / heads.config.hidden_size**0.5)
        heads.bias.copy_(torch.randn(heads.bias.shape, generator=generator))
    return heads.requires_grad_(False)


def make_engine(
    backbone: Any,
    heads: DraftHeads | None = None,
    tree_nodes: int = 8,
    max_context: int = 128,
    eos: tuple[int, ...] = (),
    prefill_chunk: int = 512,
    drafter: Drafter | None = None,
    has_lookup: bool = True,
    recycles: bool = False,
    vocabulary: GrammarVocabulary | None = None,
    prefix_budget: int = 1 << 24,
    make_runner: MakeRunner = EagerRunner,
    lengths: Sequence[int] = (),
) -> Engine:
    """An engine around any backbone, without files; `drafter` stands in for the heads."""

    def load_vocabulary() -> GrammarVocabulary:
        assert vocabulary is not None, "this engine has no vocabulary for grammars"
        return vocabulary

    info = EngineInfo(
        model="test",
        device="cpu",
        dtype="float32",
        max_context=max_context,
        vocab_size=backbone.vocab_size,
        eos_token_ids=eos,
        num_heads=heads.config.num_heads if heads is not None else 0,
        heads=None,
        tree_nodes=tree_nodes,
        max_depth=8,
        plain_step_s=0.0,
        default_sampling={},
        place=Place("test", "float32", 1, "none"),
        calibration=None,
        tree="dynamic",
        tree_reason="as asked for",
        adapter=None,
    )
    memory = Memory(backbone.vocab_size, CPU, recycles)
    recycled = backbone.vocab_size if recycles else None
    made = DrafterSource(heads, torch.ones(info.num_heads), tree_nodes, info.max_depth, has_lookup, CPU, recycled)
    drafters = Always(drafter) if drafter is not None else made
    store = PrefixStore(prefix_budget)
    return Engine(backbone, info, prefill_chunk, drafters, load_vocabulary, store, memory, make_runner, lengths)


def run(engine: Engine, prompt: Sequence[int], sampling: SamplingParams = GREEDY, **options: Any) -> list[int]:
    """All tokens of one answer."""
    request = GenerationRequest(tuple(prompt), sampling, **options)
    return [token for delta in engine.generate(request) for token in delta.tokens]


TINY = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
}
# What a family needs beyond the common shape; a small window so that windowed layers really cut something off.
FAMILIES: dict[str, dict[str, Any]] = {
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 9, "query_pre_attn_scalar": 8},
    "gpt_neox": {},
    "llama": {},
    "mistral": {"sliding_window": 9},
    "olmo2": {},
    "phi3": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "smollm3": {},
}


def tiny_model(family: str, **changes: Any) -> PreTrainedModel:
    """A random model of a family with a vocabulary of 61 tokens, on our attention function."""
    register_attention()
    config = AutoConfig.for_model(family, **{**TINY, **FAMILIES.get(family, {}), **changes})
    torch.manual_seed(7)
    return AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION).eval()


def tiny_backbone(family: str, **changes: Any) -> TransformersBackbone:
    """The backbone of a tiny random model."""
    return TransformersBackbone(tiny_model(family, **changes))

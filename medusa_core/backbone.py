"""A transformers causal LM as: a tree of tokens and a cache in, hidden states and logits out.

No modelling code is copied: transformers takes our attention function, mask, positions and cache. Whatever the model
does to its logits (scaling, soft cap) is done by the model itself. reference: DESIGN section 4.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import sdpa_mask

from medusa_core.errors import UnsupportedModel
from medusa_core.fusion import CompiledPass, Kernels, Mask, Pass, PrefixMask, TorchKernels, Trial, choose_kernels, fuse
from medusa_core.kv_cache import KVCache
from medusa_core.quantization import dense_weight
from medusa_core.tree import CandidateTree

__all__ = [
    "ATTENTION",
    "Backbone",
    "Forward",
    "TransformersBackbone",
    "attention_windows",
    "register_attention",
    "tree_attention",
    "tree_mask",
]

ATTENTION = "medusa_tree"

# In order of preference. Flash kernels take no mask; benchmarks/gpu.py tells which of these ran, and times them all.
_CUDA_KERNELS = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH]


@dataclass(frozen=True)
class Forward:
    """What one pass of the model says about a tree of N nodes.

    hidden: [N, H], after the final norm.
    logits: [N, V], or [R, V] when only those of R nodes were asked for.
    """

    hidden: Tensor
    logits: Tensor


class Backbone(Protocol):
    """A base model as decoding sees it."""

    hidden_size: int
    vocab_size: int
    max_positions: int
    device: torch.device
    has_buckets: bool  # whether a pass reads all visible rows; else it knows on the device how many there are

    def new_cache(self, rows: int) -> KVCache:
        """An empty cache with so many rows for this model."""
        ...

    def forward(
        self, tree: CandidateTree, past: Tensor, cache: KVCache, visible_rows: int, keep: Tensor | None = None
    ) -> Forward:
        """Compute a tree behind `past` [] committed rows; writes its N scratch rows and nothing else.

        keep: [R] int64, the nodes whose logits are wanted; None wants all.
        """
        ...


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **ignored: Any,
) -> tuple[Tensor, None]:
    """Attention of a tree's nodes over the cache, grouped queries folded into rows so that K and V are never copied.

    query:          [1, Hq, N, D]; key and value: [1, Hkv, S, D].
    attention_mask: [1, 1, g * N, S] in the compute dtype, 0 or the dtype's minimum, g = Hq / Hkv.
    softcap:        Gemma-2 caps the scores before the mask.
    s_aux:          [Hq], gpt-oss adds one logit per query head to the softmax and drops it afterwards.

    Returns [1, N, Hq, D] contiguous, and None where transformers expects attention weights.
    """
    _, num_heads, nodes, head_dim = query.shape
    num_kv_heads = key.shape[1]
    group = num_heads // num_kv_heads
    folded = query.reshape(1, num_kv_heads, group * nodes, head_dim)
    if softcap is None and s_aux is None:
        output = F.scaled_dot_product_attention(folded, key, value, attn_mask=attention_mask, scale=scaling)
    else:
        scores = (folded @ key.transpose(2, 3)).float() * scaling
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        scores = scores + attention_mask
        if s_aux is not None:
            sink = s_aux.reshape(1, num_kv_heads, group, 1).expand(1, -1, -1, nodes).reshape(1, num_kv_heads, -1, 1)
            scores = torch.cat([scores, sink.float()], dim=-1)
        output = scores.softmax(dim=-1)[..., : key.shape[2]].to(value.dtype) @ value
    return output.reshape(1, num_heads, nodes, -1).transpose(1, 2).contiguous(), None


def _attention_kernels(device: torch.device) -> AbstractContextManager[None]:
    """Which kernels attention runs on, so that all passes of a model run on the same and none is chosen unseen."""
    return sdpa_kernel(_CUDA_KERNELS, set_priority=True) if device.type == "cuda" else nullcontext()


def register_attention() -> None:
    """Make `tree_attention` known to transformers under the name ATTENTION; harmless when repeated."""
    AttentionInterface.register(ATTENTION, tree_attention)
    # A name without a mask function gets no mask at all when no 4-D one is passed.
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def tree_mask(tree: CandidateTree, past: Tensor, visible_rows: int, window: int | None) -> Tensor:
    """Which cache rows each node attends to: the committed rows, its ancestors' scratch rows and its own.

    past:   [] int64, committed rows; node m's scratch row is past + m.
    window: a node sees rows whose position is less than this many behind its own; None sees all.

    Returns [N, S] bool for the S visible rows. Source: Medusa (arXiv:2401.10774), section "Tree Attention".
    """
    rows = torch.arange(visible_rows, device=past.device)
    allowed = (rows < past) & tree.used[:, None]
    among_nodes = tree.ancestors
    if window is not None:
        allowed = allowed & (past + tree.depth[:, None] - rows < window)
        among_nodes = among_nodes & (tree.depth[:, None] - tree.depth < window)
    scratch = past + torch.arange(tree.num_nodes, device=past.device)
    return allowed.index_copy(1, scratch, among_nodes)


@dataclass(frozen=True)
class _KeyValueLayout:
    num_layers: int
    num_kv_heads: int
    head_dim: int


class TransformersBackbone:
    """A transformers causal LM loaded with our attention function. Holds no state between calls."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Wrap a loaded model; raise UnsupportedModel when a trial pass shows that it bypasses our cache or mask."""
        config: Any = model.config.get_text_config()
        self.model = cast(Any, model)
        self.model.eval()
        self.hidden_size: int = config.hidden_size
        self.vocab_size: int = self.lm_head.shape[0]
        self.max_positions: int = config.max_position_embeddings
        self.model_type: str = config.model_type
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        # What a mask adds to the scores of rows that a node sees and of the others; not infinite, or a row of nothing
        # but hidden ones would be without a number.
        self._shown = torch.zeros((), dtype=self.dtype, device=self.device)
        self._hidden = torch.full((), torch.finfo(self.dtype).min, dtype=self.dtype, device=self.device)
        self._windows = attention_windows(config)
        self._layout = self._key_value_layout()
        self._group = config.num_attention_heads // self._layout.num_kv_heads
        self._compute: Pass = self._own_pass
        self.kernels: Kernels = TorchKernels(self._attention)
        self.positions = self.max_positions
        # whether something else than the model's own modelling code computes its passes
        self.is_fused = False
        self.has_buckets = True  # attending.py may turn it off
        self._check()

    @property
    def lm_head(self) -> Tensor:
        """[V, H], the weight that heads without an LM head of their own share."""
        return dense_weight(self.model.get_output_embeddings())

    def new_cache(self, rows: int) -> KVCache:
        """An empty cache with so many rows."""
        layout = self._layout
        return KVCache(layout.num_layers, layout.num_kv_heads, layout.head_dim, rows, self.dtype, self.device)

    @torch.inference_mode()
    def forward(
        self, tree: CandidateTree, past: Tensor, cache: KVCache, visible_rows: int, keep: Tensor | None = None
    ) -> Forward:
        """See Backbone.forward; hidden [N, H] and logits [N, V], or [R, V] of the nodes `keep`."""
        cache.prepare(past, tree.num_nodes, visible_rows)
        masks: dict[str, Mask]
        if self.has_buckets:
            masks = {kind: self._additive(tree_mask(tree, past, visible_rows, w)) for kind, w in self._windows.items()}
        else:
            masks = dict.fromkeys(self._windows, PrefixMask(past.to(torch.int32)[None], tree.ancestors))
        # Slots past the last position are cut by the limit anyway; only the table look-up must stay in range.
        positions = (past + tree.depth).clamp(max=self.positions - 1)
        with _attention_kernels(self.device):
            return Forward(*self._compute(tree.tokens, positions, masks, cache, keep))

    def fuse(self, max_context: int, compiled: bool) -> None:
        """Compute in fewer kernels from now on, if this family's layers allow it; see medusa_core.fusion.

        max_context: longest sequence that will be computed; positions behind it are no longer told apart.
        compiled:    whether kernels may be built for it, where it is small and in float32 on a CPU.
        """
        positions = min(max_context, self.max_positions)
        trial = Trial(self._own_pass, self.new_cache, self._additive, self.vocab_size)
        self.kernels = choose_kernels(self.device, self.dtype, self._attention, compiled)
        self._compute = fuse(self.model, self._windows.keys(), positions, self.kernels, trial)
        self.is_fused = self._compute != self._own_pass
        self.positions = positions if self.is_fused else self.max_positions

    def compile_steps(self, backend: str | Callable[..., Any]) -> CompiledPass:
        """Compile passes over trees from now on, each number of nodes and rows where it is first needed.

        Only for whoever records passes and replays them; see medusa_core.fusion.CompiledPass, and there for `backend`.
        """
        self._compute = compiled = CompiledPass(self._compute, backend)
        return compiled

    @property
    def why_not_by_length(self) -> str | None:
        """Why committed rows cannot be read by their number on the device; None where they can."""
        if not self.is_fused:
            return f"models of type {self.model_type!r} run on their own modelling code, which reads masks"
        narrow = [window for window in self._windows.values() if window is not None and window < self.positions]
        if narrow:
            return f"its layers see {min(narrow)} tokens back, and a context may have {self.positions}"
        if self.device.type == "cuda" and self.dtype not in (torch.float16, torch.bfloat16):
            return f"the kernel knows float16 and bfloat16, not {self.dtype}"
        return None

    @property
    def kernels_label(self) -> str:
        """What computes passes, and what else asks for kernels: seconds are comparable where this agrees."""
        by_length = "" if self.has_buckets else ", by length"
        compiled = ", inductor" if isinstance(self._compute, CompiledPass) else ""
        return f"{'fused' if self.is_fused else 'own code'}, {self.kernels.label}{by_length}{compiled}"

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> Tensor:
        return tree_attention(self.model, query, key, value, mask, scaling)[0]

    def _own_pass(
        self, tokens: Tensor, positions: Tensor, masks: Mapping[str, Mask], cache: KVCache, keep: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """One pass by the model's own modelling code; see fusion.Pass."""
        output = self.model(
            input_ids=tokens[None],
            position_ids=positions[None],
            attention_mask=self._by_kind(masks),
            past_key_values=cache,
            use_cache=True,
            output_hidden_states=-1,
            logits_to_keep=keep if keep is not None else 0,
        )
        return output.hidden_states[-1][0], output.logits[0]

    @staticmethod
    def _by_kind(masks: Mapping[str, Mask]) -> Mapping[str, Mask] | Mask:
        """Masks in the form the family takes: one for all layers, or one for each kind of layer."""
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _additive(self, allowed: Tensor) -> Tensor:
        """A mask [N, S] bool as attention adds it, [1, 1, g * N, S], repeated for grouped queries once per step."""
        return torch.where(allowed, self._shown, self._hidden).repeat(self._group, 1)[None, None]

    @torch.inference_mode()
    def _key_value_layout(self) -> "_KeyValueLayout":
        """Ask the model itself what it caches: families name these numbers differently or leave them out."""
        recorder = DynamicCache()
        tokens = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        with self._refusing("a trial pass failed"):
            nothing_masked = torch.zeros(1, 1, 1, 1, dtype=self.dtype, device=self.device)
            self.model(
                input_ids=tokens,
                position_ids=tokens,
                attention_mask=self._by_kind({kind: nothing_masked for kind in self._windows}),
                past_key_values=recorder,
                use_cache=True,
            )
            layers: list[Any] = recorder.layers
            shapes = {tuple(states.shape) for layer in layers for states in (layer.keys, layer.values)}
        if len(shapes) != 1 or len(next(iter(shapes))) != 4:
            raise UnsupportedModel(self.model_type, f"its layers cache keys and values of shapes {sorted(shapes)}")
        ((_, num_kv_heads, _, head_dim),) = shapes
        return _KeyValueLayout(len(recorder.layers), num_kv_heads, head_dim)

    @contextmanager
    def _refusing(self, reason: str) -> Iterator[None]:
        """Turn what modelling code raises when it cannot work this way into a refusal that names the family."""
        try:
            yield
        except (
            AttributeError,
            KeyError,
            IndexError,
            NotImplementedError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            raise UnsupportedModel(self.model_type, f"{reason} ({type(error).__name__}: {error})") from error

    def _check(self) -> None:
        """Compute a small forked tree and its longer branch alone; equal answers mean mask and cache are honoured."""
        past, zero = torch.tensor(2, device=self.device), torch.tensor(0, device=self.device)
        prompt = torch.tensor([1, 2], device=self.device) % self.vocab_size
        nodes = torch.tensor([3, 4, 5, 6], device=self.device) % self.vocab_size
        fork = CandidateTree(
            tokens=nodes,
            parent=torch.tensor([0, 0, 0, 2], device=self.device),
            depth=torch.tensor([0, 1, 1, 2], device=self.device),
            ancestors=torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]], device=self.device).bool(),
            used=torch.ones(4, dtype=torch.bool, device=self.device),
            kind=torch.zeros(4, dtype=torch.long, device=self.device),
            max_depth=2,
            guesses=None,
        )
        with self._refusing("a trial pass failed"):
            cache, alone = self.new_cache(16), self.new_cache(16)
            for store in (cache, alone):
                self.forward(CandidateTree.chain(prompt), zero, store, 16)
            forked = self.forward(fork, past, cache, 16).logits[[0, 2, 3]]
            straight = self.forward(CandidateTree.chain(nodes[[0, 2, 3]]), past, alone, 16).logits
        written = bool((cache.buffer[:, :, :, :, :6].abs().amax(dim=(0, 2, 3, 5)) > 0).all())
        if not written:
            raise UnsupportedModel(self.model_type, "it does not keep its keys and values in the cache it is given")
        spread = float((straight - straight.mean()).abs().max())
        # where activations are rounded to few bits, the last bit of a sum can move a value to the next step
        is_precise = self.dtype == torch.float32 and getattr(self.model.config, "quantization_config", None) is None
        tolerance = (1e-3 if is_precise else 0.1) * max(spread, 1e-3)
        if float((forked - straight).abs().max()) > tolerance:
            raise UnsupportedModel(self.model_type, "it does not honour the attention mask it is given")


def attention_windows(config: Any) -> dict[str, int | None]:
    """The attention window of each kind of layer, by transformers' name of the kind; None is full attention.

    Families with two kinds take a dict of masks, the others one mask for all layers.
    """
    window: int | None = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    if "sliding_attention" in kinds:
        return {"full_attention": None, "sliding_attention": window}
    if kinds or not getattr(config, "use_sliding_window", True):
        return {"full_attention": None}
    return {"full_attention": window}

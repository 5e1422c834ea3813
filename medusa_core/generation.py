"""What is asked of the engine and what it says: values only."""

from dataclasses import dataclass, field
from typing import Literal

from medusa_core.calibration import Calibration, Place
from medusa_core.config import SpeculationParams, TreeKind
from medusa_core.runners import StepDetail, TokenLogprobs
from medusa_core.sampling import SamplingParams

__all__ = ["Delta", "EngineInfo", "GenerationRequest", "PromptStats", "StepStats"]


@dataclass(frozen=True)
class GenerationRequest:
    """One sequence to continue.

    max_tokens:     None is the room left in the context, which also bounds larger values; 0 only computes the prompt.
    stop_token_ids: end the answer like the model's own EOS tokens, which always do unless `ignore_eos`.
    top_logprobs:   report how likely the model found each token, with so many alternatives; None reports nothing.
    score_prompt:   report the same of the prompt's tokens, which are all computed anew for it.
    grammar:        what the answer must match, the text of a constraints.Grammar; its end is an end token, whatever
                    `ignore_eos` says.
    prediction:     tokens the answer is expected to hold, which are then only checked.
    cache_salt:     cached rows, and tokens to recycle, are shared between requests of equal salt only.
    detail:         report each step's tree and what became of it.
    """

    prompt: tuple[int, ...]
    sampling: SamplingParams
    speculation: SpeculationParams = field(default_factory=SpeculationParams)
    max_tokens: int | None = None
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    top_logprobs: int | None = None
    score_prompt: bool = False
    grammar: str | None = None
    prediction: tuple[int, ...] = ()
    cache_salt: str | None = None
    detail: bool = False


@dataclass(frozen=True)
class PromptStats:
    """What the prompt cost: tokens, how many of them were in the cache, seconds until its last logits.

    logprobs: of all prompt tokens but the first, when they were asked for.
    """

    prompt_tokens: int
    cached_tokens: int
    prefill_s: float
    logprobs: tuple[TokenLogprobs, ...] | None


@dataclass(frozen=True)
class StepStats:
    """One verifying forward pass.

    num_nodes: N, slots of the tree, root included.
    drafted:   used nodes of the tree by who drafted them, root not counted.
    accepted:  who drafted each token of the accepted path, bonus not counted, before anything was cut.
    head_hits: whether each head's likeliest token was the one emitted, for the heads behind accepted tokens only.
    seconds:   from the end of the previous step to the end of this one.
    phases:    seconds spent in each part of the step; empty where that could only be known by waiting for the device.
    detail:    the step to look at, before anything was cut; None unless it was asked for.
    """

    num_nodes: int
    drafted: dict[str, int]
    accepted: tuple[str, ...]
    head_hits: tuple[bool, ...]
    seconds: float
    phases: dict[str, float]
    detail: StepDetail | None = None


@dataclass(frozen=True)
class Delta:
    """New tokens of one sequence, already cut at EOS, stop tokens and limits.

    logprobs: one for each token, when they were asked for.

    The first delta carries `prompt` and one token that prefill decided; each later one carries `step`. When
    `finish_reason` is "stop" the last token is the one that stopped the sequence.
    """

    tokens: tuple[int, ...]
    prompt: PromptStats | None
    step: StepStats | None
    finish_reason: Literal["stop", "length"] | None
    logprobs: tuple[TokenLogprobs, ...] | None


@dataclass(frozen=True)
class EngineInfo:
    """What was loaded, for banners, /v1/models and checks before a request is queued.

    num_heads:        0 without heads; `heads` is then None.
    plain_step_s:     seconds of a step that decides one token, behind a short prompt; 0 before it was measured.
    default_sampling: what the model's generation_config says of temperature, top_p, top_k, min_p and
                      repetition_penalty.
    place:            where seconds are measured.
    calibration:      what is known of the heads; None without heads, or where nobody calibrated them.
    tree_nodes:       nodes of a tree where the size is fixed; `tree_reason` says why so many.
    tree:             what `auto` drafts.
    tree_sizes:       the sizes of which `auto` takes the fastest at every step; empty where it takes the fixed one.
    adapter:          folder of the adapter that is merged into the base; None without one.
    prompt_lookup:    whether trees hold what followed earlier in the sequence.
    head_check:       share of a short greedy run on which each head was right; None where nobody tried.
    """

    model: str
    device: str
    dtype: str
    max_context: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    num_heads: int
    heads: str | None
    tree_nodes: int
    max_depth: int
    plain_step_s: float
    default_sampling: dict[str, float | int]
    place: Place
    calibration: Calibration | None
    tree: TreeKind
    tree_reason: str
    adapter: str | None
    head_check: tuple[float, ...] | None = None
    tree_sizes: tuple[int, ...] = ()
    prompt_lookup: bool = True

    @property
    def most_nodes(self) -> int:
        """Nodes of the largest tree that a request may have."""
        return max((self.tree_nodes, *self.tree_sizes))

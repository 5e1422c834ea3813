"""What an answer cost and what speculation did for it, as both endpoints tell it."""

from typing import NotRequired

from typing_extensions import TypedDict

__all__ = ["CachedTokens", "CompletionDetails", "SourceCounts", "SpeculationStats", "Usage"]


class CompletionDetails(TypedDict):
    """Part of usage: tokens of a prediction that are in the answer, and those that are not."""

    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class CachedTokens(TypedDict):
    """Part of usage."""

    cached_tokens: int


class Usage(TypedDict):
    """Tokens of a request, as OpenAI counts them; details of the completion where an output was predicted."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens
    completion_tokens_details: NotRequired[CompletionDetails]


class SourceCounts(TypedDict):
    """Drafts of one source."""

    drafted: int
    accepted: int


class SpeculationStats(TypedDict):
    """What speculation did for one answer, counted over delivered steps and tokens.

    tokens_per_step:    tokens emitted by steps / steps, bonus included; null when the answer needed no step.
    acceptance_lengths: how many steps accepted 0, 1, 2, ... drafts, bonus not included.
    by_source:          drafts by who proposed them; they add up to the totals.
    """

    steps: int
    tokens_per_step: float | None
    acceptance_lengths: list[int]
    drafted: int
    accepted: int
    by_source: dict[str, SourceCounts]

"""What an answer cost and what speculation did for it, as both endpoints tell it."""

from typing import Literal, NotRequired

from typing_extensions import TypedDict

__all__ = [
    "CachedTokens",
    "CompletionDetails",
    "SourceCounts",
    "SpeculationStats",
    "StepRecord",
    "StepToken",
    "TokenSource",
    "TreeNode",
    "Usage",
]

# Who proposed a token; base is the model itself.
TokenSource = Literal["base", "heads", "lookup", "recycling", "prediction", "grammar"]


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


class TreeNode(TypedDict):
    """A token that a step checked.

    text:        its own spelling, in which half a character is U+FFFD.
    parent:      index in the tree; null for the root, which the step before has emitted.
    depth:       0 for the root; the guesses of the k-th head are at depth k.
    rank:        of a guess of a head, its place among those of that head, 0 for the likeliest; null for others.
    probability: that the step would accept it, as the tree was ranked by; 1 for the root.
    """

    id: int
    text: str
    parent: int | None
    depth: int
    source: TokenSource
    rank: int | None
    probability: float


class StepToken(TypedDict):
    """A token that a step emitted.

    text: what it adds to the answer, if it is delivered; else its own spelling.
    """

    id: int
    text: str
    source: TokenSource


class StepRecord(TypedDict):
    """One step of an answer to look at.

    index:     of the answer.
    step:      counted from 1 in each answer; 0 is the prompt, which has no tree and decides the first token.
    path:      the accepted nodes from the root's child down, as indices of the tree.
    tokens:    those of the path, then the one that the model adds.
    delivered: how many of the tokens are the answer's; a stop string, an end token or a limit cuts the others off.
    """

    index: int
    step: int
    tree: list[TreeNode]
    path: list[int]
    tokens: list[StepToken]
    delivered: int
    seconds: float


class SpeculationStats(TypedDict):
    """What speculation did for one answer, counted over delivered steps and tokens.

    tokens_per_step:    tokens emitted by steps / steps, bonus included; null when the answer needed no step.
    acceptance_lengths: how many steps accepted 0, 1, 2, ... drafts, bonus not included.
    by_source:          drafts by who proposed them; they add up to the totals.
    detail:             each step, when that was asked for and the answer is not streamed.
    detail_left_out:    how many more steps there were than are told of.
    """

    steps: int
    tokens_per_step: float | None
    acceptance_lengths: list[int]
    drafted: int
    accepted: int
    by_source: dict[str, SourceCounts]
    detail: NotRequired[list[StepRecord]]
    detail_left_out: NotRequired[int]

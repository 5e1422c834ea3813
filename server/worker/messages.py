"""All that crosses the boundary between the server and its worker; msgpack over a pipe, nothing is pickled.

To the worker: Load once, then Generate and Cancel in turn, SetLogLevel at any time, Shutdown at the end.
From the worker: Progress while loading, then Ready or LoadFailed; for every Generate any number of
TokenDelta and exactly one of Done and Failed; Heartbeat at any time; Ending before one that cannot go on ends.
"""

from typing import Literal

import msgspec

from medusa_core.config import AttentionName, Int8Heads, Quantization, RunnerName
from server.logs import LogLevel, Rendering

__all__ = [
    "Cancel",
    "Done",
    "DraftedNode",
    "EndReason",
    "Ending",
    "Failed",
    "FinishReason",
    "FromWorker",
    "Generate",
    "Heartbeat",
    "Load",
    "LoadFailed",
    "Progress",
    "PromptStats",
    "Ready",
    "RemoteError",
    "Sampling",
    "SetLogLevel",
    "Shutdown",
    "Speculation",
    "StepDetail",
    "StepStats",
    "ToWorker",
    "TokenDelta",
    "TokenLogprobs",
    "WorkerInfo",
    "decode_from_worker",
    "decode_to_worker",
    "encode",
]

FinishReason = Literal["stop", "length"]
EndReason = Literal["crash", "oom", "hang", "manual"]


class Sampling(msgspec.Struct, frozen=True):
    """medusa_core's SamplingParams; None as `seed` lets the engine draw one."""

    temperature: float
    top_p: float
    top_k: int | None
    min_p: float
    seed: int | None
    choice: int
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: list[tuple[int, float]]
    min_tokens: int


class Speculation(msgspec.Struct, frozen=True):
    """medusa_core's SpeculationParams."""

    mode: Literal["auto", "tree", "static", "chain", "off"]
    max_nodes: int | None
    acceptance: Literal["exact", "typical"]
    epsilon: float
    delta: float


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """medusa_core's TokenLogprobs: a token's own, then the likeliest ids with theirs."""

    logprob: float
    top: list[tuple[int, float]]


class Load(msgspec.Struct, frozen=True, tag=True):
    """Load this model; the first message a worker gets."""

    model: str
    heads: str | None
    device: str
    dtype: str
    max_context: int | None
    tree_nodes: int | None
    tree: Literal["dynamic", "static"]
    prompt_lookup: bool
    draft_vocabulary: int | None
    recycling: bool
    prefix_cache: int | None
    num_threads: int | None
    compile: bool
    quantize: Quantization
    adapter: bool
    runner: RunnerName
    attention: AttentionName
    record_prompts: bool
    compile_steps: bool
    int8_heads: Int8Heads
    delivery_ms: float
    log_level: LogLevel
    log_format: Rendering


class Generate(msgspec.Struct, frozen=True, tag=True):
    """Answer this prompt; sent only while the worker is idle.

    grammar:    what the answer must match, in llguidance's words; None leaves it free.
    prediction: tokens that the client expects the answer to hold.
    cache_salt: rows of the cache are reused between requests of equal salt only.
    request_id: stands in what the worker logs about it.
    detail:     report each step's tree and what became of it.
    """

    id: int
    prompt: list[int]
    sampling: Sampling
    speculation: Speculation
    max_tokens: int | None
    stop_token_ids: list[int]
    ignore_eos: bool
    top_logprobs: int | None
    score_prompt: bool
    grammar: str | None
    prediction: list[int]
    cache_salt: str | None
    request_id: str | None = None
    detail: bool = False


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """Stop the answer `id` before its next step; one that has ended already is no mistake."""

    id: int


class SetLogLevel(msgspec.Struct, frozen=True, tag=True):
    """Log from this level on."""

    level: LogLevel


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    """End the worker."""


class WorkerInfo(msgspec.Struct, frozen=True):
    """What the loaded engine says of itself (medusa_core's EngineInfo).

    tree_sizes: the sizes of which `auto` takes the fastest at every step; empty where it always takes tree_nodes.
    """

    model: str
    device: str
    dtype: str
    max_context: int
    vocab_size: int
    eos_token_ids: list[int]
    num_heads: int
    heads: str | None
    tree_nodes: int
    max_depth: int
    plain_step_s: float
    default_sampling: dict[str, float | int]
    tree: str
    tree_reason: str
    quantization: str
    adapter: str | None
    tree_sizes: tuple[int, ...] = ()


class RemoteError(msgspec.Struct, frozen=True):
    """An exception of medusa_core.errors by the name of its class."""

    name: str
    message: str
    param: str | None


class Heartbeat(msgspec.Struct, frozen=True, tag=True):
    """The worker lives; sent about once a second while it is idle or computes without a token, and after every answer.

    memory: bytes of the device by kind, allocated, reserved and in total; empty on a CPU.
    """

    memory: dict[str, int]


class Progress(msgspec.Struct, frozen=True, tag=True):
    """How far loading is; `share` runs from 0 to 1."""

    stage: str
    share: float


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The model is loaded; Generate may be sent."""

    info: WorkerInfo


class LoadFailed(msgspec.Struct, frozen=True, tag=True):
    """The model cannot be loaded; the worker ends."""

    error: RemoteError


class PromptStats(msgspec.Struct, frozen=True):
    """What the prompt cost; comes with the first token.

    logprobs: of all prompt tokens but the first, when they were asked for.
    """

    prompt_tokens: int
    cached_tokens: int
    prefill_s: float
    logprobs: list[TokenLogprobs] | None


class DraftedNode(msgspec.Struct, frozen=True, array_like=True):
    """medusa_core's DraftedNode: parent, source and rank are None for the root, rank for what no head drafted."""

    token: int
    parent: int | None
    depth: int
    source: str | None
    rank: int | None
    probability: float


class StepDetail(msgspec.Struct, frozen=True, array_like=True):
    """medusa_core's StepDetail: the used nodes, the accepted ones among them, the emitted tokens before any cut."""

    nodes: list[DraftedNode]
    path: list[int]
    tokens: list[int]


class StepStats(msgspec.Struct, frozen=True, array_like=True):
    """One verifying forward pass and its duration.

    drafted:   drafts checked, by who proposed them.
    accepted:  who proposed each accepted draft, in order; the bonus is nobody's.
    head_hits: whether each head's likeliest token was the one emitted, for the heads behind accepted tokens only.
    phases:    seconds of each part of the step; empty where nobody waited for the device to learn them.
    detail:    the step to look at, when it was asked for.
    """

    drafted: dict[str, int]
    accepted: list[str]
    head_hits: list[bool]
    seconds: float
    phases: dict[str, float]
    detail: StepDetail | None = None


class TokenDelta(msgspec.Struct, frozen=True, tag=True):
    """New tokens of the answer `id`.

    When finish_reason is "stop" the last token is the stop token, counted but not shown.

    logprobs: one for each token, when they were asked for.
    """

    id: int
    tokens: list[int]
    prompt: PromptStats | None
    step: StepStats | None
    finish_reason: FinishReason | None
    logprobs: list[TokenLogprobs] | None


class Done(msgspec.Struct, frozen=True, tag=True):
    """The answer `id` has ended, by itself or cancelled; the worker is idle."""

    id: int


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The answer `id` has ended with an error; the worker is idle and lives on."""

    id: int
    error: RemoteError


class Ending(msgspec.Struct, frozen=True, tag=True):
    """The worker ends by itself after this, and another is to take its place.

    reason:  label of medusa_worker_restarts_total.
    message: what has happened, for people.
    """

    reason: EndReason
    message: str


ToWorker = Load | Generate | Cancel | SetLogLevel | Shutdown
FromWorker = Heartbeat | Progress | Ready | LoadFailed | TokenDelta | Done | Failed | Ending


def encode(message: ToWorker | FromWorker) -> bytes:
    """The message as msgpack."""
    return msgspec.msgpack.encode(message)


def decode_to_worker(data: bytes) -> ToWorker:
    """Read a message sent to the worker; raises msgspec.DecodeError on anything else."""
    message: ToWorker = msgspec.msgpack.decode(data, type=ToWorker)
    return message


def decode_from_worker(data: bytes) -> FromWorker:
    """Read a message sent by the worker; raises msgspec.DecodeError on anything else."""
    message: FromWorker = msgspec.msgpack.decode(data, type=FromWorker)
    return message

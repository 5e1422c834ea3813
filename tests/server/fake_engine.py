"""An engine without a model: it repeats the prompt, three tokens a step, in milliseconds and always the same way.

The seed chooses how it misbehaves, so that a test can ask for that over HTTP.
"""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from medusa_core.errors import DeviceFault, HeadsMismatch, InvalidParameter, OutOfMemory
from server.worker.messages import (
    DraftedNode,
    Generate,
    Load,
    PromptStats,
    StepDetail,
    StepStats,
    TokenDelta,
    TokenLogprobs,
    WorkerInfo,
)

FACTORY = "tests.server.fake_engine:load"

SPECIAL_IDS = (0, 1)  # <|start|> and <|end|> of the tiny tokenizer
EOS = 1
TOKENS_PER_STEP = 3
DRAFTED = 7
CONTEXT = 400
VOCABULARY, LARGE_VOCABULARY = 300, 400

# seeds
CRASH_AT_ONCE, CRASH, FAIL, REFUSE, ENDLESS, LONG_PREFILL = 9001, 9002, 9003, 9004, 9005, 9006
HANG_AT_ONCE, HANG, SHORT_AT_ONCE, SHORT_OF_MEMORY, LOST_DEVICE = 9007, 9008, 9009, 9010, 9011
# values of --heads
MISFIT, DIES, SLOW, LARGE = "misfit", "dies", "slow", "large"
# before the path of a file: heads that do not fit, or a load that does not end, once the file is there
MISFIT_IF, HANGS_IF = "misfit-if:", "hangs-if:"


class FakeEngine:
    def __init__(self, load: Load) -> None:
        self.info = WorkerInfo(
            model=load.model,
            device="cpu",
            dtype="float32",
            max_context=load.max_context if load.max_context is not None else CONTEXT,
            vocab_size=LARGE_VOCABULARY if load.heads == LARGE else VOCABULARY,
            eos_token_ids=[EOS],
            num_heads=4,
            heads=load.heads,
            tree_nodes=DRAFTED + 1,
            max_depth=8,
            plain_step_s=0.005,
            default_sampling={"temperature": 0.0},
            tree=load.tree,
            tree_reason="as asked for",
            quantization=load.quantize,
            adapter=None,
        )
        self._last: list[int] = []
        self._salt: str | None = None

    def device_memory(self) -> dict[str, int]:
        return {"allocated": 1000, "reserved": 2000, "total": 4000}

    def generate(self, request: Generate, should_stop: Callable[[], bool]) -> Iterator[TokenDelta]:
        seed = request.sampling.seed
        if seed == REFUSE:
            raise InvalidParameter("the engine does not like this seed", "seed")
        if seed == CRASH_AT_ONCE:
            os._exit(9)
        if seed == HANG_AT_ONCE:
            time.sleep(600)
        if seed == SHORT_AT_ONCE:
            raise OutOfMemory("no memory is left; shorten the prompt")
        for _ in range(200 if seed == LONG_PREFILL else 1):
            if should_stop():
                return
            time.sleep(0.02 if seed == LONG_PREFILL else 0)
        cached = 0
        self._last = self._last if request.cache_salt == self._salt else []
        self._salt = request.cache_salt
        while request.prompt[:-1][cached : cached + 1] == self._last[cached : cached + 1] != []:
            cached += 1
        self._last = list(request.prompt)
        scored = _logprobs(request, request.prompt[1:]) if request.score_prompt else None
        prompt = PromptStats(len(request.prompt), cached, 0.001, scored)
        room = self.info.max_context - len(request.prompt)
        left = room if request.max_tokens is None else min(room, request.max_tokens)
        stops = set(request.stop_token_ids) | (set() if request.ignore_eos else {EOS})
        words = [token for token in request.prompt if token not in SPECIAL_IDS]
        endless = seed == ENDLESS or request.ignore_eos
        answer = words * (1 + room // max(1, len(words))) if endless else [*words, EOS]
        at, count = 0, 1
        while not should_stop():
            emitted = answer[at : at + count]
            tokens = emitted[:left]
            root, at = answer[at - 1], at + count
            stop = next((index for index, token in enumerate(tokens) if token in stops), None)
            tokens = tokens if stop is None else tokens[: stop + 1]
            left -= len(tokens)
            accepted = ["heads"] * (TOKENS_PER_STEP - 1)
            detail = _detail(root, emitted) if request.detail else None
            step = None if count == 1 else StepStats({"heads": DRAFTED}, accepted, [], 0.002, {}, detail)
            reason = "stop" if stop is not None else "length" if left == 0 else None
            told = prompt if count == 1 else None
            yield TokenDelta(request.id, tokens, told, step, reason, _logprobs(request, tokens))
            if reason is not None:
                return
            if seed == FAIL:
                raise RuntimeError("a kernel was launched into the void")
            if seed == CRASH:
                os._exit(9)
            if seed == HANG:
                time.sleep(600)
            if seed == SHORT_OF_MEMORY:
                raise OutOfMemory("no memory is left; shorten the prompt")
            if seed == LOST_DEVICE:
                raise DeviceFault("CUDA error: an illegal memory access was encountered")
            if seed == ENDLESS:
                time.sleep(0.02)
            count = TOKENS_PER_STEP


def _detail(root: int, emitted: list[int]) -> StepDetail:
    """A chain of what is accepted, and behind the root a guess that is wrong."""
    nodes = [DraftedNode(root, None, 0, None, None, 1.0), DraftedNode(0, 0, 1, "heads", 1, 0.125)]
    parent = 0
    for depth, token in enumerate(emitted[:-1], start=1):
        nodes.append(DraftedNode(token, parent, depth, "heads", 0, 0.5**depth))
        parent = depth + 1
    return StepDetail(nodes, list(range(2, len(nodes))), emitted)


def _logprobs(request: Generate, tokens: list[int]) -> list[TokenLogprobs] | None:
    """The token itself is the likeliest, the next ids follow in steps of one nat."""
    if request.top_logprobs is None:
        return None
    ranks = range(request.top_logprobs)
    return [TokenLogprobs(-0.5, [(token + rank, -0.5 - rank) for rank in ranks]) for token in tokens]


def load(load: Load, progress: Callable[[str, float], None]) -> FakeEngine:
    progress("loading the fake model", 0.5)
    name, _, path = load.heads.partition(":") if load.heads is not None else ("", "", "")
    if f"{name}:" == HANGS_IF and Path(path).exists():
        time.sleep(600)
    if load.heads == MISFIT or (f"{name}:" == MISFIT_IF and Path(path).exists()):
        raise HeadsMismatch("the heads were trained for hidden size 4096, the base model has 2048; choose others")
    if load.heads == DIES:
        os._exit(7)
    if load.heads == SLOW:
        time.sleep(1)
    return FakeEngine(load)

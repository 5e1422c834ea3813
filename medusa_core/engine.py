"""Load a model, run one sequence at a time, yield what each step emits. Speaks token ids, never text."""

import logging
import secrets
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Self

import torch

from medusa_core.acceptance import make_rule
from medusa_core.adjustments import Adjustments
from medusa_core.assembly import assemble
from medusa_core.attending import attend_faster
from medusa_core.backbone import Backbone, TransformersBackbone
from medusa_core.calibration import Calibration
from medusa_core.config import EngineConfig, SpeculationParams
from medusa_core.constraints import Constraint, GrammarVocabulary
from medusa_core.decoding import bucket, logprobs_of
from medusa_core.drafters import Asked, Drafters, DraftState, Paced
from medusa_core.errors import InvalidParameter, OutOfMemory, PromptTooLong
from medusa_core.faults import fault_of, told_as_faults
from medusa_core.generation import Delta, EngineInfo, GenerationRequest, PromptStats, StepStats
from medusa_core.heads import DraftHeads
from medusa_core.memory import Memory
from medusa_core.output import Output
from medusa_core.pacing import FixedPace, Pace, Pacing, Situation
from medusa_core.pacing.finding import find_pacing
from medusa_core.prefix_cache import Prefiller, PrefixStore, store_budget
from medusa_core.runners import (
    DecodePlan,
    EagerRunner,
    MakeRunner,
    StepResult,
    choose_runner,
    prompt_lengths,
    to_host,
    unpack_masks,
)
from medusa_core.runners.timed import timed_steps
from medusa_core.sampling import Sampler, SamplingParams
from medusa_core.self_test import check_heads, run_length, trial_prompts
from medusa_core.text import TextCodec
from medusa_core.tree import CandidateTree

__all__ = ["Engine", "ignore_progress", "never"]

_log = logging.getLogger(__name__)

# Timed for each way to read the cache; as many more would be a second of a slow start.
_ATTENTION_STEPS = 12

# What Python itself raises; RuntimeError is torch's, and may tell of the device.
_BUGS = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)

_TOO_LONG = (
    "the device has no memory left for this request; shorten the prompt, or start the server with a smaller "
    "--max-context or --prefix-cache"
)
_TOO_LARGE = (
    "the device has not the memory that this model takes; choose a smaller --max-context or --prefix-cache, --quantize "
    "the weights, or serve a smaller model"
)


def ignore_progress(stage: str, share: float) -> None:
    """Nobody watches the load."""


def never() -> bool:
    """Nobody stops the sequence from outside."""
    return False


class Engine:
    """One model, its heads, and the cache of the last sequences. Not thread-safe: one sequence at a time."""

    def __init__(
        self,
        backbone: Backbone,
        info: EngineInfo,
        prefill_chunk: int,
        drafters: Drafters,
        load_vocabulary: Callable[[], GrammarVocabulary],
        store: PrefixStore,
        memory: Memory,
        make_runner: MakeRunner = EagerRunner,
        lengths: Sequence[int] = (),
    ) -> None:
        """`store` keeps earlier sequences, `memory` what drafting learnt from them.

        load_vocabulary: called once, when the first grammar is asked for.
        lengths:         of passes that are recorded for prompts, by a runner that records; none are without any.
        """
        self.info = info
        self._load_vocabulary = load_vocabulary
        self._vocabulary: GrammarVocabulary | None = None
        self._backbone, self._drafters, self._memory = backbone, drafters, memory
        self._salt: str | None = None  # of the request that the memory's successors are from
        self._pacing: Pacing | None = None
        # Behind the context: the slots of one tree, and the block that its commit writes.
        scratch = info.most_nodes + info.max_depth + 1
        # Rounded up, because attention kernels want masks of round widths.
        self._cache = backbone.new_cache(bucket(info.max_context + scratch))
        self._make_runner, self._runner = make_runner, make_runner(backbone, self._cache)
        self._prefiller = Prefiller(self._runner.prompts(lengths), self._cache, store, prefill_chunk)

    @classmethod
    def load(
        cls,
        config: EngineConfig,
        progress: Callable[[str, float], None] = ignore_progress,
        calibration: Calibration | None = None,
    ) -> Self:
        """Load model and heads; `progress` hears the stage and the share done, 0 to 1.

        A calibration that is given stands in for the one beside the heads.

        Raises CheckpointError when a checkpoint cannot be served, ConfigurationError when an option does not fit it,
        OutOfMemory when the device cannot hold it.
        """
        with told_as_faults(_TOO_LARGE):
            return cls._loaded(config, progress, calibration)

    @classmethod
    def _loaded(
        cls, config: EngineConfig, progress: Callable[[str, float], None], calibration: Calibration | None
    ) -> Self:
        """See load."""
        parts = assemble(config, progress, calibration)

        def load_vocabulary() -> GrammarVocabulary:
            codec, info = TextCodec.load(config.model), parts.info
            return GrammarVocabulary(codec.tokenizer_json, codec.vocab_size, info.vocab_size, info.eos_token_ids)

        store = PrefixStore(store_budget(config.prefix_cache, parts.backbone.device))
        make_runner = choose_runner(config.runner, parts.backbone.device)
        engine = cls(
            parts.backbone,
            parts.info,
            config.prefill_chunk,
            parts.drafters,
            load_vocabulary,
            store,
            parts.memory,
            make_runner,
            prompt_lengths(config.prefill_chunk) if config.record_prompts else (),
        )
        if config.attention == "auto":
            progress("timing attention", 0.85)
            engine.find_attention()
        progress("warming up", 0.9)
        engine.warm_up()
        if parts.heads is not None and config.self_test:
            engine.try_heads(parts.heads)
        if engine.info.tree_sizes:
            progress("timing steps", 0.95)
            engine.find_pace(config.delivery_ms / 1e3)
        progress("ready", 1.0)
        return engine

    def device_memory(self) -> dict[str, int]:
        """Bytes of the device that are allocated, reserved and there in all; empty on a CPU."""
        if self._backbone.device.type != "cuda":
            return {}
        device = self._backbone.device
        return {
            "allocated": torch.cuda.memory_allocated(device),
            "reserved": torch.cuda.memory_reserved(device),
            "total": torch.cuda.get_device_properties(device).total_memory,
        }

    def forget(self) -> None:
        """Drop what is held of earlier sequences: their rows, and what drafting learnt from them."""
        self._prefiller.forget()
        self._memory.forget_outcomes()
        self._memory.forget_successors()

    def warm_up(self) -> None:
        """Run a few steps, so that the first request does not pay for first calls, and time the plain one."""
        prompt = (0,) * min(8, self.info.max_context - 1)
        request = GenerationRequest(prompt, SamplingParams(0.0), max_tokens=8, ignore_eos=True)
        for _ in self.generate(request):
            pass
        plain = replace(request, speculation=SpeculationParams(mode="off"))
        steps = [delta.step.seconds for delta in self.generate(plain) if delta.step is not None]
        # not the median: on CUDA the first few are ordinary steps, the others are replayed
        self.info = replace(self.info, plain_step_s=sorted(steps)[len(steps) // 4] if steps else 0.0)
        self.forget()

    def try_heads(self, heads: DraftHeads) -> None:
        """Judge the heads on a short greedy run; the log says when they look like those of another model."""
        length = run_length(self.info.plain_step_s)

        def write(prompt: tuple[int, ...]) -> list[int]:
            request = GenerationRequest(prompt, SamplingParams(0.0), max_tokens=length)
            return [token for delta in self.generate(request) for token in delta.tokens]

        prompts = trial_prompts(self.info.model, self.info.max_context - length)
        found = check_heads(self._backbone, heads, str(self.info.heads), prompts, write)
        self.info = replace(self.info, head_check=found.own if found is not None else None)
        self.forget()

    def find_attention(self) -> None:
        """Read rows by their number on the device where that gives the same and steps are clearly faster by it.

        Timed are steps behind half of the longest context. Nothing may have been recorded before.
        """
        backbone, nodes = self._backbone, self.info.tree_nodes
        if not isinstance(backbone, TransformersBackbone):
            return
        behind = Situation(max(1, self.info.max_context // 2))

        def seconds() -> float:
            runner = self._make_runner(backbone, self._cache)
            begin = timed_steps(backbone, self._cache, runner, self._drafters, self._memory)
            return statistics.median(islice(begin(nodes, behind), _ATTENTION_STEPS))

        attend_faster(backbone, seconds)
        self.info = replace(self.info, place=replace(self.info.place, kernels=backbone.kernels_label))
        self.forget()

    def find_pace(self, delivery_s: float) -> None:
        """Let `auto` take the fastest of the tree sizes at every step, by what a step of each of them costs here.

        delivery_s: what each takes beside, see EngineConfig.delivery_ms.
        """
        begin = timed_steps(self._backbone, self._cache, self._runner, self._drafters, self._memory)
        self._pacing = find_pacing(self.info, begin, delivery_s)
        self.info = replace(self.info, tree_sizes=self._pacing.sizes)
        self.forget()

    def check(self, request: GenerationRequest) -> None:
        """Raise PromptTooLong or InvalidParameter when the request cannot run on this model."""
        if not request.prompt:
            raise InvalidParameter("the prompt has no tokens; give at least one", "prompt")
        for token in (min(request.prompt), max(request.prompt)):
            if not 0 <= token < self.info.vocab_size:
                raise InvalidParameter(f"token id {token} is not in the vocabulary of {self.info.vocab_size}", "prompt")
        for name, value in (("max_tokens", request.max_tokens), ("top_logprobs", request.top_logprobs)):
            if value is not None and value < 0:
                raise InvalidParameter(f"{name} is {value}, it must be at least 0", name)
        if request.top_logprobs is not None and request.top_logprobs > self.info.vocab_size:
            message = f"top_logprobs is {request.top_logprobs}, the vocabulary holds {self.info.vocab_size}"
            raise InvalidParameter(message, "top_logprobs")
        if len(request.prompt) >= self.info.max_context:
            asked = request.max_tokens if request.max_tokens is not None else 1
            raise PromptTooLong(len(request.prompt), asked, self.info.max_context)
        named = {
            "logit_bias": [token for token, _ in request.sampling.logit_bias],
            "stop_token_ids": request.stop_token_ids,
            "prediction": request.prediction,
        }
        for name, tokens in named.items():
            outside = next((token for token in tokens if not 0 <= token < self.info.vocab_size), None)
            if outside is not None:
                message = f"token id {outside} is not in the vocabulary of {self.info.vocab_size}"
                raise InvalidParameter(message, name)

    def generate(self, request: GenerationRequest, should_stop: Callable[[], bool] = never) -> Iterator[Delta]:
        """Continue a sequence until EOS, a stop token, a limit, or until `should_stop` says so.

        `should_stop` is asked before every prefill chunk and every step; the iterator then simply ends. Mutates the
        engine's cache, whose rows later requests reuse as far as their prompts agree.

        Raises OutOfMemory, after which the next request is answered as if it were the first, or DeviceFault, after
        which none is.
        """
        self.check(request)
        try:
            yield from self._answer(request, should_stop)
            return
        except (RuntimeError, MemoryError) as error:
            fault = fault_of(error, _TOO_LONG)
            if fault is None:
                # A bug, so nothing that this request has left is relied upon.
                self.forget()
                raise
            _log.warning("a request failed: %s: %s", type(error).__name__, error)
        except _BUGS:
            self.forget()
            raise
        # Here the traceback is gone, and with it what the failed pass held.
        if isinstance(fault, OutOfMemory):
            self.give_back()
        raise fault

    def give_back(self) -> None:
        """Forget, and give the memory to the device: later requests must not fail for what is kept for them."""
        self.forget()
        if self._backbone.device.type == "cuda":
            torch.cuda.empty_cache()

    def _answer(self, request: GenerationRequest, should_stop: Callable[[], bool]) -> Iterator[Delta]:
        """See generate."""
        prompt, cache = request.prompt, self._cache
        seed = request.sampling.seed if request.sampling.seed is not None else secrets.randbits(64)
        sampler = Sampler.of_request(replace(request.sampling, seed=seed), self._backbone.device)
        output = Output(request, self.info)
        adjustments = Adjustments.of_request(
            request.sampling, prompt, output.stops, self.info.vocab_size, self._backbone.device
        )
        rule = make_rule(sampler, request.speculation)
        constraint = self._constraint(request.grammar)

        started = time.perf_counter()
        scored = request.top_logprobs if request.score_prompt else None
        computed, cached_tokens = self._prefiller.compute(prompt, request.cache_salt, scored, should_stop)
        if computed is None:
            return
        past, counts = torch.tensor(len(prompt), device=self._backbone.device), adjustments.start()
        end = CandidateTree.chain(torch.tensor(prompt[-1:], device=self._backbone.device))
        allowed = None
        if constraint is not None:
            allowed = unpack_masks([constraint.allowed()], self.info.vocab_size, self._backbone.device)
        logits = adjustments.apply(computed.last.logits, end, past - 1, counts, allowed)
        root = sampler.draw(logits, end.depth, past, end.max_depth)
        logprobs = None
        if request.top_logprobs is not None:
            logprobs = to_host(logprobs_of(computed.last.logits, root, request.top_logprobs))
        scores = tuple(score for part in computed.scores for score in to_host(part)) if scored is not None else None
        first = StepResult(root.tolist(), {}, [], 1, [], [], logprobs, {})
        if constraint is not None:
            constraint.advance(first.tokens)
        now = time.perf_counter()
        yield output.emit(first, PromptStats(len(prompt), cached_tokens, now - started, scores), None)

        counts = adjustments.count(counts, root, torch.ones_like(past))
        history = torch.zeros(cache.rows, dtype=torch.long)
        history[: len(prompt) + 1] = torch.tensor([*prompt, *first.tokens])
        state = DraftState(
            root=root[0],
            hidden=computed.last.hidden[0],
            past=past,
            counts=counts,
            history=history.to(self._backbone.device),
            sampler=None if sampler.is_greedy else sampler,
            memory=self._recall(request),
            is_watched=request.detail,
        )
        asked = Asked(request.speculation, request.prediction, len(prompt), constraint is not None)
        drafting = Paced(self._drafters, asked, self._pace(request, first.tokens))
        plan = DecodePlan(drafting, adjustments, rule, constraint, request.top_logprobs)
        steps = self._runner.steps(plan, state, len(prompt))
        while output.finish_reason is None and not should_stop():
            before, result = now, next(steps)
            drafting.observe(result.num_nodes, result.path, result.tokens)
            cache.tokens.extend((output.root, *result.tokens[:-1]))
            now = time.perf_counter()
            step = StepStats(
                num_nodes=result.num_nodes,
                drafted=result.drafted,
                accepted=tuple(result.accepted),
                head_hits=tuple(result.head_hits),
                seconds=now - before,
                phases=result.phases,
                detail=result.detail,
            )
            yield output.emit(result, None, step)

    def _pace(self, request: GenerationRequest, first: Sequence[int]) -> Pace:
        """How large the trees of a request are; its answer begins with the tokens `first`."""
        wanted = request.speculation.max_nodes
        if request.speculation.mode == "auto" and self._pacing is not None:
            sampling = request.sampling
            texts = request.prediction, (*request.prompt, *first)
            return self._pacing.begin(wanted, sampling.temperature > 0.0, sampling.seed is not None, texts)
        return FixedPace(wanted if wanted is not None else self.info.tree_nodes)

    def _recall(self, request: GenerationRequest) -> Memory:
        """What is remembered of earlier requests; nothing of what could make an answer with a seed come out otherwise.

        What is drafted decides what is accepted, and so how many nodes the next steps have and how a device rounds;
        under rules that are not exact it decides what is emitted. And as statistics tell which drafts were right,
        tokens that followed in another salt's answers would tell what these say.
        """
        is_seeded = request.sampling.seed is not None
        if is_seeded:
            self._memory.forget_outcomes()
        if is_seeded or request.cache_salt != self._salt:
            self._memory.forget_successors()
        self._salt = request.cache_salt
        return self._memory

    def _constraint(self, grammar: str | None) -> Constraint | None:
        """The start of a walk through a grammar; raises InvalidParameter for one that cannot be used."""
        if grammar is None:
            return None
        if self._vocabulary is None:
            self._vocabulary = self._load_vocabulary()
        return self._vocabulary.compile(grammar)

"""medusa_core's engine in the words of the messages."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

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
from server.worker.process import WorkerEngine

__all__ = ["load_engine"]


class _CoreEngine:
    """medusa_core's engine behind the messages."""

    def __init__(self, load: Load, progress: Callable[[str, float], None]) -> None:
        from medusa_core import Engine, EngineConfig

        config = EngineConfig(
            model=load.model,
            heads=load.heads,
            device=load.device,
            dtype=load.dtype,
            max_context=load.max_context,
            tree_nodes=load.tree_nodes,
            tree=load.tree,
            prompt_lookup=load.prompt_lookup,
            draft_vocabulary=load.draft_vocabulary,
            recycling=load.recycling,
            prefix_cache=load.prefix_cache,
            num_threads=load.num_threads,
            compile=load.compile,
            quantize=load.quantize,
            adapter=load.adapter,
            runner=load.runner,
            attention=load.attention,
            record_prompts=load.record_prompts,
            compile_steps=load.compile_steps,
            int8_heads=load.int8_heads,
            delivery_ms=load.delivery_ms,
        )
        self._engine = Engine.load(config, progress)
        info = self._engine.info
        self.info = WorkerInfo(
            model=info.model,
            device=info.device,
            dtype=info.dtype,
            max_context=info.max_context,
            vocab_size=info.vocab_size,
            eos_token_ids=list(info.eos_token_ids),
            num_heads=info.num_heads,
            heads=info.heads,
            tree_nodes=info.tree_nodes,
            max_depth=info.max_depth,
            plain_step_s=info.plain_step_s,
            default_sampling=dict(info.default_sampling),
            tree=info.tree,
            tree_reason=info.tree_reason,
            quantization=info.place.quantization,
            adapter=info.adapter,
            tree_sizes=info.tree_sizes,
        )

    def device_memory(self) -> dict[str, int]:
        memory: dict[str, int] = self._engine.device_memory()
        return memory

    def generate(self, request: Generate, should_stop: Callable[[], bool]) -> Iterator[TokenDelta]:
        from medusa_core import GenerationRequest, SamplingParams, SpeculationParams

        sampling, speculation = request.sampling, request.speculation
        generation = GenerationRequest(
            prompt=tuple(request.prompt),
            sampling=SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                min_p=sampling.min_p,
                seed=sampling.seed,
                choice=sampling.choice,
                repetition_penalty=sampling.repetition_penalty,
                presence_penalty=sampling.presence_penalty,
                frequency_penalty=sampling.frequency_penalty,
                logit_bias=tuple(sampling.logit_bias),
                min_tokens=sampling.min_tokens,
            ),
            speculation=SpeculationParams(
                mode=speculation.mode,
                max_nodes=speculation.max_nodes,
                acceptance=speculation.acceptance,
                epsilon=speculation.epsilon,
                delta=speculation.delta,
            ),
            max_tokens=request.max_tokens,
            stop_token_ids=frozenset(request.stop_token_ids),
            ignore_eos=request.ignore_eos,
            top_logprobs=request.top_logprobs,
            score_prompt=request.score_prompt,
            grammar=request.grammar,
            prediction=tuple(request.prediction),
            cache_salt=request.cache_salt,
            detail=request.detail,
        )
        for delta in self._engine.generate(generation, should_stop):
            prompt, step = delta.prompt, delta.step
            yield TokenDelta(
                id=request.id,
                tokens=list(delta.tokens),
                prompt=None
                if prompt is None
                else PromptStats(
                    prompt.prompt_tokens, prompt.cached_tokens, prompt.prefill_s, _logprobs(prompt.logprobs)
                ),
                step=None
                if step is None
                else StepStats(
                    step.drafted,
                    list(step.accepted),
                    list(step.head_hits),
                    step.seconds,
                    step.phases,
                    _detail(step.detail),
                ),
                finish_reason=delta.finish_reason,
                logprobs=_logprobs(delta.logprobs),
            )


def _detail(found: Any) -> StepDetail | None:
    """The engine's StepDetail as a message's."""
    if found is None:
        return None
    nodes = [
        DraftedNode(node.token, node.parent, node.depth, node.source, node.rank, node.probability)
        for node in found.nodes
    ]
    return StepDetail(nodes, list(found.path), list(found.tokens))


def _logprobs(found: Sequence[Any] | None) -> list[TokenLogprobs] | None:
    """The engine's TokenLogprobs as a message's."""
    return None if found is None else [TokenLogprobs(entry.logprob, list(entry.top)) for entry in found]


def load_engine(load: Load, progress: Callable[[str, float], None]) -> WorkerEngine:
    """Load medusa_core's engine; the factory every real server uses."""
    return _CoreEngine(load, progress)

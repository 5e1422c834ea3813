"""Decode speed of plain decoding, static and dynamic trees, and transformers.generate, on the same prompts.

A first pass over all prompts counts tokens per step, compares the texts and warms everybody up. Then the first prompts
of each kind are timed, all peers in turn prompt by prompt, so that what else the machine does falls on all alike.
"""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medusa_core.config import EngineConfig, SpeculationParams
from medusa_core.engine import Engine
from medusa_core.errors import ConfigurationError
from medusa_core.evaluation.answers import Answer, EnginePeer, Peer, Watch, tokens_per_step, unwatched
from medusa_core.evaluation.generate import GeneratePeer
from medusa_core.evaluation.machine import machine
from medusa_core.evaluation.prompts import Prompt, fitting, of_each_kind, read_prompts
from medusa_core.evaluation.report import BenchReport, PeerKind, PeerResult, write_report
from medusa_core.evaluation.spread import spread
from medusa_core.loading import choose_device
from medusa_core.pictures import prepare_folder
from medusa_core.sampling import SamplingParams
from medusa_core.text import TextCodec

__all__ = ["BenchPlan", "Contestant", "bench", "compare", "contestants"]

_NODES = {"cpu": (4, 8, 16, 32, 64), "cuda": (16, 32, 48, 64, 96, 128)}


@dataclass(frozen=True)
class BenchPlan:
    """What is compared, and how often.

    nodes:         sizes of trees; None is what is sensible on the device.
    with_static:   whether static trees run too, which needs calibrated heads.
    with_generate: whether transformers.generate runs too, on a second copy of the model.
    max_tokens:    longest answer.
    limit:         prompts of each kind that are answered at all; None is all of them.
    timed_prompts: prompts of each kind that are timed; all that are answered are counted.
    repeats:       how often each of them is timed.
    temperature:   0 is greedy; `seed` serves any other.
    """

    nodes: tuple[int, ...] | None = None
    with_static: bool = True
    with_generate: bool = False
    max_tokens: int = 128
    limit: int | None = None
    timed_prompts: int = 8
    repeats: int = 3
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_tokens", "limit", "timed_prompts", "repeats"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigurationError(f"{name} is {getattr(self, name)}, it must be at least 1")
        if self.max_tokens < 2:
            raise ConfigurationError("max_tokens is 1, but the first token takes no step; it must be at least 2")
        if self.nodes is not None and any(count < 2 for count in self.nodes):
            raise ConfigurationError(f"trees have 2 nodes at least, got {list(self.nodes)}; plain decoding always runs")
        if self.with_generate and self.temperature > 0.0:
            raise ConfigurationError("transformers.generate can only be compared greedily; take temperature 0")


@dataclass(frozen=True)
class Contestant:
    """A peer with its name; `nodes` of its trees, root included, None where there are none."""

    name: str
    kind: PeerKind
    nodes: int | None
    peer: Peer


def bench(
    config: EngineConfig,
    prompts: Path,
    plan: BenchPlan,
    chat_template: Path | None = None,
    out: Path | None = None,
    watch: Watch = unwatched,
) -> BenchReport:
    """Load a model and compare how fast it decodes; writes JSON and pictures to the folder `out`."""
    if out is not None:
        prepare_folder(out)
    codec = TextCodec.load(config.model, chat_template)
    read = read_prompts(prompts, codec)
    if plan.limit is not None:
        read = of_each_kind(read, plan.limit)
    nodes = plan.nodes if plan.nodes is not None else _NODES[choose_device(config.device).type]
    engine = Engine.load(replace(config, tree_nodes=max(nodes)), watch)
    if plan.with_generate and (engine.info.place.quantization != "none" or engine.info.adapter is not None):
        raise ConfigurationError(
            "transformers.generate would decode the untouched weights; compare with it without --quantize and adapter"
        )
    chosen = fitting(read, engine.info.max_context, plan.max_tokens)
    report = compare(engine, contestants(engine, plan), chosen, plan, len(read) - len(chosen), watch)
    if out is not None:
        write_report(report, out)
    return report


def contestants(engine: Engine, plan: BenchPlan) -> list[Contestant]:
    """Plain decoding, the trees that this engine can draft, and transformers.generate where it is wanted."""
    found = []
    if plan.with_generate:
        found.append(Contestant("transformers.generate", "transformers", None, GeneratePeer.load(engine.info)))
    found.append(Contestant("plain", "plain", 1, EnginePeer(engine, SpeculationParams(mode="off"))))
    nodes = plan.nodes if plan.nodes is not None else _NODES[engine.info.device.partition(":")[0]]
    if plan.with_static and engine.info.calibration is not None:
        found += [
            Contestant(f"static N={n}", "static", n, EnginePeer(engine, SpeculationParams("static", n))) for n in nodes
        ]
    # without heads they are filled by lookup and recycling
    found += [
        Contestant(f"dynamic N={n}", "dynamic", n, EnginePeer(engine, SpeculationParams("tree", n))) for n in nodes
    ]
    return found


def compare(
    engine: Engine,
    peers: Sequence[Contestant],
    prompts: Sequence[Prompt],
    plan: BenchPlan,
    skipped: int = 0,
    watch: Watch = unwatched,
) -> BenchReport:
    """Let every peer answer every prompt, then time those of the first prompts of each kind.

    Raises ConfigurationError where no answer takes a step.
    """
    sampling = SamplingParams(temperature=plan.temperature, seed=plan.seed)
    timed_prompts = of_each_kind(prompts, plan.timed_prompts)
    counted: dict[str, list[Answer]] = {peer.name: [] for peer in peers}
    timed: dict[str, list[Answer]] = {peer.name: [] for peer in peers}
    rounds = [(counted, prompts), *[(timed, timed_prompts)] * plan.repeats]
    work, done = sum(len(chosen) for _, chosen in rounds), 0
    for answers, chosen in rounds:
        for prompt in chosen:
            watch("counting tokens per step" if answers is counted else "timing answers", done / work)
            for peer in peers:
                answers[peer.name].append(peer.peer.answer(prompt, sampling, plan.max_tokens))
            done += 1
    silent = [name for name, answers in timed.items() if not any(answer.step_tokens > 0 for answer in answers)]
    if silent:
        raise ConfigurationError(
            f"every timed answer of {silent[0]} ends with its first token, which takes no step, so there is nothing to "
            "time; give prompts that the model has an answer to"
        )
    speeds = {peer.kind: _seconds_per_token(timed[peer.name]) for peer in peers}
    plain = next((peer for peer in peers if peer.kind == "plain"), None)
    plain_step = _median_step(timed[plain.name]) if plain is not None else None
    reference = [answer.tokens for answer in counted[peers[0].name]]
    return BenchReport(
        model=engine.info.model,
        heads=engine.info.heads,
        dtype=engine.info.dtype,
        prompts=dict(Counter(prompt.kind for prompt in prompts)),
        skipped=skipped,
        timed_prompts=len(timed_prompts),
        max_tokens=plan.max_tokens,
        repeats=plan.repeats,
        temperature=plan.temperature,
        machine=machine(),
        reference=peers[0].name,
        peers=tuple(
            _result(
                peer,
                prompts,
                counted[peer.name],
                timed[peer.name],
                plain_step,
                (speeds.get("plain"), speeds.get("transformers")),
                reference,
            )
            for peer in peers
        ),
    )


def _seconds_per_token(answers: Sequence[Answer]) -> float:
    """Median over the answers that took a step."""
    return statistics.median(answer.seconds / answer.step_tokens for answer in answers if answer.step_tokens > 0)


def _median_step(answers: Sequence[Answer]) -> float | None:
    seconds = [taken for answer in answers for taken in answer.step_seconds]
    return statistics.median(seconds) if seconds else None


def _result(
    peer: Contestant,
    prompts: Sequence[Prompt],
    counted: list[Answer],
    timed: list[Answer],
    plain_step: float | None,
    others: tuple[float | None, float | None],
    reference: Sequence[tuple[int, ...]],
) -> PeerResult:
    """The figures of one peer; `others` are seconds per token of plain decoding and of transformers.generate."""
    own, step, steps = _seconds_per_token(timed), _median_step(timed), sum(len(a.step_seconds) for a in counted)
    over_plain, over_generate = (other / own if other is not None else None for other in others)
    overhead = step / plain_step if step is not None and plain_step is not None else None
    in_time = tokens_per_step(timed)
    identity = None
    if in_time is not None and overhead is not None and over_plain is not None:
        identity = in_time / overhead / over_plain
    kinds = {
        kind: tokens_per_step([answer for prompt, answer in zip(prompts, counted, strict=True) if prompt.kind == kind])
        for kind in dict.fromkeys(prompt.kind for prompt in prompts)
    }
    accepted: Counter[str] = Counter()
    for answer in counted:
        accepted.update(answer.accepted)
    return PeerResult(
        peer=peer.name,
        kind=peer.kind,
        nodes=peer.nodes,
        tokens_per_second=spread(answer.step_tokens / answer.seconds for answer in timed if answer.step_tokens > 0),
        tokens_per_step=tokens_per_step(counted),
        tokens_per_step_by_kind={kind: tokens for kind, tokens in kinds.items() if tokens is not None},
        acceptance_length=accepted.total() / steps if steps > 0 else None,
        accepted_by_source=dict(accepted),
        step_ms=1e3 * step if step is not None else None,
        step_ms_spread=spread(1e3 * taken for answer in timed for taken in answer.step_seconds)
        if step is not None
        else None,
        overhead=overhead,
        over_plain=over_plain,
        over_generate=over_generate,
        identity=identity,
        differing=sum(answer.tokens != wanted for answer, wanted in zip(counted, reference, strict=True)),
    )

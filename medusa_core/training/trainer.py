"""`medusa train`: from a data file to heads that can be served, measured and described.

Everything an interrupted run needs is in the folder `OUT/run`; the same command goes on from there.
"""

import gc
import logging
import math
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medusa_core.adapters import ADAPTER_FOLDER
from medusa_core.calibration import CALIBRATION_FILE, Calibration
from medusa_core.checkpoints import save_heads
from medusa_core.checkpoints.writing import no_half_written
from medusa_core.config import EngineConfig, Quantization, model_location
from medusa_core.errors import ConfigurationError, QualityLost
from medusa_core.evaluation.answers import Watch, unwatched
from medusa_core.evaluation.prompts import Prompt
from medusa_core.heads import DraftHeads
from medusa_core.loading import read_config
from medusa_core.training.adapter import Adapter
from medusa_core.training.base import FrozenBase
from medusa_core.training.calibrate import measure_heads
from medusa_core.training.encoding import Example, read_examples
from medusa_core.training.loop import LoopPlan, fit, read_log
from medusa_core.training.loss import IGNORED, head_labels
from medusa_core.training.measure import Calibrated, CalibratePlan, measure_speed
from medusa_core.training.medusa1 import HeadsRecipe
from medusa_core.training.medusa2 import JointRecipe, mean_nats
from medusa_core.training.packing import Examples, PackedRows
from medusa_core.training.plan import JointPlan, TrainPlan, fingerprint
from medusa_core.training.refusals import refuse_lost_run, unmeasured
from medusa_core.training.report import DataFacts, Report, write_report
from medusa_core.training.scores import HeadScores
from medusa_core.training.workers import Workers, of_the_leader, workers_of_this_launch

__all__ = ["BaseOptions", "Trained", "train"]

RUN = "run"
HEADS_STAGE, JOINT_STAGE = "heads", "joint"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BaseOptions:
    """The model whose heads are trained, and how it is loaded for that.

    quantize:      how its weights are stored.
    is_spread:     whether it is laid over all devices, for a model too large for one.
    chat_template: file with a template for a model that has none.
    """

    model: str
    device: str = "auto"
    quantize: Quantization = "none"
    is_spread: bool = False
    chat_template: Path | None = None


@dataclass(frozen=True)
class Trained:
    """What a run ended with.

    heads: folder of the heads, of the adapter where there is one, and of the report.
    """

    heads: Path
    calibration: Calibration
    report: Report


@dataclass(frozen=True)
class _Data:
    trained: PackedRows
    held_out: PackedRows
    facts: DataFacts
    digest: str


@dataclass(frozen=True)
class _Result:
    """What training itself ends with, before anything is measured through the engine."""

    served_with: str
    heads: Path
    calibration: Calibration
    scores: HeadScores
    perplexity: tuple[float, float] | None
    data: _Data


def train(
    base: BaseOptions,
    data: Path,
    out: Path,
    plan: TrainPlan,
    joint: JointPlan | None = None,
    measured: CalibratePlan | None = None,
    watch: Watch = unwatched,
) -> Trained | None:
    """Train heads for a model on a JSON-lines file and write them, calibrated and with a report, to the folder `out`.

    joint:    also train the base, or an adapter on it, with the heads (Medusa-2); None leaves it as it is (Medusa-1).
    measured: how tokens per step and step times are measured when the heads are there; None leaves that out.

    Goes on from `out` when that holds the state of an interrupted run with the same plan and data. Returns None in
    processes of a launch that do not lead it.

    Raises ConfigurationError for data or options that cannot be trained with, QualityLost when the base would lose more
    than the plan allows; `out` then holds the run's state, and whatever it held before.
    """
    workers = workers_of_this_launch(base.device)
    result = _train(base, data, out, plan, joint, workers)
    if workers.rank != 0:
        return None
    calibration, speed = result.calibration, None
    obstacle = unmeasured(base.quantize, base.is_spread, joint is not None)
    if measured is not None and obstacle is not None:
        _log.warning("speed is not measured: %s", obstacle)
    elif measured is not None:
        speed = _speed(base, result, measured, watch)
        calibration = speed.calibration
    log = [{"stage": stage, **line} for stage in (HEADS_STAGE, JOINT_STAGE) for line in read_log(out / RUN / stage)]
    report = Report(
        base.model, result.served_with, plan, joint, result.data.facts, log, result.scores, result.perplexity, speed
    )
    write_report(report, result.heads)
    shutil.rmtree(out / RUN)
    return Trained(result.heads, calibration, report)


def _train(
    options: BaseOptions, data: Path, out: Path, plan: TrainPlan, joint: JointPlan | None, workers: Workers
) -> _Result:
    """Train and write the heads; the base is out of memory when this returns."""
    refuse_lost_run(options.model, options.quantize, options.is_spread, joint, out, workers.count)
    if plan.passes_per_step < workers.count:
        idle = workers.count - plan.passes_per_step
        _log.warning(
            "a step has %d passes, so %d of %d processes have nothing to do: --accumulate %d gives each of them one",
            plan.passes_per_step, idle, workers.count, workers.count,
        )  # fmt: skip
    base = FrozenBase.load(options.model, workers.device, options.quantize, options.is_spread, options.chat_template)
    if joint is not None and joint.adapter_rank is None:
        base.model.float()  # type: ignore[no-untyped-call]
    rows = _rows(base, data, plan)
    torch.manual_seed(plan.seed)  # low-rank LM heads start at random, in every process the same
    heads = DraftHeads.from_base(
        base.lm_head, plan.num_heads, plan.num_layers, plan.shared_lm_head, plan.lm_head_rank
    ).float()
    heads.to(base.device).train()
    facts = (plan, options.model, options.quantize, rows.digest)
    recipe = HeadsRecipe(base, heads, rows.trained, rows.held_out, plan, workers)
    if joint is None or joint.two_stages:
        fit(recipe, _loop(plan, "training heads", recipe.steps), out / RUN / HEADS_STAGE, fingerprint(*facts), workers)
    perplexity = adapter = None
    if joint is not None:
        adapter = _adapter(base, joint, plan.seed)
        run, folder = fingerprint(joint, *facts), out / RUN / JOINT_STAGE
        perplexity = _train_jointly(base, adapter, heads, rows, plan, joint, folder, run, workers)
    heads.eval().requires_grad_(False)
    scores, calibration = measure_heads(base, heads, rows.held_out.in_order(plan.rows_per_pass))
    served_with, folder = options.model, out
    if workers.rank == 0:
        served_with, folder = _write(base, adapter, heads, calibration, joint, out)
    workers.wait()
    return _Result(served_with, folder, calibration, scores, perplexity, rows)


def _speed(options: BaseOptions, result: _Result, plan: CalibratePlan, watch: Watch) -> Calibrated:
    """Tokens per step and step times through the engine, on prompts that training did not see."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    config = EngineConfig(
        model=result.served_with, heads=str(result.heads), device=options.device, quantize=options.quantize
    )
    prompts = [
        Prompt(line, "text", beginning)
        for line, example in enumerate(result.data.held_out.examples, start=1)
        if (beginning := _beginning(example))
    ]
    return measure_speed(config, result.calibration, prompts, plan, result.heads / CALIBRATION_FILE, watch)


def _beginning(example: Example) -> tuple[int, ...]:
    """What an answer was given to; of a text that is judged throughout, its first third."""
    first = example.judged.index(True)
    return example.tokens[: first if first > 0 else len(example.tokens) // 3]


def _rows(base: FrozenBase, data: Path, plan: TrainPlan) -> _Data:
    """The data in rows that the base can read, a part of it held out."""
    length = min(plan.max_length, base.max_positions)
    examples = Examples.of(read_examples(data, base.tokenizer, length))
    largest = int(examples.tokens.max(initial=0))
    if largest >= base.vocab_size:
        raise ConfigurationError(
            f"the tokenizer of {base.name!r} makes token {largest} of {data}, the model knows {base.vocab_size}; give "
            "a model and a tokenizer that belong together"
        )
    trained, held_out = examples.split(plan.held_out_percent)
    if not len(trained) or not len(held_out):
        raise ConfigurationError(
            f"{data} has {len(examples)} examples with an answer to learn from; holding out {plan.held_out_percent} % "
            f"leaves {len(trained)} to train on and {len(held_out)} to measure on; give more data"
        )
    packed = PackedRows.pack(trained, length, plan.seed, base.packs)
    rows = _Data(
        packed,
        PackedRows.pack(held_out, length, plan.seed, base.packs),
        DataFacts(data.name, len(trained), len(held_out), len(trained.tokens), len(packed)),
        examples.digest(),
    )
    for name, part in (("train on", rows.trained), ("measure on", rows.held_out)):
        if not any((head_labels(batch, plan.num_heads)[-1] != IGNORED).any() for batch in part.in_order(1)):
            raise ConfigurationError(
                f"no answer in {data} to {name} is long enough for {plan.num_heads} heads, which look "
                f"{plan.num_heads + 1} tokens ahead; give longer answers, or train fewer heads"
            )
    return rows


def _loop(plan: TrainPlan, title: str, steps: int) -> LoopPlan:
    return LoopPlan(
        title, steps, plan.gradient_norm, plan.save_every, plan.evaluate_every, plan.patience, plan.save_after_s
    )


def _adapter(base: FrozenBase, joint: JointPlan, seed: int) -> Adapter | None:
    """What is trained of the base from here on: an adapter, or for want of one all of it."""
    if joint.adapter_rank is not None:
        return Adapter(base, joint.adapter_rank, joint, seed)
    model: Any = base.model
    model.requires_grad_(True)
    return None


def _train_jointly(
    base: FrozenBase,
    adapter: Adapter | None,
    heads: DraftHeads,
    rows: _Data,
    plan: TrainPlan,
    joint: JointPlan,
    folder: Path,
    run: str,
    workers: Workers,
) -> tuple[float, float]:
    """Train base and heads; the base's held-out perplexity before and after, or QualityLost."""
    held_out = list(rows.held_out.in_order(plan.rows_per_pass))
    before = math.exp(mean_nats(base, held_out, plan.chunk_rows(base.vocab_size)))
    recipe = JointRecipe(base, adapter, heads, rows.trained, rows.held_out, plan, joint, workers)
    fit(recipe, _loop(plan, "training base and heads", recipe.steps), folder, run, workers)
    after = math.exp(mean_nats(base, held_out, plan.chunk_rows(base.vocab_size)))
    before, after = of_the_leader(workers, before), of_the_leader(workers, after)
    change = 100.0 * (after / before - 1.0)
    _log.info("held-out perplexity %.3f before and %.3f after, %+.2f %%", before, after, change)
    if not change <= joint.max_perplexity_percent:  # no number is too much as well
        raise QualityLost(change, joint.max_perplexity_percent)
    return before, after


def _write(
    base: FrozenBase,
    adapter: Adapter | None,
    heads: DraftHeads,
    calibration: Calibration,
    joint: JointPlan | None,
    out: Path,
) -> tuple[str, Path]:
    """Write what was trained; returns the model the heads are to be served with, and their folder."""
    model, folder = base.name, out
    if joint is not None and (joint.merge or adapter is None):
        if adapter is not None:
            adapter.merge()
        model, folder = str(out), out / HEADS_STAGE
        _write_model(base, out)
    elif adapter is not None:
        adapter.save(out)
    else:
        # of an earlier run; these heads were trained without it, and serving would merge it into their base
        shutil.rmtree(out / ADAPTER_FOLDER, ignore_errors=True)
    save_heads(folder, heads, model)
    calibration.save(folder / CALIBRATION_FILE)
    return model, folder


def _write_model(base: FrozenBase, out: Path) -> None:
    """The whole model, each file whole or not there."""
    model: Any = base.model
    # loaded for one length, a rope with two sets of factors holds one of them twice
    original: Any = read_config(model_location(base.name)).get_text_config()
    model.config.get_text_config().rope_parameters = getattr(original, "rope_parameters", None)
    with no_half_written(out), tempfile.TemporaryDirectory(dir=out) as staging:
        model.save_pretrained(staging)
        base.tokenizer.save_pretrained(staging)
        for file in Path(staging).iterdir():
            os.replace(file, out / file.name)

"""`medusa calibrate`: everything that is measured about a set of heads, stored beside them.

How often the heads are right says which static tree is best. What a step costs on this machine by the size of its tree,
and how many tokens it gives on real prompts, say which size is fastest; `serve` takes it where all that was measured.
"""

import gc
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from medusa_core.adapters import find_adapter, merge_adapter
from medusa_core.calibration import CALIBRATION_FILE, Calibration, LatencyCurve
from medusa_core.checkpoints import find_heads, heads_location, load_heads
from medusa_core.config import EngineConfig, SpeculationParams, model_location
from medusa_core.engine import Engine
from medusa_core.errors import ConfigurationError
from medusa_core.evaluation.answers import EnginePeer, Watch, unwatched
from medusa_core.evaluation.measuring import LatencyPlan, count_tokens_per_step, latency_curve, sensible_nodes
from medusa_core.evaluation.prompts import Prompt
from medusa_core.loading import choose_device
from medusa_core.pacing.finding import situations
from medusa_core.pictures import (
    BenchPoint,
    accuracy_by_rank,
    prepare_folder,
    save,
    speed_by_nodes,
    static_tree,
    step_latency,
)
from medusa_core.sampling import SamplingParams
from medusa_core.training.base import FrozenBase
from medusa_core.training.calibrate import calibrate_heads
from medusa_core.training.encoding import Encoder, Example, template_ids
from medusa_core.training.packing import Examples, PackedRows
from medusa_core.training.records import Record, read_records
from medusa_core.training.tokenizer import load_data_tokenizer

__all__ = ["CalibratePlan", "Calibrated", "calibrate", "draw_calibration", "measure_speed", "prompt_of"]


Thing = TypeVar("Thing")


@dataclass(frozen=True)
class CalibratePlan:
    """How much is measured.

    nodes:       sizes of trees; None is what is sensible on the device.
    records:     lines of the data that are read, from its start; the heads are judged on their answers.
    own_answers: judge the heads on what the model itself answers, in place of what the data holds. It is what they
                 will be asked to guess, and it takes longer; for lines without an answer it is done in any case.
    answers:     of the lines read, how many the model answers at most, evenly spread.
    prompts:     of the lines read, how many are answered to count tokens per step, evenly spread.
    max_tokens:  longest of the model's answers.
    max_length:  longer examples are cut.
    rows:        rows of `max_length` tokens that the base computes at once.
    context:     tokens in the cache while greedy steps are timed, which is also done behind a long context where the
                 model holds one, and on a CPU with sampling; `rounds` is how often each size has its turn.
    """

    nodes: tuple[int, ...] | None = None
    records: int = 1000
    own_answers: bool = False
    answers: int = 64
    prompts: int = 16
    max_tokens: int = 96
    max_length: int = 2048
    rows: int = 2
    context: int = 256
    rounds: int = 8

    def __post_init__(self) -> None:
        for name in ("records", "answers", "prompts", "max_length", "rows", "context", "rounds"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} is {getattr(self, name)}, it must be at least 1")
        if self.max_tokens < 2:
            raise ConfigurationError(f"max_tokens is {self.max_tokens}, it must be at least 2: the first takes no step")
        if self.nodes is not None and (1 not in self.nodes or min(self.nodes) < 1):
            raise ConfigurationError(f"nodes are {list(self.nodes)}; 1, plain decoding, must be among them")


@dataclass(frozen=True)
class Calibrated:
    """What was found.

    path:         where it was written.
    curve:        what a step costs on this machine, behind the context that was asked for.
    nodes:        the size with most tokens per second here.
    own_answers:  prompts that the model answered itself, to be judged on.
    """

    calibration: Calibration
    path: Path
    curve: LatencyCurve
    nodes: int
    own_answers: int

    def speed_up(self, nodes: int) -> float:
        """Tokens per second of trees of a size by those of plain decoding."""
        return self.calibration.tokens_at(nodes) * self.curve.seconds[1] / self.curve.seconds[nodes]


def calibrate(
    config: EngineConfig,
    data: Path,
    plan: CalibratePlan,
    chat_template: Path | None = None,
    pictures: Path | None = None,
    watch: Watch = unwatched,
) -> Calibrated:
    """Measure the heads of a model on a data file and write `calibration.json` beside them.

    The curves of other machines that stand there already are kept. The base is loaded twice, one copy at a time: as
    it is trained with, to judge the heads on whole examples, and as it is served, to time steps.

    Raises ConfigurationError when there are no heads, or none on this disk.
    """
    if pictures is not None:
        prepare_folder(pictures)
    folder, source = _heads_folder(config)
    if not os.access(folder, os.W_OK):
        raise ConfigurationError(f"{folder} cannot be written to; copy the heads elsewhere and name that with --heads")
    tokenizer = load_data_tokenizer(config.model, chat_template)
    watch("reading the data", 0.0)
    records = list(islice(read_records(data), plan.records))
    encoder = Encoder(tokenizer)
    answered = [] if plan.own_answers else [record for record in records if _has_answer(record)]
    examples = [example for example in encoder.encode(answered, str(data)) if any(example.judged)]
    unanswered = [record for record in records if plan.own_answers or not _has_answer(record)]
    asked = [prompt_of(record, tokenizer) for record in _spread_out(unanswered, plan.answers)]
    if asked:
        examples += _own_answers(config, asked, plan.max_tokens, watch)
        _give_back()
    watch("judging the heads", 0.0)
    calibration = _judge(config, source, examples, plan)
    _give_back()
    chosen = [prompt_of(record, tokenizer) for record in _spread_out(records, plan.prompts)]
    found = measure_speed(config, calibration, chosen, plan, folder / CALIBRATION_FILE, watch)
    found = replace(found, own_answers=len(asked))
    if pictures is not None:
        draw_calibration(found, config.model, pictures)
    return found


def measure_speed(
    config: EngineConfig,
    calibration: Calibration,
    prompts: Sequence[Prompt],
    plan: CalibratePlan,
    path: Path,
    watch: Watch = unwatched,
) -> Calibrated:
    """Count tokens per step and time steps by the size of the tree, choose trees, and write it all to `path`.

    calibration: what is known of the heads; curves that stand in `path` already, of other machines too, are kept.
    prompts:     answered are some of them, evenly spread.
    """
    if path.is_file():
        calibration = replace(calibration, latency=Calibration.load(path).latency)
    nodes = plan.nodes if plan.nodes is not None else sensible_nodes(choose_device(config.device).type)
    engine = Engine.load(replace(config, tree_nodes=max(nodes)), watch, calibration)
    asked = _with_room(_spread_out(prompts, plan.prompts), engine.info.max_context, plan.max_tokens)
    counted = count_tokens_per_step(engine, asked, nodes, plan.max_tokens, watch)
    others = [LatencyPlan(at.rows, plan.rounds, is_sampled=at.is_sampled) for at in situations(engine.info)[1:]]
    curve, *more = [
        latency_curve(engine, asked, nodes, chosen, watch)
        for chosen in (LatencyPlan(plan.context, plan.rounds), *others)
    ]
    calibration = replace(
        calibration,
        tokens_per_step=counted,
        trees={count: calibration.best_tree(count) for count in nodes if count > 1},
    ).with_latency(curve, *more)
    calibration.save(path)
    return Calibrated(calibration, path, curve, calibration.best_nodes(curve), own_answers=0)


def _heads_folder(config: EngineConfig) -> tuple[Path, str]:
    """Where the calibration goes, and what the heads are loaded from."""
    location = model_location(config.model)
    source = heads_location(config.heads) if config.heads is not None else find_heads(location)
    if source is None:
        raise ConfigurationError(f"{config.model!r} has no draft heads; name them with --heads, or train some")
    path = Path(source)
    if not path.exists():
        raise ConfigurationError(
            f"the heads {str(source)!r} are on a hub, and a calibration stands beside them; fetch them into a folder "
            "with `medusa convert` and name that"
        )
    return (path if path.is_dir() else path.parent), str(source)


def _has_answer(record: Record) -> bool:
    return record.text is not None or (len(record.messages) > 0 and record.messages[-1].role == "assistant")


def _spread_out(things: Sequence[Thing], count: int) -> list[Thing]:
    """At most so many of them, evenly spaced: data often comes sorted by kind."""
    step = max(1.0, len(things) / count)
    return [things[int(index * step)] for index in range(min(count, len(things)))]


def prompt_of(record: Record, tokenizer: PreTrainedTokenizerBase) -> Prompt:
    """What an answer to a record begins with: its text, or its conversation without the last answer."""
    if record.text is not None:
        return Prompt(record.line, "text", tuple(tokenizer(record.text, verbose=False)["input_ids"]))
    messages = record.messages[:-1] if _has_answer(record) else record.messages
    shown = [message.shown() for message in messages]
    return Prompt(record.line, "chat", tuple(template_ids(tokenizer, shown, True, record.tools)))


def _with_room(prompts: Sequence[Prompt], max_context: int, max_tokens: int) -> list[Prompt]:
    """Prompts cut at their end where they would leave no room for an answer."""
    room = max_context - max_tokens
    if room < 1:
        raise ConfigurationError(f"a context of {max_context} has no room for {max_tokens} tokens; ask for fewer")
    return [replace(prompt, tokens=prompt.tokens[:room]) for prompt in prompts]


def _own_answers(config: EngineConfig, prompts: Sequence[Prompt], max_tokens: int, watch: Watch) -> list[Example]:
    """The model's own greedy answers, which are what the heads will be asked to guess."""
    # a calibration that stands there may be of fewer heads, and is about to be replaced
    unknown = Calibration(((),) * config.max_depth, (0,) * config.max_depth, (1.0,) * config.max_depth)
    engine = Engine.load(config, watch, unknown)
    peer = EnginePeer(engine, SpeculationParams())
    examples = []
    for done, prompt in enumerate(_with_room(prompts, engine.info.max_context, max_tokens)):
        watch("answering what has no answer", done / len(prompts))
        answer = peer.answer(prompt, SamplingParams(temperature=0.0), max_tokens).tokens
        judged = (False,) * len(prompt.tokens) + (True,) * len(answer)
        examples.append(Example((*prompt.tokens, *answer), judged))
    return examples


def _judge(config: EngineConfig, source: str, examples: Sequence[Example], plan: CalibratePlan) -> Calibration:
    """Accuracies and temperatures, on the weights that are served."""
    device = choose_device(config.device)
    disable_progress_bar()  # type: ignore[no-untyped-call]  # whoever watches shows a bar already
    base = FrozenBase.load(config.model, device, config.quantize)
    adapter = find_adapter(source) if config.adapter else None
    if adapter is not None:
        base = FrozenBase.of(base.name, merge_adapter(base.model, adapter), base.tokenizer)
    heads = load_heads(source, base.lm_head)
    length = min(plan.max_length, base.max_positions)
    ahead = heads.config.num_heads + 1
    if not any(any(example.judged[ahead:length]) for example in examples):
        raise ConfigurationError(
            f"the data has no answer long enough for {heads.config.num_heads} heads, which look {ahead} tokens ahead; "
            "give longer answers"
        )
    rows = PackedRows.pack(Examples.of(examples), length, 0, base.packs)
    return calibrate_heads(base, heads, rows.in_order(plan.rows))


def _give_back() -> None:
    """Free what the last copy of the model held, before the next one is loaded."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def draw_calibration(found: Calibrated, model: str, folder: Path) -> None:
    """Accuracies, the best tree of the best size, tokens per step with speed, and the time of a step, as pictures.

    Where plain decoding is fastest, the tree is that of the size that comes nearest: a root alone is no picture.
    """
    calibration, curve = found.calibration, found.curve
    shown = max((nodes for nodes in curve.seconds if nodes > 1), key=found.speed_up, default=1)
    points = [
        BenchPoint(nodes, calibration.tokens_at(nodes), found.speed_up(nodes), 1e3 * seconds)
        for nodes, seconds in sorted(curve.seconds.items())
    ]
    save(accuracy_by_rank(calibration), folder / "accuracy.png")
    save(static_tree(calibration, calibration.static_tree(shown)), folder / "tree.png")
    save(speed_by_nodes({"dynamic tree": points}, model), folder / "speed.png")
    save(step_latency({f"{curve.place.device}, {curve.place.dtype}": curve.seconds}, model), folder / "latency.png")

"""The one training loop: every recipe here runs on it, from the demo's base model to draft heads.

A recipe says what a step adds to the gradients; the loop does the rest: rates, clipping, progress, the log, evaluation,
early stopping, and a state on disk that is whole at any moment, from which a run goes on as if nothing had happened.
"""

import json
import logging
import math
import os
import pickle
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from medusa_core.errors import CheckpointError, ConfigurationError
from medusa_core.reasons import in_one_line
from medusa_core.training.progress import progress_bar
from medusa_core.training.workers import Workers, of_the_leader, sum_gradients

__all__ = ["LOG", "STATE", "LoopPlan", "Recipe", "cosine", "fit", "read_log", "steps_done"]

STATE, LOG = "training_state.pt", "log.jsonl"
# What early stopping goes by, among what a recipe measures.
HELD_OUT_LOSS = "held_out_loss"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoopPlan:
    """How a run proceeds.

    save_every:     steps between states on disk; one is also written when the last is `save_after_s` seconds old, where
                    that is given.
    evaluate_every: steps between measurements of the recipe; None measures at the end only.
    patience:       measurements without a better held-out loss after which the run ends; None runs to the last step.
    """

    title: str
    steps: int
    gradient_norm: float
    save_every: int
    evaluate_every: int | None
    patience: int | None
    save_after_s: float | None = None


class Recipe(Protocol):
    """What is trained, and what one step is."""

    def modules(self) -> Mapping[str, nn.Module]:
        """What is trained, by the name under which the state keeps it; nothing else changes."""
        ...

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """The same ones at every call; the loop scales the rates they were made with."""
        ...

    def rate(self, step: int) -> float:
        """Share of the full learning rates at a step."""
        ...

    def accumulate(self, step: int) -> Mapping[str, float | list[float]]:
        """Add this process's part of a step to the gradients; returns the step's losses over all processes.

        Single numbers are shown while the run proceeds, lists only logged.
        """
        ...

    def evaluate(self) -> Mapping[str, float | list[float]]:
        """Measurements on what training does not see; `held_out_loss` among them decides about early stopping."""
        ...


@dataclass
class _Progress:
    """Where a run stands: steps done, and the best measurement so far with the parameters it was made of."""

    step: int = 0
    best_loss: float = math.inf
    best_step: int = 0
    best: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    since_best: int = 0
    has_ended: bool = False


def fit(recipe: Recipe, plan: LoopPlan, folder: Path, run: str, workers: Workers) -> None:
    """Train the recipe's modules in place, going on from the state in `folder` when there is one.

    run: what a run must share with the one it goes on from; ConfigurationError when it does not.

    With early stopping the modules end as they were at the best measurement.
    """
    _make_folder(folder)
    optimizers = recipe.optimizers()
    full = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    parameters = [p for module in recipe.modules().values() for p in module.parameters() if p.requires_grad]
    progress = _resume(recipe, folder, run)
    if of_the_leader(workers, progress.step) != progress.step:
        raise ConfigurationError(
            f"{str(folder)!r} is not the same in every process; name a folder on a disk that all of them share"
        )
    log = _Log(folder / LOG, progress.step, is_kept=workers.rank == 0)
    saved_at = time.monotonic()
    with progress_bar(plan.title, plan.steps, progress.step, "step", is_shown=workers.rank == 0) as bar:
        while progress.step < plan.steps and not progress.has_ended:
            started, share = time.monotonic(), recipe.rate(progress.step)
            for optimizer, rates in zip(optimizers, full, strict=True):
                for group, learning_rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = learning_rate * share
            losses = recipe.accumulate(progress.step)
            sum_gradients(workers, parameters)
            nn.utils.clip_grad_norm_(parameters, plan.gradient_norm)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            progress.step += 1
            _refuse_nonsense(losses, progress.step)
            bar.update(1)
            shown = [f"{name} {value:.3f}" for name, value in losses.items() if isinstance(value, float)]
            bar.set_postfix_str(", ".join(shown), refresh=False)
            seconds = time.monotonic() - started
            log.write({"step": progress.step, **_rounded({**losses, "rate": share, "seconds": seconds})})
            if _is_due(progress.step, plan.evaluate_every, plan.steps):
                measured = recipe.evaluate()
                log.write({"step": progress.step, "evaluation": _rounded(measured)})
                _judge(progress, measured, recipe, plan.patience, workers)
            is_old = plan.save_after_s is not None and time.monotonic() - saved_at >= plan.save_after_s
            is_due = is_old or progress.has_ended or _is_due(progress.step, plan.save_every, plan.steps)
            if workers.rank == 0 and is_due:
                _save(recipe, progress, folder, run)
                saved_at = time.monotonic()
    if plan.patience is not None and progress.best and progress.best_step < progress.step:
        _log.info("taking the parameters of step %d, the best on held-out text", progress.best_step)
        for name, module in recipe.modules().items():
            module.load_state_dict(progress.best[name], strict=False)
    workers.wait()


def cosine(step: int, steps: int, warmup_steps: int) -> float:
    """Share of the learning rate at a step: linear warm-up, then a cosine to zero."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))


def steps_done(folder: Path) -> int:
    """Steps of the state in the folder; 0 without one."""
    path = folder / STATE
    return int(torch.load(path, map_location="cpu", weights_only=True)["step"]) if path.exists() else 0


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines that a run left, in order."""
    path = folder / LOG
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"cannot write to {str(folder)!r}: {error.strerror}; name another folder") from error


def _is_due(step: int, every: int | None, last: int) -> bool:
    return step == last or (every is not None and step % every == 0)


def _refuse_nonsense(losses: Mapping[str, float | list[float]], step: int) -> None:
    for name, value in losses.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigurationError(
                f"{name} is {value} at step {step}; lower the learning rate, or leave out the data that causes it"
            )


def _judge(
    progress: _Progress,
    measured: Mapping[str, float | list[float]],
    recipe: Recipe,
    patience: int | None,
    workers: Workers,
) -> None:
    """Remember the best parameters, and end the run when none better came for long enough."""
    loss = measured.get(HELD_OUT_LOSS)
    if patience is None or not isinstance(loss, float):
        return
    loss = of_the_leader(workers, loss)
    if loss < progress.best_loss:
        progress.best_loss, progress.best_step, progress.since_best = loss, progress.step, 0
        progress.best = {name: _copied(module) for name, module in recipe.modules().items()}
        return
    progress.since_best += 1
    progress.has_ended = progress.since_best >= patience


def _copied(module: nn.Module) -> dict[str, Tensor]:
    """What training changes of a module, on the host."""
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    return {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items() if name in trained}


def _rounded(values: Mapping[str, float | list[float]]) -> dict[str, float | list[float]]:
    return {
        name: round(value, 5) if isinstance(value, float) else [round(one, 5) for one in value]
        for name, value in values.items()
    }


class _Log:
    """JSON lines of a run; what an interrupted run wrote after its last state is taken back."""

    def __init__(self, path: Path, step: int, is_kept: bool) -> None:
        self._path = path if is_kept else None
        if self._path is None or not path.exists():
            return
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        partial = path.with_name(path.name + ".partial")
        with _saying_what_is_full(path.parent):
            partial.write_text("".join(kept), encoding="utf-8")
            os.replace(partial, path)

    def write(self, record: Mapping[str, Any]) -> None:
        if self._path is not None:
            with _saying_what_is_full(self._path.parent), self._path.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(record) + "\n")


@contextmanager
def _saying_what_is_full(folder: Path) -> Iterator[None]:
    """What a disk refuses, as one sentence with the way out."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch reports a full disk as either
        raise CheckpointError(
            f"the state of the run cannot be written to {str(folder)!r}: {error}; make room, and start the same "
            "command again: it goes on from the state before"
        ) from error


def _save(recipe: Recipe, progress: _Progress, folder: Path, run: str) -> None:
    state = {
        "run": run,
        "step": progress.step,
        "best_loss": progress.best_loss,
        "best_step": progress.best_step,
        "best": progress.best,
        "since_best": progress.since_best,
        "has_ended": progress.has_ended,
        "modules": {name: _copied(module) for name, module in recipe.modules().items()},
        "optimizers": [optimizer.state_dict() for optimizer in recipe.optimizers()],
    }
    partial = folder / f"{STATE}.partial"
    with _saying_what_is_full(folder):
        try:
            torch.save(state, partial)
            os.replace(partial, folder / STATE)
        finally:
            partial.unlink(missing_ok=True)


def _resume(recipe: Recipe, folder: Path, run: str) -> _Progress:
    path = folder / STATE
    if not path.exists():
        return _Progress()
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        reason = in_one_line(error)
        raise CheckpointError(f"{str(path)!r} is damaged: {reason}; delete it to start anew") from error
    if state["run"] != run:
        raise ConfigurationError(
            f"{str(path)!r} belongs to a run with another plan or other data; delete it, or train into another folder"
        )
    for name, module in recipe.modules().items():
        module.load_state_dict(state["modules"][name], strict=False)
    for optimizer, saved in zip(recipe.optimizers(), state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    names: Iterable[str] = ("step", "best_loss", "best_step", "best", "since_best", "has_ended")
    _log.info("going on after step %d", state["step"])
    return _Progress(**{name: state[name] for name in names})

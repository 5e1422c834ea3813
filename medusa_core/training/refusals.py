"""What a training run is refused for before it begins, since it could not end well: hours are lost otherwise."""

import json
from pathlib import Path
from typing import Any

from medusa_core.config import model_location
from medusa_core.errors import ConfigurationError
from medusa_core.loading import read_config, refuse_by_config
from medusa_core.quantization import OPTIONS
from medusa_core.training.plan import JointPlan

__all__ = ["refuse_lost_run", "unmeasured"]


def refuse_lost_run(
    model: str, quantize: str, is_spread: bool, joint: JointPlan | None, out: Path, processes: int
) -> None:
    """Raise ConfigurationError for options whose result could not be written, or UnsupportedModel for no use of it."""
    config = read_config(model_location(model))
    refuse_by_config(config.get_text_config())
    if is_spread and processes > 1:
        raise ConfigurationError(
            f"one model cannot be spread over all devices by each of {processes} processes; start one, or leave "
            "--spread out"
        )
    is_stored_quantized = getattr(config, "quantization_config", None) is not None
    if joint is not None and is_stored_quantized:
        raise ConfigurationError(
            f"the weights of {model!r} are quantised, and an adapter cannot be merged into them; train on the base as "
            "it was before, with --quantize if it is too large"
        )
    if joint is not None and quantize != "none" and (joint.merge or joint.adapter_rank is None):
        raise ConfigurationError(
            f"weights quantised as {quantize} cannot be changed and written; leave --quantize out, or train an adapter "
            "that is kept beside the heads"
        )
    _refuse_to_overwrite(model, joint is not None and (joint.merge or joint.adapter_rank is None), out)


def _refuse_to_overwrite(model: str, is_whole_model: bool, out: Path) -> None:
    """The heads' config.json would take the place of a model's, or a merged model that of its own base."""
    source = Path(model_location(model))
    if out.is_dir() and source.is_dir() and out.samefile(source):
        raise ConfigurationError(f"{str(out)!r} holds the base model, which would be overwritten; name another folder")
    if not is_whole_model and _is_model(out / "config.json"):
        raise ConfigurationError(
            f"{str(out)!r} holds a model, whose config.json the heads' would overwrite; name another folder, such as "
            f"{str(out / 'heads')!r}, where the model's own are looked for"
        )


def _is_model(path: Path) -> bool:
    try:
        config: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "model_type" in config


def unmeasured(quantize: str, is_spread: bool, has_adapter: bool) -> str | None:
    """Why heads cannot be measured through the engine as they were trained; None where they can."""
    if is_spread:
        return "the engine runs on one device, the base was spread over several"
    if has_adapter and quantize != "none" and OPTIONS[quantize].package != "torchao":
        return f"an adapter cannot be merged into weights quantised as {quantize}"
    return None

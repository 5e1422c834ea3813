"""Find a base model, refuse what tree decoding cannot drive, and load the rest onto a device."""

import logging
import re
from pathlib import Path
from typing import Any

import safetensors
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from medusa_core.adapters import merge_adapter
from medusa_core.backbone import ATTENTION, TransformersBackbone, register_attention
from medusa_core.config import split_revision
from medusa_core.errors import CheckpointError, ConfigurationError, ModelNotFound, UnsupportedModel
from medusa_core.quantization import OPTIONS, judge, judge_model, quantization_arguments, quantize_in_place
from medusa_core.reasons import in_one_line

__all__ = [
    "choose_device",
    "choose_dtype",
    "default_context",
    "fix_longrope",
    "load_backbone",
    "read_config",
    "refuse_by_config",
    "rope_settings",
]

# Cache rows nobody asked for are memory nobody gets back: long-context models claim positions for 100k tokens and more.
_MAX_DEFAULT_CONTEXT = 8192
# Draft heads that stand among a base model's own tensors (Medusa-2 checkpoints).
_HEAD_KEY = re.compile(r"(?:module\.|base_model\.model\.)*medusa_heads?\.")

_log = logging.getLogger(__name__)


def load_backbone(
    model: str,
    device: torch.device,
    dtype: torch.dtype | None,
    max_context: int,
    quantize: str = "none",
    adapter: Path | None = None,
) -> TransformersBackbone:
    """Load a base model from a folder or a hub id.

    dtype:       None is the checkpoint's own, or the one that the quantiser's kernels know.
    max_context: longest sequence that will be computed; fixes the factors of length-dependent rope.
    quantize:    how to quantise it, a name of quantization.OPTIONS, or none; one that is quantised already stays so.
    adapter:     folder of a LoRA adapter to merge into its weights; done before they are quantised.

    Raises ModelNotFound, UnsupportedModel, CheckpointError, or ConfigurationError when max_context exceeds the model's
    positions, or when the device or the installed packages cannot run the weights.
    """
    register_attention()
    config = read_config(model)
    text_config = config.get_text_config()
    refuse_by_config(text_config)
    if max_context > text_config.max_position_embeddings:
        raise ConfigurationError(
            f"max_context is {max_context}, {model!r} has {text_config.max_position_embeddings} positions; lower it"
        )
    stored = getattr(config, "quantization_config", None)
    _refuse_combination(model, stored, quantize, adapter)
    fix_longrope(text_config, max_context)
    arguments = quantization_arguments(quantize, device, dtype)
    if stored is not None:
        arguments["device_map"] = {"": str(device)}
    if adapter is not None:
        # the adapter is merged into the weights as they are stored; quantising follows
        arguments = {"dtype": arguments["dtype"]}
    loaded = _load(model, config, arguments)
    if adapter is not None:
        loaded = merge_adapter(loaded, adapter)
        if quantize != "none":
            quantize_in_place(loaded, quantize, device, dtype)
    # where the loader was told the device, it is there already, and some quantisers do not let it be moved
    placed = loaded if "device_map" in arguments else loaded.to(device)
    try:
        return TransformersBackbone(placed)
    finally:
        # also where the backbone refuses: when weights are the reason, this names them
        judge_model(placed)


def _refuse_combination(model: str, stored: Any, quantize: str, adapter: Path | None) -> None:
    """Raise ConfigurationError for what cannot be done together.

    stored: the quantisation a checkpoint's own configuration tells of; None when its weights are not quantised.
    """
    if adapter is not None and quantize in OPTIONS and OPTIONS[quantize].package != "torchao":
        raise ConfigurationError(
            f"weights that an adapter was merged into cannot be quantised as {quantize}; use --quantize int8, or serve "
            "the base without its adapter: --no-adapter"
        )
    if stored is None:
        return
    label = judge(stored if isinstance(stored, dict) else stored.to_dict()).label
    if quantize != "none":
        raise ConfigurationError(f"the weights of {model!r} are quantised already ({label}); leave --quantize out")
    if adapter is not None:
        raise ConfigurationError(
            f"an adapter cannot be merged into the weights of {model!r}, which are quantised already ({label}); give "
            "the base as it was before, with --quantize to quantise it after merging, or --no-adapter"
        )


class _ReportKept(logging.Filter):
    """Keeps transformers' table of keys out of the log: what matters of it is said in one line, or by an error."""

    text = ""

    def filter(self, record: logging.LogRecord) -> bool:
        if "LOAD REPORT" not in record.getMessage():
            return True
        self.text = record.getMessage()
        return False


def _load(model: str, config: Any, arguments: dict[str, Any]) -> Any:
    """The transformers model; every way in which loading can fail is told as what the operator can do about it."""
    disable_progress_bar()  # type: ignore[no-untyped-call]  # whoever asked for the load shows one of their own
    report, transformers_log = _ReportKept(), logging.getLogger("transformers.modeling_utils")
    transformers_log.addFilter(report)
    from_pretrained: Any = AutoModelForCausalLM.from_pretrained
    name, revision = split_revision(model)
    try:
        loaded, found = from_pretrained(
            name,
            revision=revision,
            config=config,
            attn_implementation=ATTENTION,
            trust_remote_code=False,
            output_loading_info=True,
            **arguments,
        )
    except KeyError as error:  # old attention classes look our name up in a table of their own
        raise UnsupportedModel(config.get_text_config().model_type, f"it has no attention named {error}") from error
    except ImportError as error:
        reason = in_one_line(error)
        raise ConfigurationError(f"the weights of {model!r} need a package that is not installed: {reason}") from error
    except (OSError, ValueError) as error:
        raise ModelNotFound(f"the weights of {model!r} cannot be loaded: {in_one_line(error)}") from error
    except safetensors.SafetensorError as error:
        raise CheckpointError(
            f"the weights of {model!r} are damaged: {error}; copy them again, the last copy may have been cut short"
        ) from error
    except torch.OutOfMemoryError:
        raise  # nothing is wrong with the weights
    except RuntimeError as error:
        reason = " ".join(f"{error} {report.text}".split())
        raise CheckpointError(f"the weights of {model!r} cannot be loaded: {reason[:600]}") from error
    finally:
        transformers_log.removeFilter(report)
    if found["missing_keys"]:
        first = min(found["missing_keys"])
        raise CheckpointError(
            f"the weights of {model!r} lack {len(found['missing_keys'])} tensors, {first!r} among them; they are "
            "incomplete, or not this architecture's"
        )
    ignored = sorted(key for key in found["unexpected_keys"] if _HEAD_KEY.match(key) is None)
    if ignored:
        _log.warning("%s holds %d tensors its architecture does not use, such as %s", model, len(ignored), ignored[0])
    return loaded


def read_config(model: str) -> Any:
    """The checkpoint's transformers configuration; raises ModelNotFound when there is none."""
    name, revision = split_revision(model)
    try:
        return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = in_one_line(error)
        raise ModelNotFound(f"no model at {model!r}: {reason}; give a folder with config.json or a hub id") from error


def refuse_by_config(config: Any) -> None:
    """Raise UnsupportedModel for what a trial pass would not show."""
    for rope in rope_settings(config):
        if rope.get("rope_type") == "dynamic":
            raise UnsupportedModel(config.model_type, "its rope factors change with the length (rope type 'dynamic')")
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        raise UnsupportedModel(config.model_type, f"it has layers of kind {', '.join(sorted(kinds))}")


def fix_longrope(config: Any, max_context: int) -> None:
    """Choose one set of longrope factors for every length, in the configuration a model is about to be made from.

    Such a model (phi3) switches factors for *all* rows by its longest position, which rows in a cache cannot follow.
    Short factors serve a context within the original length, long ones any larger context.
    """
    for rope in rope_settings(config):
        if rope.get("rope_type") == "longrope":
            original = rope.get("original_max_position_embeddings") or config.original_max_position_embeddings
            chosen = "short_factor" if max_context <= original else "long_factor"
            rope["short_factor"] = rope["long_factor"] = rope[chosen]


def rope_settings(config: Any) -> list[dict[str, Any]]:
    """The rope parameters of a configuration, one dict, or one for each kind of layer."""
    rope = getattr(config, "rope_parameters", None)
    if not isinstance(rope, dict):
        return []
    return [rope] if "rope_type" in rope else [value for value in rope.values() if isinstance(value, dict)]


def default_context(config: Any) -> int:
    """Cache rows when nobody asks for a number: the model's positions, up to a limit.

    Raises UnsupportedModel for a family that has no last position, bloom and others with ALiBi.
    """
    positions: int | None = getattr(config, "max_position_embeddings", None)
    if positions is None:
        raise UnsupportedModel(config.model_type, "it counts no positions (max_position_embeddings)")
    return min(positions, _MAX_DEFAULT_CONTEXT)


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA when there is one; raises ConfigurationError for a device this machine or torch lacks."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigurationError(f"device {name!r} is unknown; use auto, cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigurationError(f"device {name!r} is not supported; use auto, cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError(
            f"device {name!r} was asked for, torch {torch.__version__} sees no CUDA device; use cpu"
        )
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype | None:
    """`auto` is float32 on a CPU and the checkpoint's own, None, on CUDA."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else None
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise ConfigurationError(f"dtype {name!r} is unknown; use auto, {', '.join(known)}")
    return known[name]

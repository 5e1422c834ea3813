"""A LoRA adapter of the base model, beside the draft heads it was trained with, merged into the base's weights.

Merged weights cost a step nothing. Without the adapter the base is what it was, and the heads still propose.
"""

import importlib.util
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
from huggingface_hub import snapshot_download
from torch import nn

from medusa_core.config import split_revision
from medusa_core.errors import CheckpointError, ConfigurationError, HeadsMismatch, ModelNotFound
from medusa_core.reasons import in_one_line

if TYPE_CHECKING:
    # its module loads every quantiser that is installed, which whoever only looks for an adapter need not wait for
    from transformers import PreTrainedModel

__all__ = ["ADAPTER_FOLDER", "find_adapter", "merge_adapter"]

ADAPTER_FOLDER = "adapter"


def find_adapter(heads: str | Path) -> Path | None:
    """The adapter beside the draft heads of a folder, a file or a hub id, as load_heads takes it; None without one.

    Raises ModelNotFound when a hub cannot be asked.
    """
    path = Path(heads)
    if not path.exists():
        name, revision = split_revision(str(heads))
        try:
            path = Path(snapshot_download(name, revision=revision, allow_patterns=[f"{ADAPTER_FOLDER}/*"]))
        except (OSError, ValueError) as error:
            reason = in_one_line(error)
            raise ModelNotFound(f"no heads at {str(heads)!r}: {reason}; give a folder, a file or a hub id") from error
    folder = (path if path.is_dir() else path.parent) / ADAPTER_FOLDER
    return folder if (folder / "adapter_config.json").is_file() else None


def merge_adapter(model: "PreTrainedModel", folder: Path) -> "PreTrainedModel":
    """The model with an adapter merged into its weights, which are changed in place.

    Raises ConfigurationError without peft, HeadsMismatch when the adapter belongs to another base, CheckpointError when
    it is damaged.
    """
    if importlib.util.find_spec("peft") is None:
        raise ConfigurationError(
            f"the adapter in {str(folder)!r} needs peft, which is not installed: pip install 'medusa-server[train]'; "
            "or serve the base without it: --no-adapter"
        )
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict

    loaded: Any = model
    with warnings.catch_warnings():
        # what peft warns of, tied embeddings and keys that do not fit, is dealt with here
        warnings.simplefilter("ignore")
        try:
            config: Any = PeftConfig.from_pretrained(str(folder))
            _untie(loaded, config)
            adapted: Any = PeftModel.from_pretrained(loaded, str(folder), config=config)
            _refuse_other_tensors(adapted, folder, get_peft_model_state_dict(adapted, save_embedding_layers=False))
            merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
        except (RuntimeError, AttributeError) as error:
            raise _misfit(folder, str(error)) from error
        except ValueError as error:
            if "arget modules" in str(error):
                raise _misfit(folder, str(error)) from error
            raise _damaged(folder, error) from error
        except (OSError, KeyError, TypeError, safetensors.SafetensorError) as error:
            raise _damaged(folder, error) from error
    return merged


def _untie(model: Any, config: Any) -> None:
    """Give the LM head a weight of its own where the adapter changes it and it is tied to the embeddings.

    Merging into the shared weight would change the embeddings as well, which the adapter was trained without.
    """
    outputs, inputs = model.get_output_embeddings(), model.get_input_embeddings()
    if outputs is None or outputs.weight is not inputs.weight:
        return
    names = [name for name, module in model.named_modules() if module is outputs or module is inputs]
    if any(_is_target(config.target_modules, name) for name in names):
        outputs.weight = nn.Parameter(outputs.weight.detach().clone(), requires_grad=False)
        model.config.tie_word_embeddings = False


def _is_target(targets: Any, name: str) -> bool:
    """Whether an adapter changes the module of that name; peft takes a pattern, or ends of names."""
    if targets is None or targets == "all-linear":  # which leaves out the LM head
        return False
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _refuse_other_tensors(adapted: Any, folder: Path, expected: dict[str, Any]) -> None:
    """Both what finds no place and what is missed are passed over by peft, and mean another base's adapter."""
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise CheckpointError(f"{str(folder)!r} holds no adapter_model.safetensors; save the adapter as safetensors")
    with safetensors.safe_open(file, "pt") as tensors:
        found = {key for key in tensors.keys() if "lora_" in key}
    wanted = {key for key in expected if "lora_" in key}
    if found != wanted:
        key = min(found ^ wanted)
        raise _misfit(folder, f"{key!r} is {'too many' if key in found else 'missing'}")


def _misfit(folder: Path, reason: str) -> HeadsMismatch:
    return HeadsMismatch(
        f"the adapter in {str(folder)!r} does not fit the base model: {' '.join(reason.split())[:300]}; it belongs to "
        "another base, which its adapter_config.json names; give that one, or --no-adapter"
    )


def _damaged(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"the adapter in {str(folder)!r} cannot be read: {in_one_line(error)}")

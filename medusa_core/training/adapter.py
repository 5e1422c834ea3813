"""LoRA on a base model, through peft: trained, switched off for a moment, written, merged.

The LM head and the embeddings stay as they are: heads share the LM head, and where the two are tied an adapter on one
would change the other.
"""

import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from medusa_core.adapters import ADAPTER_FOLDER
from medusa_core.checkpoints.writing import no_half_written
from medusa_core.errors import ConfigurationError
from medusa_core.training.base import FrozenBase
from medusa_core.training.plan import JointPlan

__all__ = ["Adapter"]


class Adapter:
    """Low-rank changes to every linear layer of a base but its LM head, laid into the model where it stands."""

    def __init__(self, base: FrozenBase, rank: int, plan: JointPlan, seed: int) -> None:
        """An adapter that changes nothing yet; of the base's parameters only it wants gradients."""
        peft = _peft()
        config = peft.LoraConfig(
            r=rank,
            lora_alpha=plan.adapter_alpha,
            lora_dropout=plan.adapter_dropout,
            target_modules="all-linear",  # which leaves out the LM head
            task_type="CAUSAL_LM",
        )
        torch.manual_seed(seed)
        self._name = base.name
        with warnings.catch_warnings():
            # peft asks transformers by a name that newer versions call deprecated
            warnings.simplefilter("ignore", FutureWarning)
            self._model: Any = peft.get_peft_model(base.model, config)

    @contextmanager
    def off(self) -> Iterator[None]:
        """The base as it was, for the length of the block."""
        was_training = self._model.training
        self._model.train(False)
        with self._model.disable_adapter():
            yield
        self._model.train(was_training)

    def save(self, folder: Path) -> None:
        """Write to the folder's `adapter`; it is whole or not there. Raises CheckpointError when the disk refuses."""
        partial, final = folder / f"{ADAPTER_FOLDER}.partial", folder / ADAPTER_FOLDER
        shutil.rmtree(partial, ignore_errors=True)
        self._model.peft_config["default"].base_model_name_or_path = self._name
        try:
            with no_half_written(final):
                self._model.save_pretrained(partial, save_embedding_layers=False)
                (partial / "README.md").unlink(missing_ok=True)  # an empty form of a model card
                shutil.rmtree(final, ignore_errors=True)
                os.replace(partial, final)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def merge(self) -> None:
        """Add the changes to the base's own weights for good."""
        self._model.merge_and_unload()


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ConfigurationError("training an adapter needs peft: pip install 'medusa-server[train]'") from error
    return peft

"""The base model as training sees it: whole sequences in, hidden states out, and what the LM head makes of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from medusa_core.config import model_location, split_revision
from medusa_core.errors import CheckpointError, ConfigurationError, ModelNotFound
from medusa_core.loading import default_context, fix_longrope, read_config
from medusa_core.quantization import dense_weight, quantization_arguments
from medusa_core.reasons import in_one_line
from medusa_core.training.packing import Batch
from medusa_core.training.tokenizer import load_data_tokenizer

__all__ = ["FrozenBase"]

# Differences between a packed and a lone example that rounding explains, in units of the largest hidden value.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class FrozenBase:
    """A base model, frozen as loaded.

    name:  as the user gave it; recorded with the heads.
    packs: whether it tells examples in one row apart by their positions, as a trial pass found out.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    packs: bool

    @classmethod
    def load(
        cls,
        name: str,
        device: torch.device,
        quantize: str = "none",
        is_spread: bool = False,
        chat_template: Path | None = None,
    ) -> Self:
        """Load model and tokenizer; float32 on a CPU, the checkpoint's own dtype on CUDA.

        quantize:      how its weights are stored, see `quantization.OPTIONS`.
        is_spread:     whether it is laid over all devices there are, for a model too large for one.
        chat_template: a file with the template for a model that has none, or another one.

        Raises ModelNotFound when model or tokenizer cannot be loaded, CheckpointError when weights are missing,
        ConfigurationError for what is not installed or does not fit the devices.
        """
        location = model_location(name)
        arguments = quantization_arguments(quantize, device, torch.float32 if device.type == "cpu" else None)
        if is_spread:
            arguments["device_map"] = "auto"
        config = read_config(location)
        fix_longrope(config.get_text_config(), default_context(config.get_text_config()))
        from_pretrained: Any = AutoModelForCausalLM.from_pretrained
        source, revision = split_revision(location)
        try:
            model, found = from_pretrained(
                source,
                revision=revision,
                config=config,
                trust_remote_code=False,
                output_loading_info=True,
                **arguments,
            )
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            reason = in_one_line(error)
            raise ModelNotFound(f"cannot load the model {name!r}: {reason}; give a folder or a hub id") from error
        if found["missing_keys"]:  # they would be random numbers
            raise CheckpointError(
                f"the weights of {name!r} lack {len(found['missing_keys'])} tensors, {min(found['missing_keys'])!r} "
                "among them; they are incomplete, or not this architecture's"
            )
        placed = getattr(model, "hf_device_map", None)
        if placed is None:
            model.to(device)
        elif device.type != "cpu" and {"cpu", "disk"} & {str(place) for place in placed.values()}:
            raise ConfigurationError(
                f"the GPUs together are too small for {name!r}; quantise it with --quantize, or use more of them"
            )
        tokenizer = load_data_tokenizer(name, chat_template)
        model.requires_grad_(False)
        return cls.of(name, model, tokenizer)

    @classmethod
    def of(cls, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Self:
        """Wrap a loaded model."""
        model.train(False)
        return cls(name, model, tokenizer, _tells_packed_examples_apart(model))

    @property
    def device(self) -> torch.device:
        """Where tokens go in and hidden states and logits come out; with several devices, that of the embeddings."""
        model: Any = self.model
        device: torch.device = model.get_input_embeddings().weight.device
        return device

    @property
    def max_positions(self) -> int:
        """Longest example the model can read."""
        config: Any = self.model.config.get_text_config()
        positions: int = config.max_position_embeddings
        return positions

    @property
    def vocab_size(self) -> int:
        """V, rows of the LM head."""
        model: Any = self.model
        rows: int = model.get_output_embeddings().weight.shape[0]
        return rows

    @property
    def lm_head(self) -> Tensor:
        """[V, H] as loaded, where hidden states are."""
        model: Any = self.model
        weight: Tensor = dense_weight(model.get_output_embeddings()).detach()
        return weight.to(self.device)

    def hidden(self, batch: Batch) -> Tensor:
        """Last hidden states after the final norm, [B, T, H], of examples that do not see each other."""
        return _hidden(self.model, batch.tokens, batch.positions).to(self.device)

    def logits(self, hidden: Tensor) -> Tensor:
        """What the model says behind hidden states [..., H]: [..., V] float32, scaled and capped as its family does."""
        model: Any = self.model
        logits: Tensor = model.get_output_embeddings()(hidden).to(hidden.device).float()
        config: Any = model.config.get_text_config()
        if getattr(config, "logit_scale", None) is not None:  # cohere
            logits = logits * config.logit_scale
        if getattr(config, "logits_scaling", None) is not None:  # granite
            logits = logits / config.logits_scaling
        cap = getattr(config, "final_logit_softcapping", None)  # gemma
        return logits if cap is None else torch.tanh(logits / cap) * cap


def _hidden(model: Any, tokens: Tensor, positions: Tensor) -> Tensor:
    states: Tensor = model.base_model(input_ids=tokens, position_ids=positions, use_cache=False).last_hidden_state
    return states


@torch.no_grad()
def _tells_packed_examples_apart(model: Any) -> bool:
    """Whether two examples in one row come out as each of them does alone; asked of two rows, as kernels may differ."""
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3]] * 2, device=model.device)
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6, 7], [8, 9, 1, 3, 5, 7, 2]], device=model.device)
    tokens = tokens % model.get_input_embeddings().weight.shape[0]
    packed = _hidden(model, tokens, positions).float()
    alone = torch.cat([_hidden(model, part, torch.arange(part.shape[1], device=model.device)[None]).float()
                       for part in tokens.split([3, 4], dim=1)], dim=1)  # fmt: skip
    tolerance = _TOLERANCE.get(model.dtype, _TOLERANCE[torch.bfloat16]) * float(alone.abs().max())
    return bool((packed - alone).abs().max() <= tolerance)

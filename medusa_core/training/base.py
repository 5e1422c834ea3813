"""The frozen base model as training sees it: whole sequences in, last hidden states out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from medusa_core.config import model_location
from medusa_core.errors import ModelNotFound
from medusa_core.training.encoding import Example

__all__ = ["FrozenBase", "collate"]


@dataclass(frozen=True)
class FrozenBase:
    """A base model that is only read.

    name: as the user gave it; recorded with the heads.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def load(cls, name: str, device: torch.device) -> Self:
        """Load model and tokenizer; float32 on a CPU, the checkpoint's own dtype on CUDA."""
        location = model_location(name)
        dtype: Any = torch.float32 if device.type == "cpu" else "auto"
        try:
            model = AutoModelForCausalLM.from_pretrained(location, dtype=dtype, trust_remote_code=False)
            tokenizer = AutoTokenizer.from_pretrained(location, trust_remote_code=False)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ModelNotFound(f"cannot load the model {name!r}: {reason}; give a folder or a hub id") from error
        model.requires_grad_(False).to(device)  # type: ignore[arg-type]
        model.train(False)
        return cls(name, model, tokenizer)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def lm_head(self) -> Tensor:
        """[V, H] in float32."""
        model: Any = self.model
        weight: Tensor = model.get_output_embeddings().weight.detach().float()
        return weight

    @torch.no_grad()
    def hidden(self, tokens: Tensor) -> Tensor:
        """Last hidden states after the final norm.

        tokens: [B, T] int64, padded on the right. Padding needs no mask: attention is causal, and nobody reads it.

        Returns [B, T, H].
        """
        base: Any = self.model.base_model
        states: Tensor = base(input_ids=tokens, use_cache=False).last_hidden_state
        return states


def collate(examples: Sequence[Example], device: torch.device) -> tuple[Tensor, Tensor]:
    """Pad on the right; what is padding follows from lengths, never from ids.

    Returns tokens [B, T] int64 and judged [B, T] bool.
    """
    length = max(len(example.tokens) for example in examples)
    tokens = torch.zeros(len(examples), length, dtype=torch.long)
    judged = torch.zeros(len(examples), length, dtype=torch.bool)
    for row, example in enumerate(examples):
        tokens[row, : len(example.tokens)] = torch.tensor(example.tokens)
        judged[row, : len(example.tokens)] = torch.tensor(example.judged)
    return tokens.to(device), judged.to(device)

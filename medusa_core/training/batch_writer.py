"""Answers from a plain batched generation: many prompts, one token each per forward pass."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from medusa_core.errors import ConfigurationError
from medusa_core.sampling import Filters, SamplingParams, gumbel_noise, noise_key, process_logits
from medusa_core.training.writer import Question

__all__ = ["BatchWriter"]


class BatchWriter:
    """Writes with a transformers model, all questions of a batch at once, padded on the left.

    Noise is that of the engine's sampler, keyed by each question's own seed and position, so a sampled answer does not
    depend on who writes it or on what else is in the batch, up to rounding.
    """

    name = "batch"

    def __init__(self, model: PreTrainedModel, ends: frozenset[int], sampling: SamplingParams) -> None:
        """`ends` go beside the end tokens that the model itself names."""
        generation: Any = model.generation_config
        known = generation.eos_token_id if generation is not None else None
        self.ends = ends | frozenset([] if known is None else [known] if isinstance(known, int) else known)
        self._model: Any = model
        self._filters = Filters.of_request(sampling, self._model.device)

    @torch.inference_mode()
    def write(self, questions: Sequence[Question]) -> list[list[int]]:
        """See Writer; raises ConfigurationError for a batch that does not fit into the device's memory."""
        try:
            return self._write(questions)
        except torch.OutOfMemoryError as error:
            longest = max(len(question.tokens) + question.max_tokens for question in questions)
            raise ConfigurationError(
                f"{len(questions)} answers at once, of up to {longest} tokens with their prompts, do not fit into the "
                "memory of the device; lower the batch size and go on with the same command"
            ) from error

    def _write(self, questions: Sequence[Question]) -> list[list[int]]:
        """Finished rows leave the batch once they are half of it."""
        device = self._model.device
        tokens, mask = (part.to(device) for part in _padded(questions))  # [B, T]
        keys = torch.tensor([noise_key(question.seed, 0) for question in questions], device=device)  # [B]
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        cache = DynamicCache(config=self._model.config)
        written: list[list[int]] = [[] for _ in questions]
        rows = list(range(len(questions)))  # which question each row of the tensors belongs to
        while True:
            output = self._model(
                input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1
            )
            positions = positions[:, -1:] + 1
            drawn = self._draw(output.logits[:, -1], keys, positions[:, 0])
            is_open = []
            for row, token in zip(rows, drawn.tolist(), strict=True):
                if not self._is_done(written[row], questions[row]):
                    written[row].append(token)
                is_open.append(not self._is_done(written[row], questions[row]))
            if not any(is_open):
                return written
            tokens = drawn[:, None]
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            if 2 * sum(is_open) <= len(rows):
                kept = torch.tensor([index for index, still in enumerate(is_open) if still], device=device)
                cache.batch_select_indices(kept)
                tokens, positions, mask, keys = tokens[kept], positions[kept], mask[kept], keys[kept]
                rows = [rows[index] for index, still in enumerate(is_open) if still]

    def _is_done(self, answer: list[int], question: Question) -> bool:
        return len(answer) >= question.max_tokens or (bool(answer) and answer[-1] in self.ends)

    def _draw(self, logits: Tensor, keys: Tensor, positions: Tensor) -> Tensor:
        """Next tokens [B] from logits [B, V], noise keys [B] and the positions [B] that the tokens take."""
        processed = process_logits(logits, self._filters)
        if self._filters.temperature is not None:
            processed = processed + gumbel_noise(keys, positions, logits.shape[-1])
        return processed.argmax(dim=-1)


def _padded(questions: Sequence[Question]) -> tuple[Tensor, Tensor]:
    """Tokens and mask, both [B, T]; what is padding follows from lengths, never from ids."""
    length = max(len(question.tokens) for question in questions)
    tokens = torch.zeros(len(questions), length, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, question in enumerate(questions):
        tokens[row, length - len(question.tokens) :] = torch.tensor(question.tokens)
        mask[row, length - len(question.tokens) :] = 1
    return tokens, mask

"""`medusa distill`: the model writes the answers that its own heads are trained on.

Every prompt of the input gets one line of the output, in batches of similar length. The output names the prompt's line
in `source`, which is what makes a killed run resumable: whole lines count, a torn last line is cut off and redone.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from medusa_core.errors import ConfigurationError
from medusa_core.loading import choose_device
from medusa_core.training.base import FrozenBase
from medusa_core.training.encoding import template_ids
from medusa_core.training.progress import progress_bar
from medusa_core.training.records import Record, read_records

__all__ = ["DistillPlan", "distill"]


@dataclass(frozen=True)
class DistillPlan:
    """How the answers are made.

    max_tokens:  longest answer; one that reaches it is marked `"finish_reason": "length"`.
    temperature: 0 is greedy.
    batch_size:  prompts answered at once.
    """

    max_tokens: int = 512
    temperature: float = 0.0
    batch_size: int = 32
    seed: int = 0


@dataclass(frozen=True)
class _Prompt:
    """A record up to where the model speaks, as token ids."""

    record: Record
    tokens: tuple[int, ...]


def distill(model: str, prompts: Path, out: Path, plan: DistillPlan, device: str) -> int:
    """Answer every prompt of a JSON-lines file and append the answers to `out`; returns how many are there now.

    A conversation is answered after its last turn that is not the assistant's; a text is continued.
    """
    base = FrozenBase.load(model, choose_device(device))
    wanted = [_prompt(record, base) for record in read_records(prompts)]
    done = _sources_already_answered(out)
    missing = sorted((p for p in wanted if p.record.line not in done), key=lambda p: (len(p.tokens), p.record.line))
    limit = int(getattr(base.model.config, "max_position_embeddings", 2**31))
    with progress_bar("distilling", len(wanted), len(wanted) - len(missing), "answer") as bar, out.open("ab") as file:
        for start in range(0, len(missing), plan.batch_size):
            batch = missing[start : start + plan.batch_size]
            lines = [json.dumps(answer, ensure_ascii=False) + "\n" for answer in _answers(base, batch, plan, limit)]
            file.write("".join(lines).encode())
            file.flush()
            os.fsync(file.fileno())
            bar.update(len(batch))
    return len(wanted)


def _prompt(record: Record, base: FrozenBase) -> _Prompt:
    if record.text is not None:
        return _Prompt(record, tuple(base.tokenizer(record.text, verbose=False)["input_ids"]))
    messages = [{"role": message.role, "content": message.content} for message in record.messages]
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages:
        raise ConfigurationError(f"line {record.line}: there is nothing to answer, only the assistant speaks")
    if base.tokenizer.chat_template is None:
        raise ConfigurationError(f"line {record.line}: the model has no chat template, so only 'text' can be continued")
    return _Prompt(record, tuple(template_ids(base.tokenizer, messages, add_generation_prompt=True)))


def _sources_already_answered(out: Path) -> set[int]:
    """Lines of the prompt file that `out` answers; cuts a torn last line off."""
    if not out.exists():
        return set()
    content = out.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(out, len(whole))
    found: set[int] = set()
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            found.add(int(json.loads(line)["source"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(
                f"{out}, line {number}: not written by distill ({error!r}); name another output file"
            ) from error
    return found


def _answers(base: FrozenBase, batch: Sequence[_Prompt], plan: DistillPlan, limit: int) -> Iterator[dict[str, Any]]:
    """One output record per prompt."""
    room = limit - max(len(prompt.tokens) for prompt in batch)
    if room < 1:
        line = batch[-1].record.line
        length = len(batch[-1].tokens)
        raise ConfigurationError(f"the prompt in line {line} has {length} tokens, the model takes {limit}")
    ends = _end_tokens(base)
    for prompt, written in zip(batch, _generate(base, batch, plan, min(plan.max_tokens, room), ends), strict=True):
        stop = next((index for index, token in enumerate(written) if token in ends), None)
        text = base.tokenizer.decode(written[:stop], skip_special_tokens=True)
        yield _answered(prompt.record, str(text), "length" if stop is None else "stop")


def _answered(record: Record, text: str, finish_reason: str) -> dict[str, Any]:
    facts = {"source": record.line, "finish_reason": finish_reason}
    if record.text is not None:
        return {"text": record.text + text, **facts}
    messages = [{"role": message.role, "content": message.content} for message in record.messages]
    while messages[-1]["role"] == "assistant":
        messages.pop()
    return {"messages": [*messages, {"role": "assistant", "content": text}], **facts}


@torch.inference_mode()
def _generate(
    base: FrozenBase, batch: Sequence[_Prompt], plan: DistillPlan, max_tokens: int, ends: Sequence[int]
) -> list[list[int]]:
    """New tokens for each prompt, ends included. Finished rows leave the batch once they are half of it."""
    length = max(len(prompt.tokens) for prompt in batch)
    tokens = torch.zeros(len(batch), length, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, prompt in enumerate(batch):
        tokens[row, length - len(prompt.tokens) :] = torch.tensor(prompt.tokens)
        mask[row, length - len(prompt.tokens) :] = 1
    tokens, mask = tokens.to(base.device), mask.to(base.device)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    noise = torch.Generator(base.device).manual_seed(plan.seed + batch[0].record.line)
    stops = torch.tensor(ends, device=base.device)
    model: Any = base.model
    cache = DynamicCache(config=base.model.config)
    written: list[list[int]] = [[] for _ in batch]
    rows = torch.arange(len(batch))  # which prompt each row of the tensors belongs to
    is_open = torch.ones(len(batch), dtype=torch.bool)
    for _ in range(max_tokens):
        output = model(
            input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1
        )
        drawn = _draw(output.logits[:, -1], plan.temperature, noise)  # [B]
        for row in is_open.nonzero()[:, 0].tolist():
            written[int(rows[row])].append(int(drawn[row]))
        is_open &= ~torch.isin(drawn, stops).cpu()
        if not is_open.any():
            break
        tokens, positions = drawn[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        if is_open.sum() <= len(is_open) // 2:
            kept = is_open.nonzero()[:, 0]
            cache.batch_select_indices(kept.to(base.device))
            tokens, positions, mask = tokens[kept], positions[kept], mask[kept]
            rows, is_open = rows[kept], is_open[kept]
    return written


def _draw(logits: Tensor, temperature: float, noise: torch.Generator) -> Tensor:
    """Next tokens [B] int64 from logits [B, V]."""
    if temperature == 0.0:
        return logits.argmax(dim=-1)
    return (logits.float() / temperature).softmax(dim=-1).multinomial(1, generator=noise)[:, 0]


def _end_tokens(base: FrozenBase) -> list[int]:
    """Token ids that end an answer, from the generation config and the tokenizer."""
    generation: Any = base.model.generation_config
    known = generation.eos_token_id if generation is not None else None
    ends = [] if known is None else [known] if isinstance(known, int) else list(known)
    own = base.tokenizer.eos_token_id
    return ends if own is None or own in ends else [*ends, own]

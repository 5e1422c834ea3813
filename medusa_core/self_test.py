"""Do the heads that were loaded guess this model's text? Heads of another model load too, and are merely never right.

A short greedy run of the model is judged head by head, at the head's own offset and at those beside it: the pattern
tells a wrong base from a shifted offset or a wrongly mapped vocabulary.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medusa_core.backbone import Backbone
from medusa_core.errors import MedusaError
from medusa_core.heads import DraftHeads
from medusa_core.text import TextCodec
from medusa_core.tree import CandidateTree

__all__ = ["HeadCheck", "check_heads", "diagnose", "judge_run", "run_length", "trial_prompts"]

_log = logging.getLogger(__name__)

QUESTIONS = ("Explain what a cache is and why programs use one.", "Write a short story about a lighthouse keeper.")
BEGINNINGS = ("The history of the city began when", "import os\n\n\ndef")
# Tokens of a run in all, and how many of them a head must be judged on before anything is said.
WANTED, LEAST = 64, 16
ROWS_AT_ONCE = 16
# Seconds the run may take as plain decoding.
PATIENCE_S = 4.0
TOP = 5

# Public first heads are right on half of all tokens or more, those of a small model on a third, and less on odd text.
NEAR_ZERO, LOW = 0.05, 0.15
# On so few tokens smaller differences mean nothing.
CLEAR = 0.2

MISREAD = "the layout is misread, transposed or wrongly mapped to the vocabulary, or a token map was ignored"
UNTRAINED = (
    "the heads guess the token before theirs: they were never trained and say what the LM head says, or their offset "
    "is shifted by one"
)
LATE = "the heads guess the token behind theirs: their offset is shifted by one"
OTHER_BASE = (
    "the heads belong to another base model or chat template, were trained too little or on states before the final "
    "norm, or lack their biases"
)
PERMUTED = "later heads are right more often than the first: the heads are permuted"
TIED = "all heads guess the same: they are tied, or were never trained"


@dataclass(frozen=True)
class HeadCheck:
    """How often each head was right on greedy text of the model.

    top1, top5: [K][K + 2], share of positions t whose token t + o was the head's likeliest, or among its five; o counts
                from 1, so that head k's own offset, k + 1, has index k.
    samples:    positions that the first head was judged on.
    is_tied:    whether all heads always guessed the same.
    """

    top1: tuple[tuple[float, ...], ...]
    top5: tuple[tuple[float, ...], ...]
    samples: int
    is_tied: bool

    @property
    def own(self) -> tuple[float, ...]:
        """Top-1 accuracy of each head at its own offset."""
        return tuple(row[head] for head, row in enumerate(self.top1, start=1))


@torch.inference_mode()
def judge_run(backbone: Backbone, heads: DraftHeads, runs: Iterable[tuple[Sequence[int], int]]) -> HeadCheck:
    """Judge heads on sequences of token ids, each with the index of the first token that the model itself wrote.

    One pass of the model computes all hidden states of a sequence. Needs no cache rows of anybody else.
    """
    num_heads = heads.config.num_heads
    counts = torch.zeros(3, num_heads, num_heads + 2, dtype=torch.long, device=backbone.device)
    differing = torch.zeros((), dtype=torch.long, device=backbone.device)
    for tokens, written in runs:
        ids = torch.tensor(tokens, device=backbone.device)
        guesses = _guesses(backbone, heads, ids, max(written - 1, 0))  # [K, R, top]
        differing += (guesses[:, :, 0] != guesses[0, :, 0]).sum()
        counts += _hits(guesses, ids, max(written - 1, 0))
    right, among, judged = counts.tolist()
    return HeadCheck(_shares(right, judged), _shares(among, judged), judged[0][1], num_heads > 1 and not int(differing))


def _guesses(backbone: Backbone, heads: DraftHeads, ids: Tensor, start: int) -> Tensor:
    """The likeliest tokens of each head behind positions from `start` on, [K, R, top]."""
    cache = backbone.new_cache(len(ids))
    nothing = torch.zeros((), dtype=torch.long, device=ids.device)
    # a chain behind an empty cache: each token attends to those before it
    last = torch.tensor([len(ids) - 1], device=ids.device)
    hidden = backbone.forward(CandidateTree.chain(ids), nothing, cache, len(ids), last).hidden[start:]
    top = min(TOP, heads.config.vocab_size)
    # few rows at a time: K rows of logits for each may be all the memory there is left
    chunks = [hidden[row : row + ROWS_AT_ONCE] for row in range(0, len(hidden), ROWS_AT_ONCE)]
    parts = [heads(rows).topk(top, dim=-1).indices for rows in chunks]
    return heads.as_tokens(torch.cat(parts, dim=1)) if parts else ids.new_zeros(heads.config.num_heads, 0, top)


def _hits(guesses: Tensor, ids: Tensor, start: int) -> Tensor:
    """Positions whose token was the likeliest guess, was among the guesses, and were judged: [3, K, K + 2]."""
    num_heads, rows, _ = guesses.shape
    columns = []
    for offset in range(1, num_heads + 3):
        wanted = ids[start + offset :]
        found = guesses[:, : max(rows - offset, 0)] == wanted[:, None]  # [K, R - offset, top]
        judged = found.new_full((num_heads,), len(wanted), dtype=torch.long)
        columns.append(torch.stack([found[:, :, 0].sum(1), found.any(2).sum(1), judged]))
    return torch.stack(columns, dim=2)


def _shares(hits: list[list[int]], judged: list[list[int]]) -> tuple[tuple[float, ...], ...]:
    return tuple(
        tuple(hit / max(count, 1) for hit, count in zip(row, counts, strict=True))
        for row, counts in zip(hits, judged, strict=True)
    )


def diagnose(check: HeadCheck) -> tuple[str, ...]:
    """Probable causes of what a check shows; empty for heads that look well, or were judged on too little."""
    if check.samples < LEAST:
        return ()
    own, first = check.own, check.top1[0]
    if max(max(row) for row in check.top5) < 2 * NEAR_ZERO:
        return (MISREAD,)
    causes = []
    if own[0] < LOW:
        if first[0] > own[0] + CLEAR:
            causes.append(UNTRAINED)
        elif first[2] > own[0] + CLEAR:
            causes.append(LATE)
        else:
            causes.append(OTHER_BASE)
    if max(own) > own[0] + CLEAR:
        causes.append(PERMUTED)
    # where text repeats itself all heads may rightly say the same
    if check.is_tied and own[0] < 1.0 - CLEAR:
        causes.append(TIED)
    return tuple(causes)


def check_heads(
    backbone: Backbone,
    heads: DraftHeads,
    source: str,
    prompts: Iterable[tuple[int, ...]],
    write: Callable[[tuple[int, ...]], Sequence[int]],
) -> HeadCheck | None:
    """Judge heads on what `write` continues prompts with, and warn where they look wrong; None on too little text.

    source: where the heads are from, for the warning.

    A trial that fails is said in the log and stops nobody: the heads may be needed all the same.
    """
    try:
        runs = list(_runs(prompts, write))
        if sum(len(tokens) - written for tokens, written in runs) < LEAST:
            return None
        check = judge_run(backbone, heads, runs)
    except (MedusaError, torch.OutOfMemoryError) as error:
        _log.warning("the draft heads in %s could not be tried out: %s", source, error)
        return None
    row = ", ".join(f"{share:.2f}" for share in check.own)
    causes = diagnose(check)
    if causes:
        _log.warning(
            "the draft heads in %s are right on a share of %s of %d greedy tokens, first head first; expect no "
            "speed-up from them. Probable cause: %s",
            source,
            row,
            check.samples,
            "; ".join(causes),
        )
    else:
        _log.info("draft heads are right on a share of %s of %d greedy tokens, first head first", row, check.samples)
    return check


def _runs(
    prompts: Iterable[tuple[int, ...]], write: Callable[[tuple[int, ...]], Sequence[int]]
) -> Iterator[tuple[Sequence[int], int]]:
    """As many continued prompts as it takes, each with the index of its first new token."""
    amount = 0
    for prompt in prompts:
        written = write(prompt)
        yield [*prompt, *written], len(prompt)
        amount += len(written)
        if amount >= WANTED:
            return


def run_length(plain_step_s: float) -> int:
    """Tokens of one run on a device on which a plain step takes so long."""
    return max(LEAST, min(WANTED, int(PATIENCE_S / plain_step_s))) if plain_step_s > 0.0 else WANTED


def trial_prompts(model: str, room: int) -> Iterator[tuple[int, ...]]:
    """Prompts of at most `room` tokens for a trial, as a chat where there is a template; none without tokenizer."""
    try:
        codec = TextCodec.load(model)
        if codec.has_chat_template:
            texts = [codec.encode_chat([{"role": "user", "content": question}]) for question in QUESTIONS]
        else:
            texts = [codec.encode(beginning) for beginning in BEGINNINGS]
    except MedusaError as error:
        _log.info("the draft heads are not tried out: %s", error)
        return
    yield from (tuple(ids) for ids in texts if 0 < len(ids) <= room)

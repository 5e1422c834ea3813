"""Prompts in passes of a few lengths, recorded once and replayed; what a piece leaves of a pass is filled up.

The slots that fill up are not used: they see nothing but themselves and nobody sees them, their rows lie behind the
sequence, where the next pass writes, and they are neither counted nor kept.
"""

from collections.abc import Sequence

import torch

from medusa_core.backbone import Backbone, Forward
from medusa_core.decoding import Prompts
from medusa_core.kv_cache import KVCache
from medusa_core.runners.capture import Launcher
from medusa_core.runners.recording import Recording
from medusa_core.tree import CandidateTree

__all__ = ["RecordedPrompts", "coarse_bucket", "prompt_lengths"]

_LENGTHS = (64, 256)
_SMALLEST_BUCKET = 256


def prompt_lengths(chunk: int) -> tuple[int, ...]:
    """The lengths of recorded passes where prompts are computed in chunks of so many tokens."""
    return (*(length for length in _LENGTHS if length < chunk), chunk)


def coarse_bucket(rows: int) -> int:
    """Visible rows in buckets that grow with them: few recordings for a long answer, a quarter read in vain at most."""
    multiple = max(_SMALLEST_BUCKET, 1 << max(0, rows.bit_length() - 3))
    return -(-rows // multiple) * multiple


class RecordedPrompts:
    """See Prompts. Each piece is a replayed pass of the next larger length, where its rows fit."""

    def __init__(
        self, backbone: Backbone, cache: KVCache, launcher: Launcher, lengths: Sequence[int], others: Prompts
    ) -> None:
        """`others` computes what no recorded length fits, and what is scored: that wants the logits of every token."""
        self._backbone, self._cache, self._launcher, self._others = backbone, cache, launcher, others
        self._lengths = tuple(sorted(lengths))
        device = backbone.device
        # what passes read: the tokens that are left of a longer piece before are of no matter
        self._tokens = torch.zeros(self._lengths[-1], dtype=torch.long, device=device)
        self._length, self._past = torch.ones((), dtype=torch.long, device=device), torch.zeros_like(self._tokens[0])
        self._recordings: dict[tuple[int, int], Recording[Forward]] = {}

    @torch.inference_mode()
    def compute(self, piece: Sequence[int], start: int, is_scored: bool) -> Forward:
        """See Prompts.compute; hidden [1, H] and logits [1, V], which the next piece overwrites."""
        fitting = (length for length in self._lengths if len(piece) <= length <= self._cache.rows - start)
        length = next(fitting, None)
        if is_scored or length is None:
            return self._others.compute(piece, start, is_scored)
        self._tokens[: len(piece)].copy_(torch.tensor(piece))
        self._length.fill_(len(piece))
        self._past.fill_(start)
        has_buckets = self._backbone.has_buckets
        visible_rows = min(self._cache.rows, coarse_bucket(start + length)) if has_buckets else self._cache.rows
        key = length, visible_rows
        if key not in self._recordings:
            name = f"a prompt of up to {length} tokens"
            self._recordings[key] = Recording(self._launcher, lambda: self._pass(length, visible_rows), name)
        return self._recordings[key].run()

    def _pass(self, length: int, visible_rows: int) -> Forward:
        tree = CandidateTree.padded_chain(self._tokens[:length], self._length)
        last = (self._length - 1)[None]
        found = self._backbone.forward(tree, self._past, self._cache, visible_rows, last)
        return Forward(found.hidden.index_select(0, last), found.logits)

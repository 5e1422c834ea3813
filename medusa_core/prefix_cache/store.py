"""Rows of earlier sequences, found again by their tokens and held within a budget of bytes.

A tree of blocks: each holds the keys and values of up to 64 tokens that follow those of its parent, so what several
sequences begin with stands here once, and a long sequence loses its end before it loses its beginning. A block without
a parent belongs to a salt, and nothing is shared between salts. Knows nothing of models; see KVCache for what a row is.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from medusa_core.backbone import Forward
from medusa_core.kv_cache import KVCache, common_prefix

__all__ = ["PrefixStore", "store_budget"]

_log = logging.getLogger(__name__)

# Many enough that a long sequence is copied in a few launches, few enough that giving one up costs little.
_BLOCK = 64
# Prompts that may be asked for again: answers of several conversations, each begun anew once or twice.
_ENDINGS = 8
_CPU_BUDGET = 256 << 20
# What the captured steps and longer prompts still need is taken from the rest.
_CUDA_SHARE = 0.1


def store_budget(mebibytes: int | None, device: torch.device) -> int:
    """Bytes that may be held; None is 256 MiB on a CPU and a tenth of what is free on a CUDA device."""
    if mebibytes is not None:
        return mebibytes << 20
    if device.type != "cuda":
        return _CPU_BUDGET
    free, _ = torch.cuda.mem_get_info(device)
    return int(free * _CUDA_SHARE)


@dataclass(eq=False)
class _Block:
    """Some tokens and their rows [2, L, 1, Hkv, T, D]; `among` are all that follow the same parent, this included."""

    tokens: tuple[int, ...]
    rows: Tensor
    among: "list[_Block]"
    children: "list[_Block]" = field(default_factory=list)


class PrefixStore:
    """Copies of rows, the least recently used given up first; beside them how the last prompts ended."""

    def __init__(self, budget: int) -> None:
        """Hold at most `budget` bytes; the ending of one prompt is held whatever it takes."""
        self.budget = budget
        self._first: dict[str | None, list[_Block]] = {}
        # Least recently used first, and no block before its children: whoever is given up has none left.
        self._by_use: dict[_Block, None] = {}
        self._block_bytes = 0
        self._endings: dict[tuple[str | None, tuple[int, ...]], Forward] = {}

    @property
    def num_bytes(self) -> int:
        """Bytes held now."""
        return self._block_bytes + self._ending_bytes()

    def save(self, salt: str | None, cache: KVCache) -> None:
        """Copy a cache's committed rows, as far as the budget allows; what stands here already is not copied again.

        A device without room for the copies gets back all that is held here.
        """
        tokens, among, path = tuple(cache.tokens), self._first.setdefault(salt, []), []
        for piece in (tokens[start : start + _BLOCK] for start in range(0, len(tokens), _BLOCK)):
            block = next((block for block in among if block.tokens[: len(piece)] == piece), None)
            if block is None:
                break
            path.append(block)
            among = block.children
        self._touch(path)
        try:
            self._add(tokens, among, path, cache)
        except torch.OutOfMemoryError:
            _log.warning("no memory is left to keep earlier conversations; lower prefix_cache or max_context")
            self.clear()
            path.clear()
        self._touch(path)
        self._first = {salt: blocks for salt, blocks in self._first.items() if blocks}

    def find(self, salt: str | None, tokens: Sequence[int]) -> list[Tensor]:
        """Rows of the longest beginning of `tokens` that stands here, in pieces [2, L, 1, Hkv, T, D], in order."""
        among, path, pieces, at = self._first.get(salt, []), [], [], 0
        while at < len(tokens):
            ahead = tuple(tokens[at : at + _BLOCK])
            shared, block = max(
                ((common_prefix(block.tokens, ahead), block) for block in among),
                key=lambda found: found[0],
                default=(0, None),
            )
            if block is None or shared == 0:
                break
            path.append(block)
            pieces.append(block.rows[..., :shared, :])
            at += shared
            # what follows a block follows all of it
            among = block.children if shared == len(block.tokens) else []
        self._touch(path)
        return pieces

    def remember(self, salt: str | None, prompt: tuple[int, ...], last: Forward) -> None:
        """Keep what a prompt's last token led to, hidden [1, H] and logits [1, V], copied from whatever holds them."""
        self._endings.pop((salt, prompt), None)
        self._endings[salt, prompt] = Forward(last.hidden.clone(), last.logits.clone())
        while len(self._endings) > 1 and (len(self._endings) > _ENDINGS or self._ending_bytes() > self.budget):
            del self._endings[next(iter(self._endings))]
        self._make_room(0, ())

    def recall(self, salt: str | None, prompt: tuple[int, ...]) -> Forward | None:
        """What this very prompt's last token led to, hidden [1, H] and logits [1, V]; None when nobody remembers."""
        last = self._endings.pop((salt, prompt), None)
        if last is not None:
            self._endings[salt, prompt] = last
        return last

    def clear(self) -> None:
        """Forget everything."""
        self._first.clear()
        self._by_use.clear()
        self._endings.clear()
        self._block_bytes = 0

    def _add(self, tokens: tuple[int, ...], among: list[_Block], path: list[_Block], cache: KVCache) -> None:
        """Lengthen a path to all of `tokens`, or until a block does not fit; `among` is where its next one goes."""
        for start in range(len(path) * _BLOCK, len(tokens), _BLOCK):
            piece = tokens[start : start + _BLOCK]
            for shorter in [block for block in among if piece[: len(block.tokens)] == block.tokens]:
                self._drop(shorter)
            if not self._make_room(cache.bytes_per_row * len(piece), path):
                return
            block = _Block(piece, cache.copy_rows(start, start + len(piece)), among)
            among.append(block)
            path.append(block)
            self._by_use[block] = None
            self._block_bytes += block.rows.nbytes
            among = block.children

    def _make_room(self, needed: int, spared: Sequence[_Block]) -> bool:
        """Give up blocks until so many bytes fit; False when that would take one of those to be spared."""
        while self.num_bytes + needed > self.budget:
            oldest = next(iter(self._by_use), None)
            if oldest is None or oldest in spared:
                return False
            self._drop(oldest)
        return True

    def _drop(self, block: _Block) -> None:
        del self._by_use[block]
        block.among.remove(block)
        self._block_bytes -= block.rows.nbytes

    def _touch(self, path: Sequence[_Block]) -> None:
        """Mark a path as used just now, its end a little less than its beginning."""
        for block in reversed(path):
            self._by_use.pop(block)
            self._by_use[block] = None

    def _ending_bytes(self) -> int:
        return sum(last.hidden.nbytes + last.logits.nbytes for last in self._endings.values())

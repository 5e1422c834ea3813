"""Token rows for pre-training: whole conversations packed together, and windows of the source text."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from medusa_core.demo.chat import ChatMaker
from medusa_core.demo.corpus import Document

__all__ = ["Mixture", "chat_ids", "labels_for", "pack", "shuffled_index", "source_ids"]

Ids = NDArray[np.uint16]
OPEN_ROWS = 32


def pack(documents: Iterable[list[int]], length: int, filler: int) -> Ids:
    """Rows of whole documents, each ended by `filler`, the rest of a row filled with it: [rows, length].

    A document longer than a row is cut.
    """
    rows: list[list[int]] = []
    closed = 0
    for document in documents:
        piece = [*document[: length - 1], filler]
        row = next((row for row in rows[closed:] if len(row) + len(piece) <= length), None)
        if row is None:
            row = []
            rows.append(row)
            closed = max(closed, len(rows) - OPEN_ROWS)
        row += piece
    return np.array([row + [filler] * (length - len(row)) for row in rows], dtype=np.uint16).reshape(-1, length)


def chat_ids(tokenizer: PreTrainedTokenizerFast, maker: ChatMaker, epochs: int) -> list[list[int]]:
    """Some epochs of conversations through the chat template, as token ids."""
    talks = [messages for _ in range(epochs) for messages in maker.epoch()]
    texts = [tokenizer.apply_chat_template(messages, tokenize=False) for messages in talks]
    ids: list[list[int]] = tokenizer(texts, verbose=False)["input_ids"]
    return ids


def source_ids(tokenizer: PreTrainedTokenizerFast, documents: Iterable[Document]) -> Ids:
    """All documents in one stream, an end-of-text token after each: [tokens]."""
    encoded = tokenizer([document.text for document in documents], verbose=False)["input_ids"]
    end = tokenizer.pad_token_id
    return np.concatenate([np.array([*ids, end], dtype=np.uint16) for ids in encoded])


@dataclass(frozen=True)
class Mixture:
    """What a training step sees: batch number i is a function of (seed, i), so a run resumes exactly.

    chat: [rows, length] packed conversations; source: [tokens] one stream.
    """

    chat: Ids
    source: Ids
    filler: int
    chat_share: float
    seed: int

    def batch(self, step: int, tokens: int, length: int) -> Tensor:
        """Token ids [tokens // length, length] int64, a multiple of the chat rows' own length."""
        rows = tokens // length
        chat_rows = round(rows * self.chat_share)
        unit = self.chat.shape[1]
        per_row = length // unit
        first = step * round(tokens * self.chat_share) // unit
        chat_pieces = range(first, first + chat_rows * per_row)
        order = [shuffled_index(index, len(self.chat), self.seed) for index in chat_pieces]
        chat = self.chat[order].reshape(chat_rows, length)
        draws = np.random.default_rng((self.seed, step)).integers(0, len(self.source) - length, rows - chat_rows)
        windows = self.source[draws[:, None] + np.arange(length)]
        return torch.from_numpy(np.concatenate([chat, windows]).astype(np.int64))


def shuffled_index(index: int, count: int, seed: int) -> int:
    """Entry `index` of an endless run through `count` things, each pass in its own order."""
    order = np.random.default_rng((seed, 1, index // count)).permutation(count)
    return int(order[index % count])


def labels_for(tokens: Tensor, filler: int, ignored: int) -> Tensor:
    """The tokens themselves, `ignored` where filler follows filler: [B, T] to [B, T]."""
    previous = torch.nn.functional.pad(tokens[:, :-1], (1, 0), value=-1)
    return torch.where((tokens == filler) & (previous == filler), ignored, tokens)

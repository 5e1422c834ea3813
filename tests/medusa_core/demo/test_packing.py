import numpy as np
import pytest
import torch

from medusa_core.demo.chat import ChatMaker, ChatMix
from medusa_core.demo.corpus import Document, Entry
from medusa_core.demo.packing import Mixture, chat_ids, labels_for, pack, source_ids
from tests.medusa_core.training.cast import tokenizer


def mixture(seed: int = 0) -> Mixture:
    chat = np.arange(10, dtype=np.uint16).repeat(4).reshape(10, 4)  # row i holds i four times
    return Mixture(chat, np.arange(100, 200, dtype=np.uint16), filler=0, chat_share=0.5, seed=seed)


def test_documents_stay_whole_and_begin_a_row_or_follow_a_filler() -> None:
    rows = pack([[1, 1, 1], [2, 2], [3], [4, 4, 4, 4, 4]], length=6, filler=0)

    assert rows.tolist() == [[1, 1, 1, 0, 3, 0], [2, 2, 0, 0, 0, 0], [4, 4, 4, 4, 4, 0]]


def test_a_document_longer_than_a_row_is_cut() -> None:
    assert pack([[7] * 9], length=4, filler=0).tolist() == [[7, 7, 7, 0]]


def test_one_filler_is_learnt_and_the_rest_is_not() -> None:
    labels = labels_for(torch.tensor([[5, 0, 0, 0], [0, 6, 0, 7]]), filler=0, ignored=-100)

    assert labels.tolist() == [[5, 0, -100, -100], [0, 6, 0, 7]]


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    assert torch.equal(mixture().batch(3, 32, 4), mixture().batch(3, 32, 4))
    assert not torch.equal(mixture().batch(3, 32, 4), mixture().batch(4, 32, 4))
    assert not torch.equal(mixture().batch(3, 32, 4), mixture(seed=1).batch(3, 32, 4))


def test_every_conversation_is_seen_once_before_one_is_seen_twice() -> None:
    # 32 tokens a step, half of them chat: four rows of four tokens, so five steps are two passes over ten rows.
    seen = [row[0].item() for step in range(5) for row in mixture().batch(step, 32, 4) if row[0] < 100]

    assert sorted(seen[:10]) == list(range(10))
    assert sorted(seen) == sorted([*range(10), *range(10)])


@pytest.mark.parametrize("length", [4, 8])
def test_long_rows_hold_as_many_tokens_as_short_ones(length: int) -> None:
    batch = mixture().batch(0, 64, length)

    assert batch.shape == (64 // length, length)
    assert int((batch < 100).sum()) == 32


def test_windows_of_the_source_are_contiguous() -> None:
    windows = mixture().batch(0, 64, 8)[4:]

    assert bool((windows.diff(dim=1) == 1).all())


def test_each_document_is_followed_by_the_end_of_text() -> None:
    stream = source_ids(tokenizer(), [Document("a", "Yes.", False), Document("b", "No.", False)])

    assert tokenizer().decode(stream.tolist()) == "Yes.<|endoftext|>No.<|endoftext|>"


def test_conversations_are_written_by_the_chat_template() -> None:
    maker = ChatMaker([Entry("box", "module", "Yes.", False)], ChatMix(0.0, 0.0, 0.0, 0.0, 0.0), 0)

    [talk] = chat_ids(tokenizer(), maker, epochs=1)

    assert tokenizer().decode(talk).endswith("<|im_start|>assistant\nYes.<|im_end|>\n")

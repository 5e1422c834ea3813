import pytest
import torch
from torch import Tensor

from medusa_core.heads import DraftHeads
from medusa_core.training.encoding import Example
from medusa_core.training.loss import IGNORED, chunks, head_labels, head_loss, head_nats, head_weights, next_labels
from medusa_core.training.packing import Batch
from tests.medusa_core.training.cast import alone, packed

HEADS, ROWS, LENGTH, VOCABULARY, HIDDEN = 3, 2, 9, 11, 8


def tokens() -> Tensor:
    return torch.randint(0, VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))


def perfect_logits(offset: int) -> Tensor:
    """Logits of heads that know token t + k + `offset`: sure of it."""
    logits = torch.zeros(HEADS, ROWS, LENGTH, VOCABULARY)
    for k in range(1, HEADS + 1):
        known = torch.roll(tokens(), -(k + offset), dims=1)
        logits[k - 1].scatter_(2, known[..., None], 1000.0)
    return logits


def heads() -> DraftHeads:
    generator = torch.Generator().manual_seed(2)
    made = DraftHeads.from_base(torch.randn(VOCABULARY, HIDDEN, generator=generator), HEADS, shared_lm_head=False)
    with torch.no_grad():
        made.weight.copy_(torch.randn(made.weight.shape, generator=generator) * 0.3)
    return made


def test_heads_that_know_the_token_after_next_have_no_loss() -> None:
    assert float(head_loss(perfect_logits(offset=1), tokens(), 0.8)) == 0.0


@pytest.mark.parametrize("offset", [0, 2])
def test_heads_shifted_by_one_position_have_a_large_loss(offset: int) -> None:
    assert float(head_loss(perfect_logits(offset), tokens(), 0.8)) > 100.0


def test_later_heads_weigh_less() -> None:
    logits = torch.zeros(HEADS, ROWS, LENGTH, VOCABULARY)

    expected = (0.8 + 0.64 + 0.512) * torch.log(torch.tensor(float(VOCABULARY)))

    torch.testing.assert_close(head_loss(logits, tokens(), 0.8), expected)


def test_too_short_a_text_is_refused() -> None:
    with pytest.raises(ValueError, match="3 heads need at least 5 tokens, got 4"):
        head_loss(torch.zeros(HEADS, 1, 4, VOCABULARY), torch.zeros(1, 4, dtype=torch.long), 0.8)


def test_labels_are_the_judged_tokens_k_plus_one_places_on() -> None:
    text = Example((10, 11, 12, 13, 14, 15), (True, True, True, False, True, True))

    labels = head_labels(packed(text, length=6).chosen([0]), num_heads=2)

    assert labels[0, 0].tolist() == [12, IGNORED, 14, 15, IGNORED, IGNORED]
    assert labels[1, 0].tolist() == [IGNORED, 14, 15, IGNORED, IGNORED, IGNORED]


def test_the_base_is_asked_for_the_very_next_token() -> None:
    assert next_labels(alone(10, 11, 12)).tolist() == [[11, 12, IGNORED]]


def test_nobody_is_asked_for_the_beginning_of_the_next_text_in_a_row() -> None:
    row = packed(Example((1, 2, 3, 4), (True,) * 4), Example((5, 6, 7), (True,) * 3), length=9).chosen([0])

    assert row.tokens.tolist() == [[1, 2, 3, 4, 5, 6, 7]]
    assert head_labels(row, 2)[:, 0].tolist() == [
        [3, 4, IGNORED, IGNORED, 7, IGNORED, IGNORED],
        [4, IGNORED, IGNORED, IGNORED, IGNORED, IGNORED, IGNORED],
    ]
    assert next_labels(row).tolist() == [[2, 3, 4, IGNORED, 6, 7, IGNORED]]


def test_labels_of_a_text_shorter_than_the_heads_reach_are_all_ignored() -> None:
    assert head_labels(alone(1, 2), num_heads=4).tolist() == [[[IGNORED, IGNORED]]] * 4


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_chunks_sum_to_the_loss_and_to_its_gradient(chunk: int) -> None:
    hidden = torch.randn(ROWS, LENGTH, HIDDEN, generator=torch.Generator().manual_seed(3))
    whole, parts = heads(), heads()
    expected = head_loss(whole(hidden), tokens(), 0.8)
    expected.backward()

    positions = torch.arange(LENGTH).expand(ROWS, -1)
    labels = head_labels(Batch(tokens(), positions, torch.ones(ROWS, LENGTH, dtype=torch.bool)), HEADS).flatten(1)
    weights = head_weights(HEADS, 0.8, hidden.device) / (labels != IGNORED).sum(dim=1)
    total = 0.0
    for rows, wanted in chunks(hidden.flatten(0, 1), labels, chunk):
        part = (head_nats(parts, rows, wanted) * weights).sum()
        part.backward()
        total += float(part.detach())

    assert total == pytest.approx(float(expected.detach()), rel=1e-5)
    torch.testing.assert_close(parts.weight.grad, whole.weight.grad)

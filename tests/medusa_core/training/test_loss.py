import pytest
import torch
from torch import Tensor

from medusa_core.heads import DraftHeads
from medusa_core.training.loss import IGNORED, chunk_losses, head_labels, head_loss, weighted_nats

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
    judged = torch.tensor([[True, True, True, False, True, True]])

    labels = head_labels(torch.tensor([[10, 11, 12, 13, 14, 15]]), judged, num_heads=2)

    assert labels[0, 0].tolist() == [12, IGNORED, 14, 15, IGNORED, IGNORED]
    assert labels[1, 0].tolist() == [IGNORED, 14, 15, IGNORED, IGNORED, IGNORED]


def test_labels_of_a_text_shorter_than_the_heads_reach_are_all_ignored() -> None:
    labels = head_labels(torch.tensor([[1, 2]]), torch.tensor([[True, True]]), num_heads=4)

    assert labels.tolist() == [[[IGNORED, IGNORED]]] * 4


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_chunks_sum_to_the_loss_and_to_its_gradient(chunk: int) -> None:
    hidden = torch.randn(ROWS, LENGTH, HIDDEN, generator=torch.Generator().manual_seed(3))
    whole, parts = heads(), heads()
    expected = head_loss(whole(hidden), tokens(), 0.8)
    expected.backward()

    labels = head_labels(tokens(), torch.ones(ROWS, LENGTH, dtype=torch.bool), HEADS).flatten(1)
    total = 0.0
    for part in chunk_losses(parts, hidden.flatten(0, 1), labels, 0.8, chunk, weighted_nats):
        part.backward()
        total += float(part.detach())

    assert total == pytest.approx(float(expected.detach()), rel=1e-5)
    torch.testing.assert_close(parts.weight.grad, whole.weight.grad)

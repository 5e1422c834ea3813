import pytest
import torch
import torch.nn.functional as F

from medusa_core.heads import DraftHeads
from medusa_core.training.loss import IGNORED
from medusa_core.training.scores import COUNTED_RANKS, judged_rows, over_all_tokens, rank_counts, score_heads
from tests.medusa_core.training.cast import alone, base, counting, packed


def test_shares_sum_to_one_when_every_rank_is_counted() -> None:
    logits = torch.arange(5.0).expand(1, 5, 5)  # token 4 has rank 0, token 0 rank 4

    counts = rank_counts(logits, torch.tensor([[4, 3, 2, 1, 0]]), ranks=5)

    assert counts.tolist() == [[1, 1, 1, 1, 1, 0]]


def test_deeper_ranks_share_the_last_column_and_ignored_rows_count_nowhere() -> None:
    logits = torch.arange(5.0).expand(1, 4, 5)

    counts = rank_counts(logits, torch.tensor([[0, 1, IGNORED, 4]]), ranks=2)

    assert counts.tolist() == [[1, 0, 2]]


def test_scores_are_those_of_all_rows_at_once_whatever_is_in_memory_at_a_time() -> None:
    own, text = base(), alone(*range(5, 30))
    heads = DraftHeads.from_base(own.lm_head, num_heads=2)
    rows, labels = judged_rows(own, text, 2)
    logits = heads(rows).detach()
    nats = [
        float(F.cross_entropy(one, wanted, ignore_index=IGNORED)) for one, wanted in zip(logits, labels, strict=True)
    ]

    scores = score_heads(own, heads, [text], rows_per_chunk=5)

    assert scores.nats == pytest.approx(nats, rel=1e-4)
    assert scores.samples == (23, 22)
    assert scores.top(1)[0] == pytest.approx(float((logits[0].argmax(-1) == labels[0])[:23].float().mean()))
    assert scores.top(COUNTED_RANKS)[0] >= scores.top(5)[0] >= scores.top(1)[0]


def test_the_loss_of_scores_weighs_as_training_does() -> None:
    scores = score_heads(base(), DraftHeads.from_base(base().lm_head, num_heads=2), [alone(*range(5, 30))], 100)

    assert scores.loss(0.5) == pytest.approx(0.5 * scores.nats[0] + 0.25 * scores.nats[1])


def test_packed_texts_score_as_lone_ones() -> None:
    own, texts = base(), counting(4, 8)
    heads = DraftHeads.from_base(own.lm_head, num_heads=2)

    together = score_heads(own, heads, packed(*texts).in_order(2), 100)
    apart = score_heads(own, heads, packed(*texts, together=False).in_order(3), 100)

    assert together.nats == pytest.approx(apart.nats, rel=1e-4)
    assert together.samples == apart.samples


def test_tokens_that_heads_never_draft_have_no_chance() -> None:
    heads = DraftHeads.from_base(torch.randn(8, 4), 2, token_ids=torch.tensor([6, 1]))

    everything = over_all_tokens(heads, torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]]), 8)

    assert everything.shape == (2, 1, 8)
    assert everything[0, 0, [6, 1]].tolist() == [1.0, 2.0]
    assert everything[0, 0, [0, 2, 3, 4, 5, 7]].isneginf().all()

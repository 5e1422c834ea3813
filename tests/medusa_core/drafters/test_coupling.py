from dataclasses import replace

import torch

from medusa_core.acceptance import Exact
from medusa_core.drafters import DraftState, MedusaDrafter
from medusa_core.drafters.coupling import perturbed, upcoming_noise
from medusa_core.heads import DraftHeads
from medusa_core.memory import Memory
from medusa_core.sampling import Sampler, SamplingParams, gumbel_noise
from medusa_core.tree import TreeTopology
from tests.cast import CPU

VOCAB = 400
SAMPLER = Sampler.of_request(SamplingParams(1.0, seed=11), CPU)


def test_heads_that_know_the_model_guess_the_drawn_token_far_more_often_with_its_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    lm_head = torch.randn(VOCAB, 32, generator=generator)
    heads = DraftHeads.from_base(lm_head, 1)  # untrained heads say what the LM head says
    drafter = MedusaDrafter.static(heads, torch.ones(1), TreeTopology.chain(1))
    rule, hits = Exact(SAMPLER), {"alone": 0, "coupled": 0}
    for past in range(300):
        hidden = torch.randn(32, generator=generator) / 3
        state = DraftState(torch.tensor(1), hidden, torch.tensor(past))
        for name, sampler in (("alone", None), ("coupled", SAMPLER)):
            tree = drafter.draft(replace(state, sampler=sampler, memory=Memory(VOCAB, CPU, False)))
            logits = torch.stack([hidden @ lm_head.T] * 2)
            hits[name] += int(rule.accept(tree, logits, torch.tensor(past)).count) - 1

    assert hits["coupled"] > 2 * hits["alone"]


def test_the_noise_is_that_of_the_position_and_the_token_behind_each_column() -> None:
    ids = torch.tensor([30, 7, 399])
    heads = DraftHeads.from_base(torch.randn(VOCAB, 8), 2, token_ids=ids)
    logits = torch.zeros(2, 3)

    state = DraftState(torch.tensor(1), torch.zeros(8), torch.tensor(20), sampler=SAMPLER, memory=Memory(VOCAB, CPU))
    noise = upcoming_noise(state, 3)
    assert noise is not None
    found = perturbed(logits, heads, SAMPLER, noise)

    expected = gumbel_noise(SAMPLER.key, torch.tensor([21, 22]), VOCAB)[:, ids]
    assert torch.equal(found.argsort(), expected.argsort())

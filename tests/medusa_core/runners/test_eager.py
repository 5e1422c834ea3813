import itertools

import torch

from medusa_core.acceptance import make_rule
from medusa_core.adjustments import Adjustments
from medusa_core.config import SpeculationParams
from medusa_core.decoding import OrdinaryPrompts, prefill
from medusa_core.drafters import Asked, DraftState, Paced
from medusa_core.engine import never
from medusa_core.pacing import FixedPace
from medusa_core.runners import DecodePlan, EagerRunner
from medusa_core.sampling import Sampler, SamplingParams
from tests.cast import CPU, Always, MockBackbone, Oracle, make_engine, run

PROMPT = [3, 1, 4, 1, 5]


def test_the_cache_holds_one_row_less_than_there_are_tokens_after_every_step() -> None:
    backbone = MockBackbone()
    plain = run(make_engine(backbone), PROMPT, max_tokens=30)
    cache = backbone.new_cache(64)
    computed = prefill(OrdinaryPrompts(backbone, cache), cache, PROMPT, 512, never, None)
    assert computed is not None
    sampling = SamplingParams(0.0, seed=0)
    oracle = Oracle(plain, len(PROMPT), backbone.vocab_size)
    plan = DecodePlan(
        Paced(Always(oracle), Asked(SpeculationParams(), (), len(PROMPT), False), FixedPace(8)),
        Adjustments.of_request(sampling, PROMPT, (), backbone.vocab_size, CPU),
        make_rule(Sampler.of_request(sampling, CPU), SpeculationParams()),
        constraint=None,
        top_logprobs=None,
    )
    state = DraftState(torch.tensor(plain[0]), computed.last.hidden[0], torch.tensor(len(PROMPT)))
    straight = backbone.new_cache(64)

    emitted = [plain[0]]
    for result in itertools.islice(EagerRunner(backbone, cache).steps(plan, state, len(PROMPT)), 4):
        emitted += result.tokens
        # the committed rows are those that computing the tokens one after another would have written
        prefill(OrdinaryPrompts(backbone, straight), straight, (PROMPT + emitted)[:-1], 1, never, None)
        rows = len(PROMPT) + len(emitted) - 1
        assert torch.equal(cache.buffer[..., :rows, :], straight.buffer[..., :rows, :])
    assert emitted == plain[: len(emitted)]
    assert len(emitted) == 1 + 4 * 4

import pytest
import torch

from medusa_core.backbone import TransformersBackbone
from medusa_core.config import SpeculationParams
from medusa_core.sampling import SamplingParams
from medusa_core.tree import TreeTopology
from tests.cast import FAMILIES, GREEDY, FixedDrafter, MockBackbone, Oracle, make_engine, random_heads, run, tiny_model

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
SAMPLINGS = {
    "greedy": GREEDY,
    "seeded": SamplingParams(temperature=1.0, seed=11),
    "filtered": SamplingParams(temperature=0.8, top_p=0.9, top_k=20, min_p=0.02, seed=2**63 + 5),
}
LENGTH = 40


def answers(backbone, sampling: SamplingParams) -> dict[str, list[int]]:
    """One answer per drafter; every one of them must be the plain one."""
    heads = random_heads(backbone.lm_head)
    plain = run(make_engine(backbone), PROMPT, sampling, max_tokens=LENGTH)
    oracle = Oracle(plain, len(PROMPT), backbone.vocab_size)
    bushy = TreeTopology.from_paths([(0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (0, 0, 0)])
    with_heads = make_engine(backbone, heads, tree_nodes=16)
    with_fixed = make_engine(backbone, drafter=FixedDrafter(bushy, range(2, 9)), tree_nodes=16)
    chain = SpeculationParams(mode="chain")
    return {
        "plain": plain,
        "dynamic tree": run(with_heads, PROMPT, sampling, max_tokens=LENGTH),
        "chain": run(with_heads, PROMPT, sampling, max_tokens=LENGTH, speculation=chain),
        "fixed tree": run(with_fixed, PROMPT, sampling, max_tokens=LENGTH),
        "oracle": run(make_engine(backbone, drafter=oracle, tree_nodes=16), PROMPT, sampling, max_tokens=LENGTH),
    }


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_every_drafter_gives_the_plain_answer_on_the_mock(sampling: SamplingParams) -> None:
    found = answers(MockBackbone(), sampling)

    assert all(answer == found["plain"] for answer in found.values()), found
    assert len(set(found["plain"])) > 5


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_drafter_gives_the_plain_answer(family: str, sampling: SamplingParams) -> None:
    found = answers(TransformersBackbone(tiny_model(family)), sampling)

    assert all(answer == found["plain"] for answer in found.values()), found


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_decoding_equals_transformers_generate(family: str) -> None:
    model = tiny_model(family)
    ours = run(make_engine(TransformersBackbone(model)), PROMPT, max_tokens=LENGTH)

    model.set_attn_implementation("eager")
    theirs = model.generate(
        torch.tensor([PROMPT]), max_new_tokens=LENGTH, do_sample=False, eos_token_id=None, pad_token_id=0
    )

    assert ours == theirs[0, len(PROMPT) :].tolist()
    assert len(set(ours)) > 3

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch

from medusa_core.backbone import Backbone, TransformersBackbone
from medusa_core.config import SpeculationParams
from medusa_core.constraints import Grammar, GrammarVocabulary
from medusa_core.decoding import OrdinaryPrompts, bucket, prefill
from medusa_core.drafters import MedusaDrafter
from medusa_core.engine import Engine, never
from medusa_core.generation import GenerationRequest
from medusa_core.sampling import SamplingParams
from medusa_core.tree import CandidateTree, TreeTopology
from tests.cast import FAMILIES, GREEDY, MockBackbone, Oracle, make_engine, random_heads, run, tiny_backbone, tiny_model
from tests.tiny_tokenizers import grammar_vocabulary

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
LENGTH = 32
END = 2
ARRAY = {"type": "array", "items": {"enum": ["ab", "ba", "aab", 12, {"a": 0}]}, "minItems": 5, "maxItems": 6}


@dataclass(frozen=True)
class Case:
    """What a request asks for.

    is_predicted: whether the client predicts the answer, with some of it changed.
    is_json:      whether the answer follows a grammar.
    """

    sampling: SamplingParams
    is_predicted: bool = False
    is_json: bool = False

    def options(self, plain: Sequence[int]) -> dict[str, Any]:
        """The request's other fields, given what the answer will be."""
        predicted = (*plain[:9], 8, 8, *plain[11:20], *plain[25:]) if self.is_predicted else ()
        grammar = Grammar.json_schema(ARRAY, is_lenient=False).text if self.is_json else None
        return {"prediction": predicted, "grammar": grammar}


CASES = {
    "greedy": Case(GREEDY),
    "seeded": Case(SamplingParams(temperature=1.0, seed=11)),
    "filtered": Case(SamplingParams(temperature=0.8, top_p=0.9, top_k=20, min_p=0.02, seed=2**63 + 5)),
    "top_p": Case(SamplingParams(temperature=1.0, top_p=0.7, seed=3)),
    "min_p": Case(SamplingParams(temperature=1.0, min_p=0.1, seed=4)),
    "second choice": Case(SamplingParams(temperature=1.0, seed=11, choice=1)),
    "penalised, greedy": Case(
        SamplingParams(temperature=0.0, repetition_penalty=1.3, presence_penalty=0.7, frequency_penalty=0.4)
    ),
    "penalised": Case(SamplingParams(repetition_penalty=1.3, presence_penalty=0.7, frequency_penalty=0.4, seed=6)),
    "biased, greedy": Case(SamplingParams(temperature=0.0, logit_bias=((4, 3.0), (7, -100.0)), min_tokens=24)),
    "biased": Case(SamplingParams(frequency_penalty=1.5, logit_bias=((4, 3.0), (7, -100.0)), min_tokens=24, seed=12)),
    "json, greedy": Case(GREEDY, is_json=True),
    "json": Case(SamplingParams(temperature=1.0, seed=8), is_json=True),
    "predicted, greedy": Case(GREEDY, is_predicted=True),
    "predicted": Case(SamplingParams(temperature=1.0, seed=9), is_predicted=True),
    "all at once": Case(
        SamplingParams(top_p=0.95, presence_penalty=0.5, logit_bias=((9, 2.0),), min_tokens=60, seed=10),
        is_predicted=True,
        is_json=True,
    ),
}


@cache
def backbone_of(family: str) -> TransformersBackbone:
    """One model for all cases of a family: an answer leaves nothing behind in it."""
    return tiny_backbone(family)


@cache
def vocabulary_of(vocab_size: int) -> GrammarVocabulary:
    """The vocabulary that grammars are told in."""
    return grammar_vocabulary(vocab_size, END)


def engines(backbone: Backbone, case: Case, plain: Sequence[int]) -> dict[str, Engine]:
    """An engine for each way to draft."""
    heads = random_heads(backbone.lm_head)
    oracle = Oracle(plain, len(PROMPT), backbone.vocab_size)
    bushy = TreeTopology.from_paths([(0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (0, 0, 0)])
    static = MedusaDrafter.static(heads, torch.ones(heads.config.num_heads), bushy)
    options: Any = {"eos": (END,), "vocabulary": vocabulary_of(backbone.vocab_size)}
    return {
        "all in one tree": make_engine(backbone, heads, tree_nodes=16, recycles=True, **options),
        "no heads": make_engine(backbone, tree_nodes=12, recycles=True, **options),
        "heads alone": make_engine(backbone, heads, tree_nodes=16, has_lookup=False, **options),
        "static tree": make_engine(backbone, drafter=static, **options),
        "oracle": make_engine(backbone, drafter=oracle, tree_nodes=16, **options),
    }


def unspeculated(backbone: Backbone, case: Case) -> list[int]:
    """The plain answer."""
    options: Any = {"eos": (END,), "vocabulary": vocabulary_of(backbone.vocab_size)}
    engine, off = make_engine(backbone, **options), SpeculationParams(mode="off")
    return run(engine, PROMPT, case.sampling, speculation=off, max_tokens=LENGTH, **case.options(()))


def answers(backbone: Backbone, case: Case) -> dict[str, list[int]]:
    """One answer per drafter; every one of them must be the plain one."""
    plain = unspeculated(backbone, case)
    options = {**case.options(plain), "max_tokens": LENGTH}
    made = engines(backbone, case, plain)
    found = {name: run(engine, PROMPT, case.sampling, **options) for name, engine in made.items()}
    chain = SpeculationParams(mode="chain")
    chained = run(made["all in one tree"], PROMPT, case.sampling, speculation=chain, **options)
    return {**found, "chain": chained, "off": plain}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_drafter_gives_the_plain_answer_on_the_mock(case: Case) -> None:
    found = answers(MockBackbone(), case)

    assert all(answer == found["off"] for answer in found.values()), found
    assert len(set(found["off"])) > 5


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_drafter_gives_the_plain_answer(family: str, case: Case) -> None:
    found = answers(backbone_of(family), case)

    assert all(answer == found["off"] for answer in found.values()), found


@pytest.mark.parametrize("case", ["greedy", "filtered", "penalised", "predicted"])
@pytest.mark.parametrize("nodes", [1, 8, 32, 64])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_trees_of_every_size_give_the_plain_answer_with_and_without_cached_rows(
    family: str, nodes: int, case: str
) -> None:
    backbone, asked = backbone_of(family), CASES[case]
    plain = unspeculated(backbone, asked)
    engine = make_engine(backbone, random_heads(backbone.lm_head), tree_nodes=64, recycles=True, eos=(END,))
    tree = SpeculationParams(mode="tree", max_nodes=nodes)
    options = {**asked.options(plain), "max_tokens": LENGTH, "speculation": tree}

    answers = [run(engine, PROMPT, asked.sampling, **options) for _ in range(2)]
    other = run(engine, [*PROMPT[:5], 7, 7], asked.sampling, **options)
    answers.append(run(engine, PROMPT, asked.sampling, **options))

    assert answers == [plain] * 3
    assert other != plain


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_decoding_equals_transformers_generate(family: str) -> None:
    model = tiny_model(family)
    ours = run(make_engine(TransformersBackbone(model)), PROMPT, max_tokens=40)

    model.set_attn_implementation("eager")
    theirs = model.generate(
        torch.tensor([PROMPT]), max_new_tokens=40, do_sample=False, eos_token_id=None, pad_token_id=0
    )

    assert ours == theirs[0, len(PROMPT) :].tolist()
    assert len(set(ours)) > 3


@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral"])
def test_the_oracle_is_believed_so_that_accepted_paths_are_really_committed(family: str) -> None:
    backbone = backbone_of(family)
    plain = run(make_engine(backbone), PROMPT, max_tokens=LENGTH)
    engine = make_engine(backbone, drafter=Oracle(plain, len(PROMPT), backbone.vocab_size), tree_nodes=16)
    found = list(engine.generate(GenerationRequest(tuple(PROMPT), GREEDY, max_tokens=LENGTH)))

    assert [len(delta.tokens) for delta in found] == [1] + [4] * 7 + [3]


def test_what_trees_emit_follows_the_models_distribution() -> None:
    """Chi-square of the second token given the first, over 1,500 seeds; all of them drafted and verified in a tree.

    The bound is the 99.9 % quantile for the degrees of freedom; cells expected below 5 are pooled.
    """
    backbone = MockBackbone(vocab_size=6, seed=1, sharpness=0.5)
    engine = make_engine(backbone, random_heads(backbone.lm_head), tree_nodes=8)
    counts = torch.zeros(6, 6)
    for seed in range(1500):
        first, second = run(engine, [2, 5], SamplingParams(temperature=1.0, seed=seed), max_tokens=2)
        counts[first, second] += 1

    first = int(counts.sum(1).argmax())
    logits = backbone.forward(
        CandidateTree.chain(torch.tensor([2, 5, first])), torch.tensor(0), backbone.new_cache(8), 8
    ).logits
    for observed, row in ((counts.sum(1), logits[1]), (counts[first], logits[2])):
        expected = observed.sum() * row.softmax(-1)
        rare = expected < 5
        cells = torch.cat([((observed - expected) ** 2 / expected)[~rare], torch.zeros(1)])
        if rare.any():
            cells[-1] = (observed[rare].sum() - expected[rare].sum()) ** 2 / expected[rare].sum()
        assert int((~rare).sum()) >= 3
        assert float(cells.sum()) < 20.5  # 5 degrees of freedom


def test_prefill_in_chunks_leaves_the_rows_of_a_prefill_in_one_piece() -> None:
    backbone = MockBackbone()
    caches = [backbone.new_cache(32), backbone.new_cache(32)]
    results = [
        prefill(OrdinaryPrompts(backbone, cache), cache, PROMPT, chunk, never, None)
        for cache, chunk in zip(caches, (3, 100), strict=True)
    ]

    assert torch.equal(caches[0].buffer, caches[1].buffer)
    assert results[0] is not None and results[1] is not None
    assert torch.equal(results[0].last.hidden, results[1].last.hidden)


@pytest.mark.parametrize("chunk", [3, 100])
def test_a_scored_prompt_has_the_log_probabilities_of_its_own_tokens(chunk: int) -> None:
    backbone = MockBackbone()
    whole = backbone.forward(CandidateTree.chain(torch.tensor(PROMPT)), torch.tensor(0), backbone.new_cache(32), 32)
    expected = whole.logits.float().log_softmax(-1)

    cache = backbone.new_cache(32)
    found = prefill(OrdinaryPrompts(backbone, cache), cache, PROMPT, chunk, never, top_logprobs=4)

    assert found is not None
    chosen = torch.cat([part.chosen for part in found.scores])
    tokens = torch.cat([part.tokens for part in found.scores])
    assert torch.allclose(chosen, expected[torch.arange(len(PROMPT) - 1), torch.tensor(PROMPT[1:])])
    assert torch.equal(tokens, expected[:-1].topk(4).indices)
    assert found.last.logits.shape == (1, backbone.vocab_size)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_log_probabilities_are_the_models_own_whatever_drafts(family: str, case: Case) -> None:
    backbone = backbone_of(family)
    plain = unspeculated(backbone, case)
    options = {**case.options(plain), "max_tokens": LENGTH}
    request = GenerationRequest(tuple(PROMPT), case.sampling, top_logprobs=3, **options)
    straight = backbone.forward(
        CandidateTree.chain(torch.tensor(PROMPT + plain)), torch.tensor(0), backbone.new_cache(64), 64
    )
    expected = straight.logits[len(PROMPT) - 1 : -1].log_softmax(-1)

    for name, engine in engines(backbone, case, plain).items():
        found = [entry for delta in engine.generate(request) for entry in delta.logprobs or ()]

        chosen = torch.tensor([entry.logprob for entry in found])
        likeliest = torch.tensor([[value for _, value in entry.top] for entry in found])
        assert torch.allclose(chosen, expected[torch.arange(len(plain)), torch.tensor(plain)], atol=1e-4), name
        assert torch.allclose(likeliest, expected.topk(3).values, atol=1e-4), name


def test_visible_rows_come_in_buckets_that_cover_what_is_needed() -> None:
    assert [bucket(rows) for rows in (1, 64, 65, 128)] == [64, 64, 128, 128]

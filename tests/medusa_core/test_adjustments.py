import torch

from medusa_core.adjustments import Adjustments
from medusa_core.sampling import SamplingParams
from medusa_core.tree import CandidateTree, TreeTopology
from tests.cast import CPU, MockBackbone, make_engine, random_heads, run

VOCAB = 9
PROMPT = (1, 2, 3)
PAST = torch.tensor(5)


def adjustments(ends: tuple[int, ...] = (), **asked: object) -> Adjustments:
    return Adjustments.of_request(SamplingParams(seed=0, **asked), PROMPT, ends, VOCAB, CPU)  # type: ignore[arg-type]


def forked_tree() -> CandidateTree:
    """Root 4; below it 5 and 6; below 5 another 5."""
    return CandidateTree.from_topology(TreeTopology.from_paths([(0,), (1,), (0, 0)]), torch.tensor([4, 5, 6, 5]))


def test_nothing_asked_for_changes_nothing() -> None:
    logits = torch.randn(4, VOCAB)

    assert adjustments().start() is None
    assert adjustments().apply(logits, forked_tree(), PAST, None, None) is logits


def test_each_node_is_penalised_for_its_own_path() -> None:
    asked = adjustments(presence_penalty=1.0, frequency_penalty=0.25)
    counts = torch.zeros(VOCAB).index_add(0, torch.tensor([8, 4]), torch.ones(2))  # the answer so far: 8, then the root

    found = asked.apply(torch.zeros(4, VOCAB), forked_tree(), PAST, counts, None)

    expected = torch.zeros(4, VOCAB)
    expected[:, [8, 4]] = -1.25
    expected[1, 5] = -1.25
    expected[2, 6] = -1.25
    expected[3, 5] = -1.5  # it stands on this path twice
    assert torch.equal(found, expected)


def test_prompt_tokens_count_for_repetition_only() -> None:
    logits = torch.ones(1, VOCAB)
    root = CandidateTree.chain(torch.tensor([4]))
    counts = torch.zeros(VOCAB)

    repeated = adjustments(repetition_penalty=2.0).apply(logits, root, PAST, counts, None)
    present = adjustments(presence_penalty=2.0).apply(logits, root, PAST, counts, None)

    assert repeated[0].tolist() == [1, 0.5, 0.5, 0.5, 1, 1, 1, 1, 1]
    assert torch.equal(present, logits)


def test_repetition_lowers_negative_logits_too() -> None:
    root = CandidateTree.chain(torch.tensor([4]))

    found = adjustments(repetition_penalty=2.0).apply(-torch.ones(1, VOCAB), root, PAST, torch.zeros(VOCAB), None)

    assert found[0, 1].item() == -2.0


def test_only_emitted_tokens_are_counted() -> None:
    asked = adjustments(frequency_penalty=1.0)

    counts = asked.count(asked.start(), torch.tensor([7, 7, 2]), torch.tensor(2))

    assert counts is not None
    assert counts.tolist() == [0, 0, 0, 0, 0, 0, 0, 2, 0]


def test_an_early_end_is_banned_by_position_not_by_node() -> None:
    # The prompt has 3 tokens and the answer needs 4: the tokens of positions 3 to 6 must not end it.
    asked = adjustments(ends=(0, 8), min_tokens=4)

    found = asked.apply(torch.zeros(4, VOCAB), forked_tree(), PAST, None, None)  # nodes draw positions 6, 7, 7, 8

    assert found.isinf().nonzero().tolist() == [[0, 0], [0, 8]]


def test_a_bias_of_100_forces_and_of_minus_100_bans() -> None:
    engine = make_engine(MockBackbone())

    forced = run(engine, [3, 1], SamplingParams(0.0, logit_bias=((6, 100.0),)), max_tokens=5)
    banned = run(engine, [3, 1], SamplingParams(0.0, logit_bias=((forced[0], -100.0),)), max_tokens=20)

    assert forced == [6] * 5
    assert 6 not in banned


def test_min_tokens_keeps_an_answer_going_to_the_token() -> None:
    backbone = MockBackbone()
    ends = tuple(range(0, 23, 2))
    for engine in (make_engine(backbone, eos=ends), make_engine(backbone, random_heads(backbone.lm_head), eos=ends)):
        answer = run(engine, [3, 1], SamplingParams(1.0, seed=5, min_tokens=9), max_tokens=60)
        early = run(engine, [3, 1], SamplingParams(1.0, seed=5), max_tokens=60)

        assert len(early) < 9
        assert len(answer) >= 10
        assert not set(answer[:9]) & set(ends)


def test_a_frequency_penalty_ends_repetition() -> None:
    engine = make_engine(MockBackbone())
    loud = ((6, 60.0),)

    plain = run(engine, [3, 1], SamplingParams(0.0, logit_bias=loud), max_tokens=30)
    penalised = run(engine, [3, 1], SamplingParams(0.0, logit_bias=loud, frequency_penalty=2.0), max_tokens=30)

    assert plain.count(6) == 30
    assert penalised.count(6) < 25


def test_a_grammar_bans_at_each_node_what_it_does_not_allow_there() -> None:
    allowed = torch.rand(4, VOCAB, generator=torch.Generator().manual_seed(0)) > 0.5
    logits = torch.randn(4, VOCAB)

    found = adjustments().apply(logits, forked_tree(), PAST, None, allowed)

    assert torch.equal(found[allowed], logits[allowed])
    assert bool((found[~allowed] == -torch.inf).all())


def test_a_complete_grammar_ends_an_answer_that_should_be_longer() -> None:
    asked = adjustments(ends=(0,), min_tokens=50)
    root = CandidateTree.chain(torch.tensor([4]))
    only_the_end, others_too = torch.zeros(2, 1, VOCAB, dtype=torch.bool)
    only_the_end[0, 0] = others_too[0, [0, 3]] = True

    ended = asked.apply(torch.zeros(1, VOCAB), root, PAST, None, only_the_end)
    goes_on = asked.apply(torch.zeros(1, VOCAB), root, PAST, None, others_too)

    assert ended.argmax().item() == 0
    assert (ended[0] > -torch.inf).tolist() == only_the_end[0].tolist()
    assert (goes_on[0] > -torch.inf).nonzero()[:, 0].tolist() == [3]

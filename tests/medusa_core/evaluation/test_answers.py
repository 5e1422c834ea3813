from medusa_core.config import SpeculationParams
from medusa_core.evaluation.answers import Answer, EnginePeer, tokens_per_step
from tests.cast import GREEDY, MockBackbone, Oracle, make_engine, run
from tests.medusa_core.evaluation.cast import PROMPTS, mock_engine

PROMPT = PROMPTS[0]
PLAIN = run(make_engine(MockBackbone()), PROMPT.tokens, max_tokens=60)


def test_an_answer_counts_what_its_steps_emitted_and_not_the_prompts_token() -> None:
    oracle = Oracle(PLAIN, len(PROMPT.tokens), MockBackbone().vocab_size)
    engine = make_engine(MockBackbone(), drafter=oracle, tree_nodes=16)

    answer = EnginePeer(engine, SpeculationParams()).answer(PROMPT, GREEDY, 13)

    assert list(answer.tokens) == PLAIN[:13]
    assert (answer.step_tokens, len(answer.step_seconds), dict(answer.accepted)) == (12, 3, {"heads": 9})
    assert answer.seconds > 0.0 and min(answer.step_seconds) > 0.0
    assert tokens_per_step([answer]) == 4.0


def test_every_answer_starts_from_an_empty_cache() -> None:
    backbone = MockBackbone()
    peer = EnginePeer(make_engine(backbone), SpeculationParams(mode="off"))
    rows = []
    for _ in range(2):
        before = backbone.computed
        peer.answer(PROMPT, GREEDY, 4)
        rows.append(backbone.computed - before)

    assert rows[0] == rows[1]


def test_steps_and_tokens_are_summed_before_they_are_divided() -> None:
    long, short = (Answer(tuple(range(tokens)), 1.0, (0.1,) * steps, {}) for tokens, steps in ((101, 100), (4, 1)))

    assert tokens_per_step([long, short]) == 103 / 101
    assert tokens_per_step([Answer((1,), 1.0, (), {})]) is None


def test_plain_decoding_gives_a_token_a_step() -> None:
    answer = EnginePeer(mock_engine(), SpeculationParams(mode="off")).answer(PROMPT, GREEDY, 9)

    assert tokens_per_step([answer]) == 1.0

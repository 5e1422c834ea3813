from benchmarks.sizes import measure, workloads
from tests.cast import MockBackbone, make_engine, random_heads

PROMPTS = [tuple(range(start, start + 12)) for start in range(8)]


def test_long_documents_are_prompts_joined_until_there_is_room_for_the_answer_alone() -> None:
    found = workloads(PROMPTS, max_context=60, max_tokens=20, count=4)

    assert [len(work.prompts) for work in found] == [4, 4, 6, 6, 4, 4]
    assert [len(document) for document in found[2].prompts] == [40] * 6
    assert found[2].prompts[0][:24] == (*PROMPTS[0], *PROMPTS[1])
    assert found[2].prompts[-1][-24:] == (*PROMPTS[-2], *PROMPTS[-1])
    assert [work.grammar is not None for work in found] == [False] * 4 + [True] * 2
    assert [work.sampling.temperature for work in found] == [0.0, 1.5, 0.0, 1.5, 0.0, 1.0]


def test_everybody_writes_the_same_number_of_tokens_and_plain_decoding_one_a_step() -> None:
    backbone = MockBackbone()
    engine = make_engine(backbone, random_heads(backbone.lm_head), tree_nodes=8)
    for work in workloads(PROMPTS, engine.info.max_context, max_tokens=10, count=2)[:4]:
        measure(engine, work, [4], limit=10, repeats=1)

        assert {total.tokens for total in work.totals.values()} == {9 * len(work.prompts)}
        off = work.totals["off"]
        assert off.steps == off.nodes == off.tokens
        assert work.speed("off") == 1.0

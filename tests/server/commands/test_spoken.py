from server.commands.spoken import Spoken, told
from tests.server.commands.speaking import Letters, deltas


def spoken_of(text: str, reason: str | None = "stop") -> Spoken:
    ticks = iter(range(100))
    return Spoken(deltas(text, reason=reason), Letters(), clock=lambda: float(next(ticks)))


def test_each_step_brings_its_tokens_with_who_proposed_them() -> None:
    answer = spoken_of("abcd")

    steps = [[(one.text, one.source) for one in step] for step in answer]

    assert steps == [[("a", "base")], [("b", "heads"), ("c", "base")], [("d", "heads")]]
    assert answer.text == "abcd"


def test_what_an_answer_took_counts_its_end_and_leaves_the_prompt_out_of_the_speed() -> None:
    answer = spoken_of("abcd")
    list(answer)
    took = answer.took

    assert (took.tokens, took.steps, took.step_tokens, took.finish_reason) == (5, 2, 4, "stop")
    assert took.by_source == {"base": 3, "heads": 2}
    assert (took.first_s, took.decode_s) == (1.0, 2.0)
    assert (took.tokens_per_step, took.tokens_per_s) == (2.0, 2.0)


def test_an_answer_without_a_step_has_no_speed() -> None:
    answer = spoken_of("a", reason="length")
    list(answer)

    assert (answer.took.tokens_per_s, answer.took.tokens_per_step) == (0.0, 0.0)
    assert told(answer.took) == (
        "[1 token, first after 1.00 s, 3 of 4 prompt tokens were known, base 1, cut at the limit]"
    )


def test_an_answer_that_somebody_stopped_says_so() -> None:
    answer = spoken_of("abc", reason=None)
    list(answer)

    assert told(answer.took).endswith("base 2 heads 1, stopped]")

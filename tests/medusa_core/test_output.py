from dataclasses import replace

from medusa_core.generation import GenerationRequest
from medusa_core.output import Output
from medusa_core.runners import StepResult
from tests.cast import GREEDY, MockBackbone, make_engine

INFO = make_engine(MockBackbone(), eos=(2,)).info
REQUEST = GenerationRequest((5, 6, 7), GREEDY, max_tokens=4)


def step(*tokens: int) -> StepResult:
    return StepResult(list(tokens), {}, [], 1, [], [], None, {})


def test_an_answer_ends_behind_its_stop_token_wherever_in_a_step_that_stands() -> None:
    output = Output(REQUEST, INFO)

    assert output.emit(step(9), None, None).finish_reason is None
    assert output.emit(step(8, 2, 9), None, None).tokens == (8, 2)
    assert output.finish_reason == "stop"
    assert output.root == 9  # of what the model decided nothing is lost


def test_an_answer_is_cut_at_its_limit_and_at_the_end_of_the_context() -> None:
    limited = Output(REQUEST, INFO)
    short = Output(replace(REQUEST, max_tokens=None), replace(INFO, max_context=5))

    assert limited.emit(step(1, 3, 4, 5, 6), None, None).tokens == (1, 3, 4, 5)
    assert short.emit(step(1, 3, 4), None, None).tokens == (1, 3)
    assert limited.finish_reason == short.finish_reason == "length"


def test_end_tokens_may_be_ignored_but_not_the_requests_own() -> None:
    output = Output(replace(REQUEST, ignore_eos=True, stop_token_ids=frozenset({3})), INFO)

    assert output.emit(step(2, 3, 4), None, None).tokens == (2, 3)

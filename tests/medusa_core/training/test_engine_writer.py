import pytest

from medusa_core.sampling import SamplingParams
from medusa_core.training.batch_writer import BatchWriter
from medusa_core.training.engine_writer import EngineWriter
from medusa_core.training.writer import Question
from tests.cast import make_engine, random_heads, tiny_backbone, tiny_model

QUESTIONS = [Question((5, 6, 7), 30, seed=1), Question((8,), 30, seed=2), Question((9, 10, 9, 10), 7, seed=3)]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_engine_says_what_a_batch_says(temperature: float) -> None:
    sampling = SamplingParams(temperature=temperature, top_p=0.95)
    backbone = tiny_backbone("llama")
    engine = EngineWriter(make_engine(backbone, random_heads(backbone.lm_head)), frozenset([11]), sampling)
    model = tiny_model("llama", eos_token_id=None)
    model.set_attn_implementation("eager")

    assert engine.write(QUESTIONS) == BatchWriter(model, frozenset([11]), sampling).write(QUESTIONS)


def test_the_engines_own_end_tokens_count_too() -> None:
    engine = make_engine(tiny_backbone("llama"), eos=(4, 5))

    assert EngineWriter(engine, frozenset([7]), SamplingParams()).ends == {4, 5, 7}

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from medusa_core.config import EngineConfig
from medusa_core.engine import Engine
from medusa_core.errors import ConfigurationError
from medusa_core.evaluation.prompts import read_prompts
from medusa_core.evaluation.verify import VerifyPlan, verify, verify_answers
from medusa_core.generation import Delta, GenerationRequest
from medusa_core.text import TextCodec
from tests.medusa_core.evaluation.cast import PROMPTS, mock_engine, saved_model, saved_prompts
from tests.tiny_tokenizers import save_byte_level


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    return TextCodec.load(str(save_byte_level(tmp_path_factory.mktemp("tokenizer"))))


class Slipping:
    """An engine whose trees get one token wrong, the fifth."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self.info = engine, engine.info

    def forget(self) -> None:
        self._engine.forget()

    def generate(self, request: GenerationRequest) -> Iterator[Delta]:
        place = 0
        for delta in self._engine.generate(request):
            tokens = list(delta.tokens)
            if request.speculation.mode != "off" and request.top_logprobs is None:
                tokens = [(token + 1) % 23 if place + i == 4 else token for i, token in enumerate(tokens)]
            place += len(tokens)
            yield replace(delta, tokens=tuple(tokens))


def test_in_float32_every_answer_agrees_greedy_and_seeded(tmp_path: Path) -> None:
    folder, prompts = saved_model(tmp_path / "model"), saved_prompts(tmp_path)
    report = verify(EngineConfig(model=str(folder), num_threads=1), prompts, VerifyPlan(max_tokens=16))

    assert (report.prompts, report.answers, report.skipped) == (3, 6, 0)
    assert (report.divergences, report.must_agree, report.has_failed) == ((), True, False)
    assert report.tokens_per_step >= 1.0
    assert report.nodes == 8


def test_the_first_divergence_is_told_with_its_place_its_tokens_and_how_close_they_were(codec: TextCodec) -> None:
    slipping: Engine = Slipping(mock_engine())  # type: ignore[assignment]

    report = verify_answers(slipping, codec, PROMPTS, VerifyPlan(temperatures=(0.0,), max_tokens=12))

    assert [(found.line, found.index) for found in report.divergences] == [(1, 4), (2, 4), (4, 4)]
    for found in report.divergences:
        assert found.plain is not None and found.tree == (found.plain + 1) % 23
        assert found.logit_gap is not None and found.logit_gap > 0.0  # greedy: plain decoding's token is the likeliest
        assert found.margin == found.logit_gap
    assert report.has_failed


def test_the_margin_of_a_drawn_token_knows_the_noise_that_decided(codec: TextCodec) -> None:
    # where a logit that is not divided by the temperature would seem to outweigh the noise
    slipping: Engine = Slipping(mock_engine(sharpness=1.0))  # type: ignore[assignment]
    plan = VerifyPlan(temperatures=(0.7, 1.0, 2.0), seed=7, max_tokens=12)

    found = verify_answers(slipping, codec, PROMPTS, plan).divergences

    assert len(found) == 9
    assert all(one.margin is not None and one.margin > 0.0 for one in found)  # plain decoding drew it: it led
    assert any(one.logit_gap is not None and one.logit_gap < 0.0 for one in found)  # though it was not the likeliest


def test_in_bfloat16_a_divergence_is_told_and_breaks_no_promise(codec: TextCodec) -> None:
    engine = mock_engine()
    engine.info = replace(engine.info, dtype="bfloat16")
    slipping: Engine = Slipping(engine)  # type: ignore[assignment]

    report = verify_answers(slipping, codec, PROMPTS, VerifyPlan(max_tokens=12))

    assert len(report.divergences) == 6
    assert not report.has_failed


def test_trees_without_heads_are_verified_too(codec: TextCodec) -> None:
    report = verify_answers(mock_engine(has_heads=False), codec, PROMPTS, VerifyPlan(max_tokens=12))

    assert (report.heads, report.divergences, report.tokens > 0) == (None, (), True)


def test_with_trees_of_one_node_there_is_nothing_to_verify(codec: TextCodec) -> None:
    with pytest.raises(ConfigurationError, match="the trees have one node"):
        verify_answers(mock_engine(tree_nodes=1), codec, PROMPTS, VerifyPlan())


def test_prompts_that_leave_no_room_are_counted_as_skipped(tmp_path: Path) -> None:
    folder, prompts = saved_model(tmp_path / "model"), saved_prompts(tmp_path)
    lengths = sorted(len(prompt.tokens) for prompt in read_prompts(prompts, TextCodec.load(str(folder))))
    config = EngineConfig(model=str(folder), max_context=lengths[0] + 10, num_threads=1)
    assert lengths[0] < lengths[1]

    report = verify(config, prompts, VerifyPlan(max_tokens=10))

    assert (report.prompts, report.skipped) == (1, 2)
    assert verify(config, prompts, VerifyPlan(max_tokens=10, limit=1)).skipped == 1


@pytest.mark.parametrize("wrong", [{"max_tokens": 1}, {"limit": 0}, {"temperatures": ()}, {"temperatures": (3.0,)}])
def test_a_plan_without_sense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        VerifyPlan(**wrong)  # type: ignore[arg-type]

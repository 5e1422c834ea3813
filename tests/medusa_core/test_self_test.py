import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from medusa_core import self_test
from medusa_core.backbone import Forward
from medusa_core.checkpoints import save_heads
from medusa_core.config import EngineConfig, HeadsConfig
from medusa_core.engine import Engine
from medusa_core.errors import EngineError
from medusa_core.heads import DraftHeads
from medusa_core.self_test import HeadCheck, check_heads, diagnose, judge_run, run_length, trial_prompts
from medusa_core.tree import CandidateTree
from tests.cast import CPU, random_heads, tiny_model
from tests.medusa_core.training.cast import base, saved_base

# The text goes round the first 13 tokens in strides of 5; the others never come.
VOCAB, ROUND, STRIDE, HEADS = 20, 13, 5, 3


def text(length: int, start: int = 0) -> list[int]:
    return [(start + STRIDE * index) % ROUND for index in range(length)]


class Echo:
    """A model whose hidden state is the token itself."""

    hidden_size = vocab_size = VOCAB
    max_positions = 512
    device = CPU
    has_buckets = True

    def new_cache(self, rows: int) -> Any:
        return None

    def forward(
        self, tree: CandidateTree, past: Tensor, cache: Any, visible_rows: int, keep: Tensor | None = None
    ) -> Forward:
        hidden = torch.nn.functional.one_hot(tree.tokens, VOCAB).float()
        return Forward(hidden, hidden)


def heads_that_guess(ahead: Callable[[int], int], token_ids: Tensor | None = None) -> DraftHeads:
    """Head k, counted from 1, guesses the token so many places ahead."""
    ids = token_ids if token_ids is not None else torch.arange(VOCAB)
    heads = DraftHeads(HeadsConfig(HEADS, 1, VOCAB, len(ids), False), None, token_ids).requires_grad_(False)
    assert heads.lm_head is not None
    for head in range(HEADS):
        for row, token in enumerate(ids.tolist()):
            if token < ROUND:
                heads.lm_head[head, row, (token - STRIDE * ahead(head + 1)) % ROUND] = 1.0
    return heads


def never_right() -> DraftHeads:
    heads = heads_that_guess(lambda k: k + 1)
    assert heads.lm_head is not None
    heads.lm_head.zero_()
    heads.lm_head[:, ROUND:] = 1.0
    return heads


def judged(heads: DraftHeads) -> HeadCheck:
    return judge_run(Echo(), heads, [(text(40), 8), (text(40, start=3), 8)])


def test_heads_that_are_right_are_right_at_their_own_offset_alone() -> None:
    check = judged(heads_that_guess(lambda k: k + 1))

    assert check.own == (1.0, 1.0, 1.0)
    assert [[share > 0.5 for share in row] for row in check.top1] == torch.eye(5).bool()[1:4].tolist()
    assert check.samples == 2 * (40 - 7 - 2)
    assert diagnose(check) == ()


def test_each_head_is_judged_on_what_the_model_wrote_and_on_no_prompt() -> None:
    wrong_prompt = [0] * 8 + text(32)

    assert judge_run(Echo(), heads_that_guess(lambda k: k + 1), [(wrong_prompt, 9)]).own == (1.0, 1.0, 1.0)


def test_a_truncated_vocabulary_is_judged_by_its_tokens() -> None:
    ids = torch.tensor([12, 5, 3, 0, 7])
    check = judged(heads_that_guess(lambda k: k + 1, ids))

    # it can only be right where one of its tokens comes
    assert 0.25 < check.own[0] < 0.55


SIGNS = {
    "shifted or never trained": (lambda k: k, self_test.UNTRAINED),
    "shifted the other way": (lambda k: k + 2, self_test.LATE),
    "of another base": (lambda k: k + 7, self_test.OTHER_BASE),
    "permuted": (lambda k: {1: 4, 2: 3, 3: 2}[k], self_test.PERMUTED),
    "tied": (lambda k: 1, self_test.TIED),
}


@pytest.mark.parametrize("sign", SIGNS)
def test_a_pattern_tells_its_cause(sign: str) -> None:
    ahead, cause = SIGNS[sign]

    assert cause in diagnose(judged(heads_that_guess(ahead)))


def test_heads_that_are_never_right_were_misread() -> None:
    assert diagnose(judged(never_right())) == (self_test.MISREAD,)


def test_too_little_text_says_nothing() -> None:
    assert diagnose(judge_run(Echo(), never_right(), [(text(12), 2)])) == ()
    assert judge_run(Echo(), never_right(), [(text(2), 1)]).samples == 0


def test_text_that_repeats_one_token_is_no_sign() -> None:
    assert diagnose(judge_run(Echo(), constant(), [([4] * 50, 4)])) == ()


def constant() -> DraftHeads:
    heads = never_right()
    assert heads.lm_head is not None
    heads.lm_head[:, 4] = 9.0
    return heads


def continue_text(prompt: tuple[int, ...]) -> list[int]:
    return text(40, start=prompt[-1])[1:]


def test_heads_that_look_wrong_are_a_warning_with_row_cause_and_place(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        check_heads(Echo(), never_right(), "some/heads", [(0,), (5,)], continue_text)
        (record,) = caplog.records

    assert record.levelno == logging.WARNING
    assert "some/heads" in record.message and "0.00, 0.00, 0.00" in record.message
    assert self_test.MISREAD in record.message


def test_heads_that_look_well_are_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        check = check_heads(Echo(), heads_that_guess(lambda k: k + 1), "some/heads", [(0,), (5,)], continue_text)

    assert check is not None and check.own == (1.0, 1.0, 1.0)
    assert {record.levelno for record in caplog.records} == {logging.INFO}


def test_a_model_that_says_next_to_nothing_is_not_judged_by(caplog: pytest.LogCaptureFixture) -> None:
    assert check_heads(Echo(), never_right(), "some/heads", [(0,)], lambda prompt: [1, 2]) is None
    assert caplog.records == []


def test_a_trial_that_fails_is_said_and_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def write(prompt: tuple[int, ...]) -> list[int]:
        raise EngineError("the device is gone")

    assert check_heads(Echo(), never_right(), "some/heads", [(0,)], write) is None
    assert "could not be tried out: the device is gone" in caplog.text


def test_a_slow_device_writes_less() -> None:
    assert run_length(0.0) == run_length(0.001) == 64
    assert 16 <= run_length(0.2) < 64
    assert run_length(9.0) == 16


def test_prompts_are_chats_where_there_is_a_template_and_never_longer_than_the_room(tmp_path: Path) -> None:
    plain = saved_base(tmp_path / "plain")

    assert len(list(trial_prompts("demo", 100))) == 2
    assert len(list(trial_prompts(str(plain), 100))) == 2
    assert list(trial_prompts("demo", 3)) == []
    assert list(trial_prompts(str(tmp_path), 100)) == []


def test_the_engine_tries_heads_once_and_leaves_nothing_in_the_cache(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = saved_base(tmp_path / "base", eos_token_id=None)
    save_heads(tmp_path / "heads", random_heads(base().lm_head, 2), "tiny")
    config = EngineConfig(str(model), str(tmp_path / "heads"), device="cpu", num_threads=1)

    with caplog.at_level(logging.INFO, logger="medusa_core.self_test"):
        engine = Engine.load(config)

    assert engine.info.head_check is not None and len(engine.info.head_check) == 2
    assert engine._cache.tokens == []
    assert caplog.text.count("greedy tokens") == 1


def test_the_trial_can_be_left_out_and_needs_a_tokenizer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("llama")
    model.save_pretrained(tmp_path)
    save_heads(tmp_path / "heads", random_heads(model.get_output_embeddings().weight.detach(), 2), "tiny")  # type: ignore[union-attr]
    for wanted in (True, False):
        config = EngineConfig(str(tmp_path), device="cpu", num_threads=1, self_test=wanted)
        assert Engine.load(config).info.head_check is None
    assert "expect no speed-up" not in caplog.text

from pathlib import Path

import pytest

from benchmarks.through_http.comparing import ask_in_turn, bytes_per_step, copy_bandwidth
from medusa_core.evaluation.prompts import Prompt
from tests.benchmarks.cast import NotingPeer
from tests.cast import GREEDY, tiny_model

PROMPTS = [Prompt(line, "text", (line,)) for line in (3, 5)]


def test_all_peers_answer_a_prompt_before_the_next_and_take_turns_to_begin() -> None:
    asked: list[tuple[str, int]] = []
    peers = {name: NotingPeer(name, asked) for name in ("a", "b")}

    answers = ask_in_turn(peers, PROMPTS, GREEDY, 8, 2, lambda stage: None)

    warm_ups = [(name, line) for name in "ab" for line in (3, 5)]
    assert asked[:4] == warm_ups
    assert asked[4:] == [("a", 3), ("b", 3), ("b", 5), ("a", 5), ("b", 3), ("a", 3), ("a", 5), ("b", 5)]
    assert {name: {line: len(found) for line, found in own.items()} for name, own in answers.items()} == {
        "a": {3: 2, 5: 2},
        "b": {3: 2, 5: 2},
    }


@pytest.mark.parametrize("is_tied", [True, False])
def test_a_step_reads_every_linear_weight_once_and_the_rows_of_the_cache(tmp_path: Path, is_tied: bool) -> None:
    model = tiny_model("llama", tie_word_embeddings=is_tied)
    model.save_pretrained(tmp_path)
    config = model.config
    total = sum(weight.numel() for weight in model.parameters())
    table = 0 if is_tied else config.vocab_size * config.hidden_size
    row = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim

    assert bytes_per_step(tmp_path, 4, 0.0) == 4 * (total - table)
    assert bytes_per_step(tmp_path, 4, 10.0) - bytes_per_step(tmp_path, 4, 0.0) == 40 * row


def test_copying_takes_time() -> None:
    assert 0.0 < copy_bandwidth(1 << 16) < float("inf")

import gc
import json

import pytest
import torch

from benchmarks.gpu import main
from benchmarks.on_gpu.attention import attention_ms, make_case
from benchmarks.on_gpu.demo import parting
from benchmarks.on_gpu.parts import PARTS, SHARES
from medusa_core.evaluation.answers import Answer


@pytest.fixture(scope="module", autouse=True)
def nothing_left_to_collect() -> None:
    """The benchmark collects garbage 40 times, and would look through all that other tests have left each time."""
    gc.collect()
    gc.freeze()


def test_every_part_runs_tiny_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--smoke"])
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    found = document["parts"]

    assert document["smoke"] and document["machine"]["torch"] == torch.__version__
    assert list(found) == list(PARTS)
    assert all(found[name]["left_out"] == [] for name in found)
    assert {"1", "4"} == found["nodes"]["tiny"].keys()
    assert "projected_speed_up" in found["nodes"]["tiny"]["1"]
    assert found["context"]["tiny"]["attention_kernels"].keys() == {"bucketed", "device_length"}
    assert found["context"]["tiny"]["by_context"]["300"].keys() >= {"bucketed, 4", "device_length, 4"}
    assert found["prompts"]["tiny"]["32"].keys() == {"ordinary, ms", "recorded, ms"}
    assert found["compiled"]["tiny"]["fused, 4 nodes"]["is_compiled"]
    assert found["heads"]["tiny"]["int8"]["step_ms"] is not None
    assert found["demo"]["float32 eager plain against float32 eager tree"] == []


def test_what_there_is_no_time_for_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--smoke", "--seconds", "0"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["parts"]

    assert "tiny, 4 nodes behind 300" in found["attention"]["left_out"]
    assert all(found[name]["left_out"] != [] for name in found)


def test_the_parts_share_the_whole_time() -> None:
    assert SHARES.keys() == PARTS.keys()
    assert sum(SHARES.values()) == pytest.approx(1.0)


def test_attention_by_length_is_what_is_in_use_gives() -> None:
    case = make_case(4, 2, 5, 30, 64, torch.device("cpu"))
    found = attention_ms(case, 1)

    assert isinstance(off := found["prefix and tree, off by"], float) and off < 1e-5


def test_answers_part_at_the_first_token_that_differs() -> None:
    def answer(*tokens: int) -> Answer:
        return Answer(tokens, 1.0, (), {})

    ones = [answer(1, 2, 3), answer(1, 2, 3), answer(1, 2)]

    assert parting(ones, [answer(1, 2, 3), answer(1, 5, 3), answer(1, 2, 3)]) == [1, 2]

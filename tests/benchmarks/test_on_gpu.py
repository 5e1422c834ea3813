import json

import pytest
import torch
import torch.nn.functional as F

from benchmarks.gpu import main
from benchmarks.on_gpu.attention import dense_with_sums, merged
from benchmarks.on_gpu.demo import parting
from benchmarks.on_gpu.parts import PARTS, SHARES
from medusa_core.evaluation.answers import Answer


def test_every_part_runs_tiny_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--smoke"])
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    found = document["parts"]

    assert document["smoke"] and document["machine"]["torch"] == torch.__version__
    assert list(found) == list(PARTS)
    assert all(found[name]["left_out"] == [] for name in found)
    assert {"1", "4"} == found["nodes"]["tiny"].keys()
    assert "projected_speed_up" in found["nodes"]["tiny"]["1"]
    assert found["context"]["tiny"]["attention_kernels"]
    assert found["compiled"]["tiny"]["4"]["step_ms"] > 0.0
    assert found["demo"]["float32 eager plain against float32 eager tree"] == []


def test_what_there_is_no_time_for_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--smoke", "--seconds", "0"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["parts"]

    assert "tiny, 4 nodes behind 300" in found["attention"]["left_out"]
    assert all(found[name]["left_out"] != [] for name in found)


def test_the_parts_share_the_whole_time() -> None:
    assert SHARES.keys() == PARTS.keys()
    assert sum(SHARES.values()) == pytest.approx(1.0)


def test_attention_over_two_sets_of_rows_merges_to_attention_over_both() -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(8, 5, 16, generator=generator)
    keys, values = torch.randn(2, 2, 40, 16, generator=generator)
    allowed = torch.rand(5, 40, generator=generator) < 0.6
    allowed[:, ::20] = True  # each row sees something of both parts
    prefix = dense_with_sums(query, keys[:, :30], values[:, :30], allowed[:, :30])
    tree = dense_with_sums(query, keys[:, 30:], values[:, 30:], allowed[:, 30:])
    whole = F.scaled_dot_product_attention(query[None], keys[None], values[None], allowed, enable_gqa=True)[0]

    assert torch.allclose(merged(prefix, tree), whole, atol=1e-5)


def test_answers_part_at_the_first_token_that_differs() -> None:
    def answer(*tokens: int) -> Answer:
        return Answer(tokens, 1.0, (), {})

    ones = [answer(1, 2, 3), answer(1, 2, 3), answer(1, 2)]

    assert parting(ones, [answer(1, 2, 3), answer(1, 5, 3), answer(1, 2, 3)]) == [1, 2]

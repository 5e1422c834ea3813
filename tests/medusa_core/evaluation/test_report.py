import json
from pathlib import Path

import pytest

from medusa_core.errors import CheckpointError
from medusa_core.evaluation.report import BenchReport, PeerKind, PeerResult, write_report
from medusa_core.evaluation.spread import Spread


def result(peer: str, kind: PeerKind, nodes: int | None, speed: float, differing: int = 0) -> PeerResult:
    has_steps = kind != "transformers"
    return PeerResult(
        peer=peer,
        kind=kind,
        nodes=nodes,
        tokens_per_second=Spread(100 * speed, 90 * speed, 110 * speed),
        tokens_per_step=1.5 * speed if has_steps else None,
        tokens_per_step_by_kind={},
        acceptance_length=0.5 if has_steps else None,
        accepted_by_source={"heads": 3},
        step_ms=10.0 if has_steps else None,
        step_ms_spread=Spread(10.0, 9.0, 11.0) if has_steps else None,
        overhead=1.2 if has_steps else None,
        over_plain=speed,
        over_generate=None,
        identity=1.0 if has_steps else None,
        differing=differing,
    )


def report(*peers: PeerResult) -> BenchReport:
    return BenchReport("tiny", None, "float32", {"chat": 2}, 0, 2, 16, 1, 0.0, {"cpu": "some"}, peers[0].peer, peers)


PLAIN, TREE = result("plain", "plain", 1, 1.0), result("dynamic N=8", "dynamic", 8, 1.8)


def test_the_document_is_json_and_counts_differing_answers_by_peer() -> None:
    document = json.loads(json.dumps(report(PLAIN, result("N=8", "dynamic", 8, 1.8, differing=2)).document()))

    assert document["answers_differing"] == {"N=8": 2}
    assert document["benchmark"] == "decode"
    assert document["peers"][1]["tokens_per_second"]["p10"] == pytest.approx(162.0)


def test_trees_are_drawn_and_what_has_no_tree_is_not(tmp_path: Path) -> None:
    write_report(report(PLAIN, TREE, result("transformers.generate", "transformers", None, 0.9)), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.json", "latency.png", "speed.png"]


def test_without_trees_there_is_nothing_to_draw(tmp_path: Path) -> None:
    write_report(report(PLAIN), tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]


def test_a_folder_that_is_gone_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot write to .*gone"):
        write_report(report(PLAIN), tmp_path / "gone")

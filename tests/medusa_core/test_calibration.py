import json
from itertools import product
from pathlib import Path

import pytest

from medusa_core.calibration import Calibration, LatencyCurve, Place, choose_nodes
from medusa_core.config import model_location
from medusa_core.errors import CheckpointError

HERE = Place("a processor", "float32", 1, "none")
CURVE = LatencyCurve(HERE, 256, {4: 0.003, 1: 0.002, 2: 0.0021})
TWO_HEADS = Calibration(
    accuracies=((0.6, 0.2), (0.4, 0.1)),
    samples=(100, 99),
    temperatures=(1.3, 1.7),
    latency=(CURVE,),
    trees={4: ((0,), (0, 0), (1,))},
    tokens_per_step={1: 1.0, 4: 1.9},
)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    TWO_HEADS.save(tmp_path / "calibration.json")

    assert Calibration.load(tmp_path / "calibration.json") == TWO_HEADS
    assert [path.name for path in tmp_path.iterdir()] == ["calibration.json"]


def test_what_only_one_machine_can_say_may_be_missing(tmp_path: Path) -> None:
    Calibration(((0.5,),), (10,), (1.0,)).save(tmp_path / "calibration.json")

    found = Calibration.load(tmp_path / "calibration.json")

    assert (found.latency, dict(found.trees), dict(found.tokens_per_step)) == ((), {}, {})


def test_the_shipped_calibration_is_read() -> None:
    path = Path(model_location("demo")) / "heads" / "calibration.json"

    assert Calibration.load(path).num_heads == 4


def test_an_unknown_field_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    TWO_HEADS.save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "accuracy": []}))

    with pytest.raises(CheckpointError, match="unknown field 'accuracy'"):
        Calibration.load(path)


def test_a_missing_field_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "calibration.json").write_text('{"accuracies": [[0.5]], "samples": [3]}')

    with pytest.raises(CheckpointError, match="lacks the field 'temperatures'"):
        Calibration.load(tmp_path / "calibration.json")


@pytest.mark.parametrize(
    "content",
    [
        "not json",
        "[]",
        '{"accuracies": 3, "samples": [1], "temperatures": [1]}',
        '{"accuracies": [[0.5]], "samples": [1], "temperatures": [1], "latency": [1]}',
        '{"accuracies": [[0.5]], "samples": [1], "temperatures": [1], "latency": [{"device": "a"}]}',
        '{"accuracies": [[0.5]], "samples": [1], "temperatures": [1], "tokens_per_step": [2]}',
        '{"accuracies": [[0.5]], "samples": [1], "temperatures": [1], "tokens_per_step": {"2": 0.5}}',
        '{"accuracies": [[0.5]], "samples": [1], "temperatures": [1], "trees": {"3": [[0], [0, 0]]}}',
        '{"accuracies": [[0.5]], "samples": [1], "temperatures": [1], "trees": {"3": [[0, 0]]}}',
        '{"accuracies": [[0.5]], "samples": [1], "temperatures": [1], "trees": {"2": [[0], [1]]}}',
        '{"accuracies": [[0.5]], "samples": [1], "temperatures": [1], "trees": {"3": [[0], [0]]}}',
        '{"accuracies": [[0.9, 0.9]], "samples": [1], "temperatures": [1]}',
        '{"accuracies": [[0.9]], "samples": [1], "temperatures": [0]}',
        '{"accuracies": [[0.9]], "samples": [1, 2], "temperatures": [1]}',
    ],
)
def test_a_malformed_file_is_a_checkpoint_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "calibration.json").write_text(content)

    with pytest.raises(CheckpointError):
        Calibration.load(tmp_path / "calibration.json")


def test_a_file_that_is_not_there_is_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        Calibration.load(tmp_path / "calibration.json")


def test_a_root_alone_emits_one_token_per_step() -> None:
    assert TWO_HEADS.expected_tokens_per_step(1) == 1.0


@pytest.mark.parametrize("num_nodes", [2, 3, 4, 5, 6, 7])
def test_the_expected_length_is_that_of_the_best_tree(num_nodes: int) -> None:
    one, two = TWO_HEADS.accuracies
    values = sorted([*one, *(a * b for a, b in product(one, two))], reverse=True)  # a child never exceeds its parent

    assert TWO_HEADS.expected_tokens_per_step(num_nodes) == pytest.approx(1.0 + sum(values[: num_nodes - 1]))


def test_heads_that_are_never_right_are_no_reason_to_fail() -> None:
    assert Calibration(((0.0, 0.0),), (5,), (1.0,)).expected_tokens_per_step(64) == 1.0


@pytest.mark.parametrize("num_nodes", [1, 2, 3, 4, 5, 6, 7])
def test_the_best_tree_is_worth_what_is_expected_of_it(num_nodes: int) -> None:
    paths = TWO_HEADS.best_tree(num_nodes)

    assert len(paths) == num_nodes - 1
    assert all(path[:-1] in {(), *paths} for path in paths)
    worth = 1.0 + sum(TWO_HEADS.probability(path) for path in paths)
    assert worth == pytest.approx(TWO_HEADS.expected_tokens_per_step(num_nodes))


def test_a_tree_holds_no_node_that_was_never_right() -> None:
    assert Calibration(((0.5, 0.0),), (5,), (1.0,)).best_tree(64) == ((0,),)


def test_a_stored_tree_comes_before_a_computed_one() -> None:
    assert TWO_HEADS.static_tree(4) == ((0,), (0, 0), (1,))
    assert TWO_HEADS.static_tree(3) == TWO_HEADS.best_tree(3)


def test_the_best_size_gives_most_tokens_per_second() -> None:
    # 1 / 2 ms, 1.9 / 3 ms: what was counted decides, and the size that was not counted is no candidate.
    assert TWO_HEADS.best_nodes(CURVE) == 4
    # 1 / 2 ms, 1.6 / 2.1 ms, 2.04 / 3 ms, as the accuracies let expect.
    alone = Calibration(TWO_HEADS.accuracies, TWO_HEADS.samples, TWO_HEADS.temperatures)
    assert alone.best_nodes(CURVE) == 2


def test_a_tree_that_costs_more_than_it_brings_is_a_root() -> None:
    assert TWO_HEADS.best_nodes(LatencyCurve(HERE, 256, {1: 0.001, 4: 0.01})) == 1


@pytest.mark.parametrize(
    "other",
    [
        Place("another processor", "float32", 1, "none"),
        Place("a processor", "bfloat16", 1, "none"),
        Place("a processor", "float32", 2, "none"),
        Place("a processor", "float32", 1, "int8"),
        Place("a processor", "float32", 1, "none", "fused, compiled"),
    ],
)
def test_seconds_count_only_where_they_were_measured(other: Place) -> None:
    assert TWO_HEADS.curve_at(HERE) == CURVE
    assert TWO_HEADS.curve_at(other) is None

    elsewhere = LatencyCurve(other, 256, {1: 0.5})
    both = TWO_HEADS.with_latency(elsewhere)
    assert (both.curve_at(HERE), both.curve_at(other)) == (CURVE, elsewhere)


def test_older_files_name_no_kernels_and_hold_greedy_steps(tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    TWO_HEADS.save(file)
    content = json.loads(file.read_text())
    for entry in content["latency"]:
        del entry["kernels"], entry["sampled"]
    file.write_text(json.dumps(content))

    assert Calibration.load(file) == TWO_HEADS


def test_a_place_may_have_a_curve_for_each_context_and_they_are_replaced_together() -> None:
    long, short = LatencyCurve(HERE, 4096, {1: 0.3}), LatencyCurve(HERE, 128, {1: 0.2})
    both = TWO_HEADS.with_latency(long, short)

    assert both.curves_at(HERE) == (short, long)
    assert both.curve_at(HERE) == short
    assert both.with_latency(CURVE).curves_at(HERE) == (CURVE,)


def test_the_size_of_trees_is_chosen_by_what_was_measured_here_and_said_with_its_reason() -> None:
    assert choose_nodes(TWO_HEADS, HERE, 8) == (
        4,
        "most tokens per second as measured on this device: 1.90 tokens per step of 3.00 ms",
    )


def test_latencies_of_another_machine_choose_nothing() -> None:
    nodes, reason = choose_nodes(TWO_HEADS, Place("a card", "bfloat16", None, "none"), 48)

    assert nodes == 48
    assert "were not measured here (a card, bfloat16, quantisation: none)" in reason


def test_without_any_latency_the_default_stands() -> None:
    for unmeasured in (None, Calibration(((0.5,),), (10,), (1.0,))):
        nodes, reason = choose_nodes(unmeasured, HERE, 8)
        assert nodes == 8
        assert "medusa calibrate" in reason


def test_a_new_measurement_replaces_the_old_one_of_the_same_place() -> None:
    again = LatencyCurve(HERE, 512, {1: 0.004})

    assert TWO_HEADS.with_latency(again).latency == (again,)


@pytest.mark.parametrize("seconds", [{}, {1: 0.0}, {0: 0.1}, {1: float("inf")}])
def test_a_curve_without_sense_is_refused(seconds: dict[int, float]) -> None:
    with pytest.raises(CheckpointError, match="positive seconds"):
        LatencyCurve(HERE, 256, seconds)


def test_a_calibration_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "calibration.json").mkdir()

    with pytest.raises(CheckpointError, match="cannot write"):
        TWO_HEADS.save(tmp_path / "calibration.json")
    assert [path.name for path in tmp_path.iterdir()] == ["calibration.json"]


def test_a_calibration_cannot_be_changed_through_its_parts() -> None:
    for part in (CURVE.seconds, TWO_HEADS.trees, TWO_HEADS.tokens_per_step):
        with pytest.raises(TypeError):
            part[1] = 0.0  # type: ignore[index]

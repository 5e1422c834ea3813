import json
from dataclasses import replace
from pathlib import Path

import pytest

from medusa_core.calibration import Calibration, LatencyCurve, Place
from medusa_core.config import EngineConfig
from medusa_core.engine import Engine
from medusa_core.errors import ConfigurationError
from medusa_core.training.measure import CalibratePlan, calibrate, prompt_of
from medusa_core.training.records import read_records
from tests.medusa_core.evaluation.cast import CALIBRATION, saved_model, saved_prompts
from tests.medusa_core.training.cast import PLAIN_TEMPLATE, tokenizer

QUICK = CalibratePlan(nodes=(1, 2, 6), max_tokens=12, context=32, rounds=1)


def config(folder: Path) -> EngineConfig:
    return EngineConfig(model=str(folder), num_threads=1)


def test_heads_are_judged_timed_and_counted_and_the_engine_takes_the_best_size(tmp_path: Path) -> None:
    folder = saved_model(tmp_path / "model", calibration=None)

    found = calibrate(config(folder), saved_prompts(tmp_path), QUICK)

    stored = Calibration.load(folder / "heads" / "calibration.json")
    assert found.path == folder / "heads" / "calibration.json"
    assert stored.num_heads == 3
    assert all(count > 0 for count in stored.samples)
    assert list(stored.tokens_per_step) == list(found.curve.seconds) == [1, 2, 6]
    assert stored.tokens_per_step[1] == 1.0
    assert sorted(stored.trees) == [2, 6]
    assert found.nodes == stored.best_nodes(found.curve)
    info = Engine.load(config(folder)).info
    assert (info.tree_nodes, "measured on this device" in info.tree_reason) == (found.nodes, True)


def test_steps_are_also_timed_behind_a_long_context_and_with_sampling(tmp_path: Path) -> None:
    folder = saved_model(tmp_path / "model", calibration=None)
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**described, "max_position_embeddings": 1024}))

    found = calibrate(config(folder), saved_prompts(tmp_path), QUICK)

    curves = found.calibration.curves_at(found.curve.place)
    assert curves[0] == found.curve
    assert [list(curve.seconds) for curve in curves] == [[1, 2, 6]] * 3
    assert [(curve.context, curve.is_sampled) for curve in curves[::2]] == [(32, False), (256, True)]
    assert curves[1].context > 900


def test_where_the_data_has_no_answer_the_models_own_are_judged(tmp_path: Path) -> None:
    folder, data = saved_model(tmp_path / "model", calibration=None), saved_prompts(tmp_path)

    assert calibrate(config(folder), data, QUICK).own_answers == 1  # one conversation ends with a question
    assert calibrate(config(folder), data, replace(QUICK, own_answers=True)).own_answers == 3


def test_a_calibration_of_fewer_heads_is_no_obstacle_to_a_new_one(tmp_path: Path) -> None:
    folder = saved_model(tmp_path / "model", Calibration(((0.5,),), (9,), (1.0,)))

    found = calibrate(config(folder), saved_prompts(tmp_path), replace(QUICK, own_answers=True))

    assert Calibration.load(found.path).num_heads == 3


def test_what_other_machines_measured_is_kept(tmp_path: Path) -> None:
    elsewhere = LatencyCurve(Place("a card", "bfloat16", None, "none"), 256, {1: 0.01, 64: 0.011})
    folder = saved_model(tmp_path / "model", CALIBRATION.with_latency(elsewhere))

    stored = calibrate(config(folder), saved_prompts(tmp_path), QUICK).calibration

    assert stored.curve_at(elsewhere.place) == elsewhere
    assert len(stored.latency) == 3  # greedy and sampled


def test_pictures_are_drawn_of_what_was_found(tmp_path: Path) -> None:
    folder = saved_model(tmp_path / "model", calibration=None)

    calibrate(config(folder), saved_prompts(tmp_path), QUICK, pictures=tmp_path / "pictures")

    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == ["accuracy.png", "latency.png", "speed.png", "tree.png"]


def test_a_model_without_heads_and_heads_on_a_hub_are_refused(tmp_path: Path) -> None:
    folder, data = saved_model(tmp_path / "model"), saved_prompts(tmp_path)

    with pytest.raises(ConfigurationError, match=r"are on a hub.*medusa convert"):
        calibrate(replace(config(folder), heads="some/heads"), data, QUICK)
    (folder / "heads").rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError, match="has no draft heads"):
        calibrate(config(folder), data, QUICK)


def test_answers_too_short_for_the_last_head_are_refused_and_leave_the_old_calibration(tmp_path: Path) -> None:
    folder, data = saved_model(tmp_path / "model"), tmp_path / "short.jsonl"
    data.write_text('{"text": "a"}\n')

    with pytest.raises(ConfigurationError, match="no answer long enough for 3 heads"):
        calibrate(config(folder), data, QUICK)
    assert Calibration.load(folder / "heads" / "calibration.json") == CALIBRATION


def test_the_last_answer_of_a_record_is_no_part_of_its_prompt(tmp_path: Path) -> None:
    own = tokenizer(PLAIN_TEMPLATE)
    with_answer, without, text = (prompt_of(record, own) for record in read_records(saved_prompts(tmp_path)))

    assert with_answer.tokens == without.tokens
    assert [prompt.kind for prompt in (with_answer, without, text)] == ["chat", "chat", "text"]
    assert own.decode(list(without.tokens)).endswith("assistant\n")


@pytest.mark.parametrize("wrong", [{"nodes": (2, 4)}, {"max_tokens": 1}, {"records": 0}, {"rounds": 0}])
def test_a_plan_without_sense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        CalibratePlan(**wrong)  # type: ignore[arg-type]

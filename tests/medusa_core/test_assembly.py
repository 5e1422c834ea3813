import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from medusa_core.calibration import Calibration, LatencyCurve, Place
from medusa_core.checkpoints import save_heads
from medusa_core.config import EngineConfig, SpeculationParams
from medusa_core.engine import Engine
from medusa_core.errors import CheckpointError, ConfigurationError
from medusa_core.generation import GenerationRequest
from tests.cast import GREEDY, MockBackbone, make_engine, random_heads, run, tiny_model

PROMPT = (3, 1, 4, 1, 5, 9, 2, 6)
PLAIN = run(make_engine(MockBackbone()), PROMPT, max_tokens=60)


def test_loading_finds_heads_and_calibration_beside_the_model(tmp_path: Path) -> None:
    folder = tmp_path
    model = tiny_model("llama")
    model.save_pretrained(folder)
    heads = random_heads(model.get_output_embeddings().weight.detach(), 3)
    save_heads(folder / "heads", heads, str(folder))
    stages: list[tuple[str, float]] = []

    engine = Engine.load(EngineConfig(model=str(folder)), lambda stage, share: stages.append((stage, share)))

    assert (engine.info.num_heads, engine.info.tree_nodes, engine.info.device) == (3, 8, "cpu")
    assert engine.info.eos_token_ids == (2,)
    assert [share for _, share in stages] == sorted(share for _, share in stages) and stages[-1] == ("ready", 1.0)
    speculation = SpeculationParams(mode="off")
    plain = run(engine, PROMPT, max_tokens=30, ignore_eos=True, speculation=speculation)
    assert run(engine, PROMPT, max_tokens=30, ignore_eos=True) == plain


def calibrated_folder(folder: Path) -> Path:
    """A tiny model whose three heads are calibrated for a place that is nowhere."""
    model = tiny_model("llama")
    model.save_pretrained(folder)
    save_heads(folder / "heads", random_heads(model.get_output_embeddings().weight.detach(), 3), str(folder))
    calibration = Calibration(((0.5, 0.2),) * 3, (9,) * 3, (1.0,) * 3)
    nowhere = LatencyCurve(Place("nowhere", "float32", 1, "none"), 64, {1: 1.0, 2: 9.0})
    calibration.with_latency(nowhere).save(folder / "heads" / "calibration.json")
    return folder


def test_a_model_that_carries_heads_may_be_named_as_their_source(tmp_path: Path) -> None:
    calibrated_folder(tmp_path)

    engine = Engine.load(EngineConfig(model=str(tmp_path), heads=str(tmp_path)))

    assert engine.info.heads == str(tmp_path / "heads")
    assert engine.info.calibration is not None


def test_the_number_of_nodes_is_the_best_one_measured_on_this_very_device(tmp_path: Path) -> None:
    folder = calibrated_folder(tmp_path)
    engine = Engine.load(EngineConfig(model=str(folder)))
    assert (engine.info.tree_nodes, engine.info.calibration is not None) == (8, True)
    assert "not measured here" in engine.info.tree_reason
    assert engine.info.calibration is not None
    measured = engine.info.calibration.with_latency(LatencyCurve(engine.info.place, 64, {1: 0.1, 5: 0.11, 16: 0.9}))

    again = Engine.load(EngineConfig(model=str(folder)), calibration=measured)

    assert (again.info.tree_nodes, again.info.calibration) == (5, measured)
    assert "measured on this device" in again.info.tree_reason
    assert Engine.load(EngineConfig(model=str(folder), tree_nodes=3), calibration=measured).info.tree_nodes == 3


def test_seconds_of_other_kernels_choose_nothing(tmp_path: Path) -> None:
    own = EngineConfig(model=str(calibrated_folder(tmp_path)), fuse=False)
    place, calibration = Engine.load(own).info.place, Calibration(((0.5, 0.2),) * 3, (9,) * 3, (1.0,) * 3)
    measured = calibration.with_latency(LatencyCurve(place, 64, {1: 0.1, 5: 0.11, 16: 0.9}))

    fused = Engine.load(replace(own, fuse=True, compile=False), calibration=measured)

    assert (place.kernels, fused.info.place.kernels) == ("own code, torch's", "fused, torch's")
    assert Engine.load(own, calibration=measured).info.tree_nodes == 5
    assert "not measured here" in fused.info.tree_reason and "kernels: fused, torch's" in fused.info.tree_reason


@pytest.mark.parametrize(
    "options",
    [{"tree_nodes": 6}, {"tree": "static"}, {"heads": None, "prompt_lookup": False, "recycling": False}],
    ids=["asked for", "static", "nobody drafts"],
)
def test_sizes_are_chosen_from_unless_one_is_fixed_or_nobody_drafts(tmp_path: Path, options: dict[str, Any]) -> None:
    folder = calibrated_folder(tmp_path)
    config = EngineConfig(model=str(folder), heads=str(folder / "heads"), self_test=False)
    if "heads" in options:
        shutil.rmtree(folder / "heads")

    assert Engine.load(replace(config, **options)).info.tree_sizes == ()
    if "heads" not in options:
        assert Engine.load(config).info.tree_sizes[0] == 1


def test_options_for_heads_are_named_where_there_are_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = calibrated_folder(tmp_path)
    config = EngineConfig(model=str(folder), tree="static", tree_nodes=4, draft_vocabulary=9, self_test=False)
    Engine.load(config)
    assert "there are none" not in caplog.text
    shutil.rmtree(folder / "heads")

    Engine.load(config)

    assert "tree is static, which concerns heads alone" in caplog.text
    assert "draft_vocabulary is 9, which concerns heads alone" in caplog.text


def test_a_static_tree_has_one_shape_and_changes_no_token(tmp_path: Path) -> None:
    engine = Engine.load(EngineConfig(model=str(calibrated_folder(tmp_path)), tree="static", tree_nodes=6))
    plain = run(engine, PROMPT, max_tokens=20, ignore_eos=True, speculation=SpeculationParams(mode="off"))

    found = list(engine.generate(GenerationRequest(PROMPT, GREEDY, max_tokens=20, ignore_eos=True)))

    assert [token for delta in found for token in delta.tokens] == plain
    assert {tuple(delta.step.drafted.items()) for delta in found if delta.step is not None} == {(("heads", 5),)}


def test_a_static_tree_needs_a_calibration(tmp_path: Path) -> None:
    folder = calibrated_folder(tmp_path)
    (folder / "heads" / "calibration.json").unlink()

    with pytest.raises(ConfigurationError, match="run `medusa calibrate`"):
        Engine.load(EngineConfig(model=str(folder), tree="static"))


def test_a_calibration_of_fewer_heads_is_refused(tmp_path: Path) -> None:
    folder = calibrated_folder(tmp_path)
    Calibration(((0.5,),), (9,), (1.0,)).save(folder / "heads" / "calibration.json")

    with pytest.raises(CheckpointError, match="knows 1 heads, there are 3"):
        Engine.load(EngineConfig(model=str(folder)))


def test_heads_deeper_than_max_depth_are_refused_at_load(tmp_path: Path) -> None:
    folder = tmp_path
    model = tiny_model("llama")
    model.save_pretrained(folder)
    save_heads(folder / "heads", random_heads(model.get_output_embeddings().weight.detach(), 3), "base")

    with pytest.raises(ConfigurationError, match="max_depth is 2, the heads reach 3 deep; raise it"):
        Engine.load(EngineConfig(model=str(folder), max_depth=2))


def test_the_worker_leaves_a_core_to_the_server_unless_it_is_told_how_many_threads_to_take(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    before = torch.get_num_threads()

    chosen = Engine.load(EngineConfig(model=str(tmp_path))).info.place.threads
    told = Engine.load(EngineConfig(model=str(tmp_path), num_threads=2)).info.place.threads
    torch.set_num_threads(before)

    assert chosen is not None and 1 <= chosen <= max(1, (os.cpu_count() or 1) - 1)
    assert told == 2


def test_heads_may_be_held_to_the_most_frequent_tokens_and_the_end(tmp_path: Path) -> None:
    folder = calibrated_folder(tmp_path)
    whole = Engine.load(EngineConfig(model=str(folder)))

    cut = Engine.load(EngineConfig(model=str(folder), draft_vocabulary=1, prompt_lookup=False, recycling=False))
    found = list(cut.generate(GenerationRequest(PROMPT, GREEDY, max_tokens=30, ignore_eos=True)))

    drafted = max(sum(delta.step.drafted.values()) for delta in found if delta.step is not None)
    assert [token for delta in found for token in delta.tokens] == run(whole, PROMPT, max_tokens=30, ignore_eos=True)
    assert drafted < 15, "three heads with two tokens each have no more paths"


def test_steps_are_compiled_only_where_they_are_recorded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = calibrated_folder(tmp_path)
    engine = Engine.load(EngineConfig(str(folder), device="cpu", compile_steps=True, self_test=False))

    assert "steps are not compiled" in caplog.text
    assert "inductor" not in str(engine.info.place.kernels)


@pytest.mark.parametrize("int8_heads", ["on", "off"])
def test_heads_in_int8_or_not_change_no_token(tmp_path: Path, int8_heads: Any) -> None:
    folder = calibrated_folder(tmp_path)
    plain, own = (
        Engine.load(EngineConfig(str(folder), device="cpu", self_test=False, tree_nodes=nodes, int8_heads=int8_heads))
        for nodes in (1, 8)
    )

    assert run(own, [3, 4, 5], max_tokens=12) == run(plain, [3, 4, 5], max_tokens=12)

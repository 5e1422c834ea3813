import json
from dataclasses import replace
from pathlib import Path

import pytest

from medusa_core.errors import ConfigurationError, UnsupportedModel
from medusa_core.training.plan import JointPlan
from medusa_core.training.refusals import refuse_lost_run, unmeasured
from tests.medusa_core.training.cast import saved_base

JOINT = JointPlan()
WHOLE = replace(JOINT, adapter_rank=None, self_distilled=False)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved_base(tmp_path / "model")


def change(model: Path, **values: object) -> None:
    path = model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("joint", [replace(JOINT, merge=True), WHOLE], ids=["merged", "whole base"])
def test_quantised_weights_cannot_be_written_changed(tmp_path: Path, model: Path, joint: JointPlan) -> None:
    with pytest.raises(ConfigurationError, match="leave --quantize out"):
        refuse_lost_run(str(model), "int8", False, joint, tmp_path / "out", 1)
    refuse_lost_run(str(model), "int8", False, JOINT, tmp_path / "out", 1)
    refuse_lost_run(str(model), "none", False, joint, tmp_path / "out", 1)


def test_an_adapter_for_weights_that_are_stored_quantised_is_refused(tmp_path: Path, model: Path) -> None:
    change(model, quantization_config={"quant_method": "fp8"})

    with pytest.raises(ConfigurationError, match="the base as it was before"):
        refuse_lost_run(str(model), "none", False, JOINT, tmp_path / "out", 1)
    refuse_lost_run(str(model), "none", False, None, tmp_path / "out", 1)


def test_a_model_that_no_tree_can_be_decoded_with_gets_no_heads(tmp_path: Path, model: Path) -> None:
    change(model, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0})

    with pytest.raises(UnsupportedModel, match="dynamic"):
        refuse_lost_run(str(model), "none", False, None, tmp_path / "out", 1)


def test_several_processes_do_not_share_one_spread_model(tmp_path: Path, model: Path) -> None:
    with pytest.raises(ConfigurationError, match="leave --spread out"):
        refuse_lost_run(str(model), "none", True, None, tmp_path / "out", 2)


def test_the_folder_of_a_model_is_not_written_over(tmp_path: Path, model: Path) -> None:
    other = saved_base(tmp_path / "other")

    for joint in (None, JOINT, replace(JOINT, merge=True)):
        with pytest.raises(ConfigurationError, match="holds the base model"):
            refuse_lost_run(str(model), "none", False, joint, model, 1)
    with pytest.raises(ConfigurationError, match=r"name another folder, such as '.*heads'"):
        refuse_lost_run(str(model), "none", False, None, other, 1)
    refuse_lost_run(str(model), "none", False, replace(JOINT, merge=True), other, 1)
    refuse_lost_run(str(model), "none", False, None, model / "heads", 1)


def test_what_the_engine_cannot_load_is_not_measured() -> None:
    assert (
        unmeasured("none", False, True) is unmeasured("int8", False, True) is unmeasured("bnb4", False, False) is None
    )
    assert "bnb4" in str(unmeasured("bnb4", False, True))
    assert "one device" in str(unmeasured("none", True, False))

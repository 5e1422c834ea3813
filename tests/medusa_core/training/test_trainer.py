import json
import math
import os
import resource
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Phi3Config, Phi3ForCausalLM

from medusa_core.adapters import find_adapter
from medusa_core.calibration import Calibration
from medusa_core.checkpoints import find_heads, load_heads
from medusa_core.errors import CheckpointError, ConfigurationError, QualityLost
from medusa_core.training.plan import JointPlan, TrainPlan
from medusa_core.training.trainer import BaseOptions, Trained, train
from tests.medusa_core.training.cast import base, saved_base, tokenizer

ROOT = Path(__file__).parents[3]
PLAN = TrainPlan(
    num_heads=2,
    epochs=2,
    rows_per_pass=2,
    passes_per_step=2,
    warmup_steps=2,
    learning_rate=1e-2,
    held_out_percent=30.0,
    max_length=64,
)
JOINT = JointPlan(adapter_rank=2, adapter_dropout=0.0, max_perplexity_percent=50.0)


def trained(model: Path, data: Path, out: Path, plan: TrainPlan = PLAN, joint: JointPlan | None = None) -> Trained:
    """What one process alone ends with; nothing is measured through the engine."""
    found = train(BaseOptions(str(model), "cpu"), data, out, plan, joint)
    assert found is not None, "it leads"
    return found


def texts(folder: Path, count: int = 30) -> Path:
    data = folder / "data.jsonl"
    lines = [{"text": f"def dedent{n}(text):\n    return text.strip({n})\n"} for n in range(count)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return data


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved_base(tmp_path / "model")


def test_heads_and_calibration_are_written_and_nothing_is_left_over(tmp_path: Path, model: Path) -> None:
    found = trained(model, texts(tmp_path), tmp_path / "heads")

    assert Calibration.load(tmp_path / "heads" / "calibration.json").samples == found.calibration.samples
    assert load_heads(tmp_path / "heads", base().lm_head).config.num_heads == 2
    assert found.heads == tmp_path / "heads"
    assert (found.report.served_with, found.report.perplexity, found.report.speed) == (str(model), None, None)
    assert not (tmp_path / "heads" / "run").exists()
    assert not list((tmp_path / "heads").glob("*.partial"))


@pytest.mark.parametrize("rank", [None, 4])
def test_the_same_command_gives_the_same_heads(tmp_path: Path, model: Path, rank: int | None) -> None:
    data = texts(tmp_path)
    for name in ("a", "b"):
        trained(model, data, tmp_path / name, replace(PLAN, lm_head_rank=rank))

    first, second = (load_heads(tmp_path / name, base().lm_head).state_dict() for name in ("a", "b"))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_medusa2_writes_heads_with_an_adapter_beside_them(tmp_path: Path, model: Path) -> None:
    found = trained(model, texts(tmp_path), tmp_path / "out", PLAN, JOINT)

    assert find_adapter(tmp_path / "out") == tmp_path / "out" / "adapter"
    assert load_heads(tmp_path / "out", base().lm_head).config.num_heads == 2
    assert found.report.perplexity is not None
    assert json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())[
        "base_model_name_or_path"
    ] == str(model)


def test_heads_trained_on_the_plain_base_are_not_left_beside_an_older_adapter(tmp_path: Path, model: Path) -> None:
    data, out = texts(tmp_path), tmp_path / "out"
    trained(model, data, out, PLAN, JOINT)

    trained(model, data, out)

    assert find_adapter(out) is None


def test_medusa2_writes_a_whole_model_when_asked_to_merge(tmp_path: Path, model: Path) -> None:
    found = trained(model, texts(tmp_path), tmp_path / "out", PLAN, replace(JOINT, merge=True))

    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert not any("lora" in name for name, _ in merged.named_parameters())
    assert find_heads(str(tmp_path / "out")) == found.heads == tmp_path / "out" / "heads"
    assert found.report.served_with == str(tmp_path / "out")
    assert find_adapter(found.heads) is None


def test_a_merged_model_keeps_both_sets_of_rope_factors(tmp_path: Path, model: Path) -> None:
    own = tokenizer()
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 32}
    config = Phi3Config(
        vocab_size=len(own),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=64,
        original_max_position_embeddings=32,
        rope_parameters={"rope_type": "longrope", "rope_theta": 10_000.0, **factors},
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    Phi3ForCausalLM(config).save_pretrained(model)

    trained(model, texts(tmp_path), tmp_path / "out", PLAN, replace(JOINT, merge=True))

    before, after = (json.loads((folder / "config.json").read_text()) for folder in (model, tmp_path / "out"))
    assert after["rope_parameters"] == before["rope_parameters"]


def test_a_base_that_would_lose_too_much_is_not_written_and_a_higher_limit_goes_on(tmp_path: Path, model: Path) -> None:
    data, out = texts(tmp_path), tmp_path / "out"
    strict = replace(JOINT, max_perplexity_percent=-1000.0)

    with pytest.raises(QualityLost, match="raise --max-perplexity-percent"):
        trained(model, data, out, PLAN, strict)
    assert sorted(file.name for file in out.iterdir()) == ["run"]

    trained(model, data, out, PLAN, JOINT)
    assert (out / "adapter").is_dir()


def test_another_joint_rate_needs_no_other_first_stage(tmp_path: Path, model: Path) -> None:
    data, out = texts(tmp_path), tmp_path / "out"
    with pytest.raises(QualityLost):
        trained(model, data, out, PLAN, replace(JOINT, max_perplexity_percent=-1000.0))
    first_stage = (out / "run" / "heads" / "training_state.pt").stat().st_mtime_ns
    gentler = replace(JOINT, learning_rate=1e-5)

    with pytest.raises(ConfigurationError, match=r"joint/training_state.pt' belongs to a run with another plan"):
        trained(model, data, out, PLAN, gentler)
    (out / "run" / "joint" / "training_state.pt").unlink()
    with pytest.raises(QualityLost):
        trained(model, data, out, PLAN, replace(gentler, max_perplexity_percent=-1000.0))

    assert (out / "run" / "heads" / "training_state.pt").stat().st_mtime_ns == first_stage


@pytest.mark.parametrize("merge", [False, True], ids=["adapter", "merged"])
def test_a_disk_full_at_the_end_is_named_and_with_room_the_run_goes_on(
    tmp_path: Path, model: Path, merge: bool
) -> None:
    data, out, joint = texts(tmp_path), tmp_path / "out", replace(JOINT, merge=merge)
    with pytest.raises(QualityLost):  # trained to the end, and nothing written
        trained(model, data, out, PLAN, replace(joint, max_perplexity_percent=-1000.0))
    _, unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)

    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, unlimited))  # room for configurations, not for weights
    try:
        with pytest.raises(CheckpointError, match="cannot write"):
            trained(model, data, out, PLAN, joint)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (unlimited, unlimited))
    assert sorted(file.name for file in out.iterdir()) == ["run"]

    assert trained(model, data, out, PLAN, joint).report.data.examples > 0


def test_heads_that_stand_are_not_overwritten_by_a_base_that_lost_too_much(tmp_path: Path, model: Path) -> None:
    data, out = texts(tmp_path), tmp_path / "out"
    trained(model, data, out)
    before = (out / "medusa_lm_head.safetensors").read_bytes()

    with pytest.raises(QualityLost):
        # no number allows nothing
        trained(model, data, out, PLAN, replace(JOINT, max_perplexity_percent=math.nan))

    assert (out / "medusa_lm_head.safetensors").read_bytes() == before


def test_too_little_data_is_refused(tmp_path: Path, model: Path) -> None:
    with pytest.raises(ConfigurationError, match="give more data"):
        trained(model, texts(tmp_path, 1), tmp_path / "heads")


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path: Path, model: Path) -> None:
    own = tokenizer()
    own.add_tokens(["return text"])
    own.save_pretrained(model)

    with pytest.raises(ConfigurationError, match="that belong together"):
        trained(model, texts(tmp_path), tmp_path / "heads")


def test_answers_too_short_for_the_heads_are_refused(tmp_path: Path, model: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"text": f"def {n}"}) + "\n" for n in range(60)))

    with pytest.raises(ConfigurationError, match="long enough for 8 heads, which look 9 tokens ahead"):
        trained(model, data, tmp_path / "heads", replace(PLAN, num_heads=8))


LAUNCHED = """
import json, sys
from pathlib import Path
from medusa_core.training.plan import JointPlan, TrainPlan
from medusa_core.training.trainer import BaseOptions, Trained, train
plan, joint = json.loads(sys.argv[4]), json.loads(sys.argv[5])
base = BaseOptions(sys.argv[1], "cpu")
train(base, Path(sys.argv[2]), Path(sys.argv[3]), TrainPlan(**plan), JointPlan(**joint))
"""


def test_two_processes_train_as_one_does(tmp_path: Path, model: Path) -> None:
    data, plan = texts(tmp_path), replace(PLAN, lm_head_rank=4)  # which start at random
    trained(model, data, tmp_path / "one", plan, JOINT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = [str(model), str(data), str(tmp_path / "two"), json.dumps(asdict(plan)), json.dumps(asdict(JOINT))]
    launched = [
        subprocess.Popen(
            [sys.executable, "-c", LAUNCHED, *words],
            # what `accelerate launch` and torchrun tell their processes
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "RANK": rank,
                 "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
            stderr=subprocess.PIPE,
        )
        for rank in ("0", "1")
    ]  # fmt: skip
    said = [process.communicate(timeout=100)[1].decode() for process in launched]

    assert [process.returncode for process in launched] == [0, 0], said
    assert "training heads" in said[0]
    assert "training heads" not in said[1]  # one of them shows its progress
    one, two = (load_heads(tmp_path / name, base().lm_head) for name in ("one", "two"))
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[name], tensor, atol=1e-4, rtol=1e-3)
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("one", "two")]
    for figure in ("held_out_loss", "head_nats", "top_5"):
        assert reports[1]["held_out"][figure] == pytest.approx(reports[0]["held_out"][figure], rel=1e-3)
    assert reports[1]["perplexity"]["after"] == pytest.approx(reports[0]["perplexity"]["after"], rel=1e-3)
    adapters = [load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("one", "two")]
    for name, tensor in adapters[0].items():
        torch.testing.assert_close(adapters[1][name], tensor, atol=1e-3, rtol=1e-2)

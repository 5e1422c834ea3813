import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from medusa_core.checkpoints import load_heads, save_heads
from medusa_core.demo.package import assemble, export_model, round_heads
from medusa_core.heads import DraftHeads
from medusa_core.text import TextCodec
from tests.medusa_core.training.cast import base, tiny_llama, tokenizer


def test_an_exported_model_is_bf16_greedy_and_ends_at_both_ends(tmp_path: Path) -> None:
    own = tokenizer()
    export_model(tiny_llama(len(own)), own, tmp_path)

    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert generation["do_sample"] is False
    assert sorted(generation["eos_token_id"]) == [0, 2]
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    assert TextCodec.load(str(tmp_path)).has_chat_template


def test_rounded_heads_still_load_and_weigh_half(tmp_path: Path) -> None:
    save_heads(tmp_path, DraftHeads.from_base(base().lm_head, 2, shared_lm_head=False), "tiny")
    file = tmp_path / "medusa_lm_head.safetensors"
    before = file.stat().st_size

    round_heads(tmp_path)

    assert file.stat().st_size < 0.6 * before
    assert load_heads(tmp_path, base().lm_head).config.num_heads == 2


def test_the_assembled_checkpoint_carries_its_heads_and_nothing_old(tmp_path: Path) -> None:
    model, heads, out = tmp_path / "model", tmp_path / "heads", tmp_path / "out"
    save_heads(heads, DraftHeads.from_base(base().lm_head, 2), str(tmp_path))
    for name in ("calibration.json", "log.jsonl"):
        (heads / name).write_text(name)
    model.mkdir()
    (model / "model.safetensors").write_text("weights")
    (model / "model.safetensors").chmod(0o600)
    out.mkdir()
    (out / "old.txt").write_text("old")

    assemble(model, heads, out)

    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*")) == [
        "heads",
        "heads/calibration.json",
        "heads/config.json",
        "heads/medusa_lm_head.safetensors",
        "model.safetensors",
    ]
    assert (out / "model.safetensors").stat().st_mode & 0o777 == 0o644
    assert str(tmp_path) not in (out / "heads" / "config.json").read_text()
    assert load_file(out / "heads" / "medusa_lm_head.safetensors")["0.0.linear.weight"].dtype == torch.bfloat16

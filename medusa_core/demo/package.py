"""Put the finished demo model into a folder that `medusa serve` can load."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from medusa_core.demo.tokenizer import END_OF_TEXT

__all__ = ["assemble", "export_model", "round_heads"]


def export_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write weights in bf16, configuration, greedy generation defaults and the tokenizer. Rounds `model` in place."""
    model.to(torch.bfloat16)  # type: ignore[arg-type]
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(END_OF_TEXT)]
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def round_heads(folder: Path) -> None:
    """Rewrite a heads folder's weights in bf16."""
    path = folder / "medusa_lm_head.safetensors"
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(path).items()}
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial)
    partial.replace(path)


def assemble(model: Path, heads: Path, out: Path) -> None:
    """Copy model and heads into one checkpoint folder, heads in `heads` and rounded to bf16."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(model, out)
    (out / "heads").mkdir()
    for name in ("config.json", "medusa_lm_head.safetensors", "calibration.json"):
        shutil.copyfile(heads / name, out / "heads" / name)
    round_heads(out / "heads")
    # The folder that the base was trained in is nobody's business; `demo` names the shipped model.
    described = json.loads((heads / "config.json").read_text(encoding="utf-8"))
    described["base_model_name_or_path"] = "demo"
    (out / "heads" / "config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    for file in out.rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)

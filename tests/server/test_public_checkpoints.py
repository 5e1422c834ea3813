"""Miniatures of published checkpoints, file by file as they were published, each served by `medusa serve`."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaTokenizer, MistralConfig, MistralForCausalLM

from medusa_core.checkpoints import load_heads, save_heads
from medusa_core.config import EngineConfig, SpeculationParams
from medusa_core.engine import Engine
from medusa_core.heads import DraftHeads
from medusa_core.loading import load_backbone
from medusa_core.tree import CandidateTree
from tests.cast import CPU, FAMILIES, TINY, random_heads, run, tiny_model
from tests.live_server import clean_environment, serving
from tests.server.test_end_to_end import tiny_llama
from tests.tiny_tokenizers import save_sentencepiece

PROGRAM = [sys.executable, "-c", "from server.cli import main; main()"]
QUESTION = [{"role": "user", "content": "Hello world, how are you today?"}]
ADDED = {"__type": "AddedToken", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}

# Source: HuggingFaceH4/zephyr-7b-beta, tokenizer_config.json.
ZEPHYR_TEMPLATE = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + "
    "eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n"
    "{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def shard(tensors: Mapping[str, Tensor], folder: Path, suffix: str) -> None:
    """Two shards and the index that names them, as transformers writes them."""
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    keys = list(tensors)
    names = [f"{stem}-0000{number}-of-00002.{suffix}" for number in (1, 2)]
    weight_map: dict[str, str] = {}
    for name, part in zip(names, (keys[: len(keys) // 2], keys[len(keys) // 2 :]), strict=True):
        held = {key: tensors[key].contiguous() for key in part}
        if suffix == "safetensors":
            save_file(held, folder / name, {"format": "pt"})
        else:
            torch.save(held, folder / name)
        weight_map |= dict.fromkeys(part, name)
    size = sum(tensor.nbytes for tensor in tensors.values())
    write_json(folder / f"{stem}.{suffix}.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map})


def save_vicuna(folder: Path) -> Tensor:
    """lmsys/vicuna-7b-v1.3: sharded .bin weights, tokenizer.model, no chat template. Its LM head [V, H]."""
    save_sentencepiece(folder)
    pieces = LlamaTokenizer.from_pretrained(folder)
    special = {
        f"{name}_token": {"content": text, **ADDED}
        for name, text in [("bos", "<s>"), ("eos", "</s>"), ("unk", "<unk>")]
    }
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": True,
            "add_eos_token": False,
            **special,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 2048,
            "pad_token": None,
            "sp_model_kwargs": {},
            "tokenizer_class": "LlamaTokenizer",
        },
    )
    plain = {name: {key: value for key, value in token.items() if key != "__type"} for name, token in special.items()}
    write_json(folder / "special_tokens_map.json", {**plain, "pad_token": "<unk>"})
    model = tiny_llama(len(pieces), eos=2)
    model.config.architectures = ["LlamaForCausalLM"]
    write_json(folder / "config.json", {**model.config.to_diff_dict(), "model_type": "llama", "bos_token_id": 1})
    write_json(
        folder / "generation_config.json",
        {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    )
    shard(model.half().state_dict(), folder, "bin")
    return model.float().lm_head.weight.detach()


def save_vicuna_heads(folder: Path, lm_head: Tensor) -> None:
    """FasterDecoding/medusa-vicuna-7b-v1.3: five heads in a pickle of bfloat16, two claimed by 143 bytes of config."""
    folder.mkdir()
    heads = random_heads(lm_head, 5, shared=False).bfloat16()
    assert heads.lm_head is not None
    tensors = {}
    for head in range(5):
        tensors[f"{head}.0.linear.weight"] = heads.weight[0, head].clone()
        tensors[f"{head}.0.linear.bias"] = heads.bias[0, head].clone()
        tensors[f"{head}.1.weight"] = heads.lm_head[head].clone()
    torch.save(tensors, folder / "medusa_lm_head.pt")
    write_json(
        folder / "config.json",
        {
            "base_model_name_or_path": "lmsys/vicuna-7b-v1.3",
            "medusa_num_heads": 2,
            "medusa_num_layers": 1,
            "transformers_version": "4.31.0",
        },
    )
    assert (folder / "config.json").stat().st_size == 143


def save_zephyr(folder: Path) -> None:
    """FasterDecoding/medusa-1.0-zephyr-7b-beta: heads among the base's tensors, all in two shards of safetensors."""
    save_sentencepiece(folder)
    tokenizer = LlamaTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    write_json(folder / "tokenizer_config.json", {**settings, "chat_template": ZEPHYR_TEMPLATE})
    torch.manual_seed(5)
    config = MistralConfig(
        **{**TINY, **FAMILIES["mistral"], "vocab_size": len(tokenizer), "architectures": ["MistralForCausalLM"]}
    )
    model = MistralForCausalLM(config)
    described = {**config.to_diff_dict(), "model_type": "mistral", "medusa_num_heads": 5, "medusa_num_layers": 1}
    write_json(folder / "config.json", described)
    heads = random_heads(model.lm_head.weight, 5, shared=False)
    assert heads.lm_head is not None
    tensors = dict(model.state_dict())
    for head in range(5):
        tensors[f"medusa_head.{head}.0.linear.weight"] = heads.weight[0, head]
        tensors[f"medusa_head.{head}.0.linear.bias"] = heads.bias[0, head]
        tensors[f"medusa_head.{head}.1.weight"] = heads.lm_head[head]
    # an index is sorted by key, so heads and base share both shards
    shard({key: tensors[key].bfloat16() for key in sorted(tensors)}, folder, "safetensors")


@contextmanager
def served(folder: Path, *words: str) -> Iterator[str]:
    command = [*PROGRAM, "serve", "--threads", "1", "--tree-nodes", "8", *words]
    with serving(command, folder, clean_environment(HF_HUB_OFFLINE="1")) as address:
        yield address


def chat(address: str, mode: str) -> dict[str, Any]:
    body = {
        "model": httpx.get(f"{address}/v1/models").json()["data"][0]["id"],
        "messages": QUESTION,
        "max_tokens": 24,
        "temperature": 0,
        "speculation": {"mode": mode},
    }
    answer = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_vicuna_with_its_published_heads_answers_a_chat(tmp_path: Path) -> None:
    base, heads = tmp_path / "vicuna-7b-v1.3", tmp_path / "medusa-vicuna-7b-v1.3"
    save_vicuna_heads(heads, save_vicuna(base))

    with served(tmp_path, "--model", str(base), "--heads", str(heads)) as address:
        tree, plain = chat(address, "tree"), chat(address, "off")

    text = tree["choices"][0]["message"]["content"]
    assert text == plain["choices"][0]["message"]["content"] != ""
    assert tree["speculation"]["drafted"] > 0
    log = (tmp_path / "server.log").read_text()
    assert "5 draft heads" in log
    assert "claims" in log
    assert "not used" not in log and "LOAD REPORT" not in log


def test_a_zephyr_that_carries_its_heads_answers_a_chat(tmp_path: Path) -> None:
    save_zephyr(tmp_path / "medusa-1.0-zephyr-7b-beta")

    with served(tmp_path, "--model", str(tmp_path / "medusa-1.0-zephyr-7b-beta")) as address:
        tree, plain = chat(address, "tree"), chat(address, "off")

    text = tree["choices"][0]["message"]["content"]
    assert text == plain["choices"][0]["message"]["content"] != ""
    assert tree["speculation"]["drafted"] > 0
    log = (tmp_path / "server.log").read_text()
    assert "5 draft heads" in log
    # the heads' tensors are no surprise in such a base
    assert "medusa_head." not in log and "does not use" not in log


@pytest.mark.parametrize("tied", [False, True], ids=["own", "tied"])
@pytest.mark.parametrize("family", ["qwen3", "gemma2", "phi3"])
def test_heads_of_other_families_draft_and_change_nothing(tmp_path: Path, family: str, tied: bool) -> None:
    model = tiny_model(family, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    lm_head: Any = model.get_output_embeddings()
    heads = DraftHeads.from_base(lm_head.weight, 3)
    save_heads(tmp_path / "heads", heads, str(tmp_path))

    engine = Engine.load(EngineConfig(model=str(tmp_path), tree_nodes=16))
    tree = run(engine, [3, 1, 4, 1, 5], max_tokens=24, ignore_eos=True)
    plain = run(engine, [3, 1, 4, 1, 5], max_tokens=24, ignore_eos=True, speculation=SpeculationParams(mode="off"))

    assert engine.info.num_heads == 3
    assert tree == plain


def test_heads_rank_as_gemma2_does_without_its_soft_cap(tmp_path: Path) -> None:
    """The cap is monotonous, so it changes no order; calibrated temperatures account for what it does to scores."""
    tiny_model("gemma2", final_logit_softcapping=2.0).save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path), CPU, torch.float32, 64)
    save_heads(tmp_path / "heads", DraftHeads.from_base(backbone.lm_head, 2), str(tmp_path))
    heads = load_heads(tmp_path / "heads", backbone.lm_head)

    found = backbone.forward(CandidateTree.chain(torch.tensor([3, 1, 4])), torch.tensor(0), backbone.new_cache(8), 8)
    drafted = heads(found.hidden[-1])

    assert float(found.logits.abs().max()) < 2.0 < float(drafted.abs().max())
    for head in range(2):
        assert torch.equal(drafted[head].topk(10).indices, found.logits[-1].topk(10).indices)

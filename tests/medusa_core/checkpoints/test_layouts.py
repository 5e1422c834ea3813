import re
from pathlib import Path

import pytest

from medusa_core.checkpoints.layouts import LAYOUTS, STYLES, Facts, Part, head_keys, kind_of, sort_keys
from medusa_core.config import HeadsConfig
from medusa_core.errors import HeadsMismatch

SPELT = {
    "0.1.linear.weight": Part("block", 0, 1, "weight"),
    "3.1.weight": Part("lm_head", 3, 1, "weight"),
    "blocks.2.layers.0.bias": Part("block", 2, 0, "bias"),
    "medusa_heads.blocks.2.layers.0.weight": Part("block", 2, 0, "weight"),
    "medusa_heads.1.medusa_layers.0.linear.bias": Part("block", 1, 0, "bias"),
    "module.medusa_head.11.0.linear.weight": Part("block", 11, 0, "weight"),
    "base_model.model.medusa_head.1.modules_to_save.default.0.linear.weight": Part("block", 1, 0, "weight"),
}


@pytest.mark.parametrize("key", SPELT)
def test_a_key_says_what_it_holds_under_any_prefix(key: str) -> None:
    wanted = SPELT[key]
    block = {"numbered": "0.0.linear.weight", "vllm": "blocks.0.layers.0.weight"}
    beside = block["vllm"] if "blocks" in key else block["numbered"]

    found = sort_keys([key] if "medusa_layers" in key else [key, beside], "test").parts

    assert found[key] == wanted


def test_keys_of_a_base_model_are_told_apart_from_those_of_heads() -> None:
    keys = ["model.layers.0.mlp.up_proj.weight", "lm_head.weight", "medusa_head.0.0.linear.weight"]

    assert head_keys(keys) == keys[2:]
    assert head_keys(keys[:2]) == []
    assert sort_keys(keys, "test").has_base


def test_two_ways_of_spelling_in_one_file_are_refused() -> None:
    with pytest.raises(HeadsMismatch, match=r"'blocks\.0\.layers\.0\.weight'"):
        sort_keys(["0.0.linear.weight", "blocks.0.layers.0.weight"], "test")


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_reads_the_keys_it_writes(name: str) -> None:
    layout = LAYOUTS[name]
    style = STYLES[layout.style]
    keys = [
        layout.prefix + style.block.format(head=4, layer=1, name="bias"),
        layout.prefix + style.block.format(head=4, layer=1, name="weight"),
        layout.prefix + style.lm_head.format(head=4, layer=2, name="weight"),
    ]

    roles = [part.role for part in sort_keys(keys, "test").parts.values()]

    assert roles == ["block", "block", "lm_head"]


# What reference engines look for, beside what identifies the base.
FIELDS = {
    "medusa-v1": {"base_model_name_or_path", "medusa_num_heads", "medusa_num_layers", "transformers_version"},
    "medusa-v2": {
        "base_model_name_or_path", "medusa_num_heads", "medusa_num_layers", "transformers_version", "version",
    },
    "full": {"medusa_num_heads", "medusa_num_layers"},
    "tgi": {"base_model_name_or_path", "medusa_num_heads", "medusa_num_layers", "transformers_version"},
    "vllm": {
        "model_type", "architectures", "hidden_size", "vocab_size", "num_heads", "num_hidden_layers",
        "truncated_vocab_size", "medusa_fc_bias", "original_lm_head", "max_paths", "topk", "logit_scale",
    },
    "tensorrt-llm": {"num_medusa_heads", "num_medusa_layers", "max_draft_len"},
    "modelopt": {"medusa"},
}  # fmt: skip


@pytest.mark.parametrize("name", FIELDS)
def test_a_config_says_what_its_readers_look_for_and_no_more(name: str) -> None:
    config = LAYOUTS[name].config(Facts("some/base", 40, HeadsConfig(3, 1, 16, 40, False), "own", None))

    assert set(config) == FIELDS[name]
    assert 3 in (*config.values(), *config.get("medusa", {}).values())


def test_the_kind_of_lm_head_follows_from_the_shape() -> None:
    assert kind_of(HeadsConfig(3, 1, 16, 40, True)) == "shared"
    assert kind_of(HeadsConfig(3, 1, 16, 40, True, 2)) == "low-rank"
    assert kind_of(HeadsConfig(3, 1, 16, 40, False)) == "own"
    assert kind_of(HeadsConfig(3, 1, 16, 40, False, one_lm_head=True)) == "one"


def test_the_page_for_people_has_a_row_for_every_layout_and_no_other() -> None:
    page = (Path(__file__).parents[3] / "docs" / "heads.md").read_text(encoding="utf-8")
    table = page.partition("## Layouts")[2].partition("| public checkpoints")[0]

    assert re.findall(r"^\| `(\w[\w-]*)` \|", table, re.MULTILINE) == [*LAYOUTS]

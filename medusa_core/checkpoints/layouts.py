"""Every way in which draft heads are stored: key names, what each can hold, what its config says.

Heads are recognised by their keys, never by what a config claims. Another layout is another entry in LAYOUTS.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from medusa_core.config import HeadsConfig
from medusa_core.errors import HeadsMismatch

__all__ = [
    "EXTRAS",
    "LAYOUTS",
    "LOW_RANK",
    "STYLES",
    "Facts",
    "LMHeadKind",
    "Layout",
    "Part",
    "SortedKeys",
    "Style",
    "head_keys",
    "kind_of",
    "sort_keys",
]

LMHeadKind = Literal["own", "one", "shared", "low-rank"]
"""Whose LM head drafts: one for each head, one for all of them, the base model's, or that and a correction each."""


@dataclass(frozen=True)
class Style:
    """How keys are spelt, without prefix; `layer` of an LM head is the number of blocks before it."""

    block: str
    lm_head: str


class Part(NamedTuple):
    """What one key holds.

    role: `block` and `lm_head` with a head and a layer, `low_rank` with a head, or one of EXTRAS.
    name: what of it, such as weight, bias or weight_scale.
    """

    role: str
    head: int
    layer: int
    name: str


STYLES = {
    "numbered": Style("{head}.{layer}.linear.{name}", "{head}.{layer}.{name}"),
    "vllm": Style("blocks.{head}.layers.{layer}.{name}", "lm_heads.{head}.{name}"),
    "tensorrt": Style("{head}.medusa_layers.{layer}.linear.{name}", "{head}.lm_head.{name}"),
}
# Ours, where none of the public layouts has a place.
LOW_RANK = "{head}.low_rank.{name}"
# Tensors that belong to all heads at once. vLLM's `token_map` holds tokens, EAGLE's `d2t` how far each is from its row.
EXTRAS = ("lm_head.weight", "token_map", "d2t", "t2d")

# What training wrappers put before or into a key; it says nothing about the layout.
_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.|base_model\.model\.)+")
_TRAINED_COPY = ".modules_to_save.default"
# Beside a trained copy PEFT keeps the module as it was before.
_UNTRAINED_COPY = re.compile(r"\bmedusa_heads?\..*\.original_module\.")
_PREFIX = re.compile(r"^(medusa_heads?)\.")
# How the keys of base models begin, and how their LM heads are called.
_BASE_BODY = ("model.", "transformer.", "gpt_neox.", "language_model.", "backbone.")
_BASE = (*_BASE_BODY, "lm_head.", "embed_out.", "output.")


@dataclass(frozen=True)
class Facts:
    """What a config may say of heads.

    base_model: name of the base; None when nobody knows it.
    vocab_size: tokens of the base; None when nobody knows.
    kind:       whose LM head the file holds.
    truncated:  rows of its LM heads when they are only some of the base's tokens.
    """

    base_model: str | None
    vocab_size: int | None
    heads: HeadsConfig
    kind: LMHeadKind
    truncated: int | None


@dataclass(frozen=True)
class Layout:
    """One way to store heads.

    title:        for people.
    style:        a key of STYLES.
    prefix:       before every key of the heads.
    file:         what heads are written to; None for a full model, whose files they join.
    holds:        the kinds of LM heads it has a place for.
    truncated:    whether it has a place for a truncated vocabulary.
    needs_name:   whether its config must name the base model.
    shared_depth: most blocks of a head where the LM head is shared; None is any number.
    config:       what config.json says; for a full model what it says beside the base's own.
    """

    title: str
    style: str
    prefix: str
    file: str | None
    holds: frozenset[LMHeadKind]
    truncated: bool
    needs_name: bool
    shared_depth: int | None
    config: Callable[[Facts], dict[str, Any]]


def _counts(facts: Facts) -> dict[str, Any]:
    return {"medusa_num_heads": facts.heads.num_heads, "medusa_num_layers": facts.heads.num_layers}


def _our_config(facts: Facts) -> dict[str, Any]:
    vocab_size = {"vocab_size": facts.vocab_size} if facts.vocab_size is not None else {}
    rank = {"lm_head_rank": facts.heads.lm_head_rank} if facts.kind == "low-rank" else {}
    # what FasterDecoding calls layouts with and without own LM heads
    version = "1" if facts.kind in ("own", "one") else "2"
    named = {"base_model_name_or_path": facts.base_model, **_counts(facts)}
    return {**named, "hidden_size": facts.heads.hidden_size, **vocab_size, **rank, "version": version}


def _first_config(facts: Facts) -> dict[str, Any]:
    named = {"base_model_name_or_path": facts.base_model, **_counts(facts)}
    return {**named, "transformers_version": metadata.version("transformers")}


def _second_config(facts: Facts) -> dict[str, Any]:
    return {**_first_config(facts), "version": "2"}


def _vllm_config(facts: Facts) -> dict[str, Any]:
    return {
        "model_type": "medusa",
        "architectures": ["MedusaModel"],
        "hidden_size": facts.heads.hidden_size,
        "vocab_size": facts.vocab_size,
        "num_heads": facts.heads.num_heads,
        "num_hidden_layers": facts.heads.num_layers,
        "truncated_vocab_size": facts.truncated if facts.truncated is not None else facts.vocab_size,
        # without it vLLM drops the biases and says nothing
        "medusa_fc_bias": True,
        "original_lm_head": facts.kind == "one",
        "max_paths": 64,
        "topk": 10,
        "logit_scale": 1.0,
    }


def _tensorrt_config(facts: Facts) -> dict[str, Any]:
    return {
        "num_medusa_heads": facts.heads.num_heads,
        "num_medusa_layers": facts.heads.num_layers,
        "max_draft_len": 63,
    }


def _modelopt_config(facts: Facts) -> dict[str, Any]:
    return {"medusa": {"num_medusa_heads": facts.heads.num_heads, "num_medusa_layers": facts.heads.num_layers}}


_ALL: frozenset[LMHeadKind] = frozenset(("own", "one", "shared", "low-rank"))
_OWN: frozenset[LMHeadKind] = frozenset(("own",))
_SHARED: frozenset[LMHeadKind] = frozenset(("shared",))
_EITHER: frozenset[LMHeadKind] = frozenset(("own", "shared"))
_FILE: frozenset[LMHeadKind] = frozenset(("own", "one"))
_TENSORS, _PICKLE = "medusa_lm_head.safetensors", "medusa_lm_head.pt"

# fmt: off
LAYOUTS = MappingProxyType({
    "medusa": Layout("this project's, a superset of A and B", "numbered", "", _TENSORS, _ALL, True, False, None,
                     _our_config),
    "medusa-v1": Layout("A: FasterDecoding, heads only; D in safetensors", "numbered", "", _PICKLE, _OWN, False, True,
                        None, _first_config),
    "medusa-v2": Layout("B: FasterDecoding, heads only, LM head of the base", "numbered", "", _PICKLE, _SHARED, False,
                        True, None, _second_config),
    "full": Layout("C: a full model with heads, FasterDecoding's Medusa-2", "numbered", "medusa_head.", None, _OWN,
                   False, False, None, _counts),
    "tgi": Layout("D: text-generation-inference", "numbered", "", _TENSORS, _EITHER, False, True, 1, _first_config),
    "vllm": Layout("E: a draft model of vLLM", "vllm", "", "model.safetensors", _FILE, True, False, None,
                   _vllm_config),
    "tensorrt-llm": Layout("F1: TensorRT-LLM, the heads of a converted model", "tensorrt", "medusa_heads.",
                           "rank0.safetensors", _OWN, False, False, None, _tensorrt_config),
    "modelopt": Layout("F2: a full model with heads, ModelOpt's", "numbered", "medusa_heads.", None, _OWN, False,
                       False, None, _modelopt_config),
})
# fmt: on


@dataclass(frozen=True)
class SortedKeys:
    """Which keys of a checkpoint are heads', and what each holds.

    prefix:   `medusa_head` or `medusa_heads` where the keys have one, else empty.
    has_base: whether a base model's tensors stand beside them.
    """

    parts: dict[str, Part]
    style: str
    prefix: str
    has_base: bool


def head_keys(keys: Iterable[str]) -> Sequence[str]:
    """Those of some keys that belong to heads; empty when no head has a block among them."""
    return list(_sort(keys)[0].parts)


def sort_keys(keys: Iterable[str], source: str) -> SortedKeys:
    """What each key holds; raises HeadsMismatch for one that is neither a head's nor, in a full model, the base's."""
    found, strange = _sort(keys)
    if strange:
        raise HeadsMismatch(
            f"{source!r} holds {strange[0]!r}, which is no tensor of draft heads and none of a base model; "
            "the layout is unknown, and guessing would give heads that are never right"
        )
    if not found.parts:
        raise HeadsMismatch(f"{source!r} holds no residual blocks such as '0.0.linear.weight'")
    return found


def _sort(keys: Iterable[str]) -> tuple[SortedKeys, list[str]]:
    """The keys of heads, and those that nobody knows."""
    plain = {key: _WRAPPERS.sub("", key).replace(_TRAINED_COPY, "") for key in keys if not _UNTRAINED_COPY.search(key)}
    has_base = any(name.startswith(_BASE_BODY) for name in plain.values())
    prefixed = {key: name for key, name in plain.items() if _PREFIX.match(name)}
    candidates = prefixed if has_base else plain
    bare = {key: _PREFIX.sub("", name) for key, name in candidates.items()}
    style = next((style for name in bare.values() for style in STYLES if _match(STYLES[style].block, name)), None)
    prefix = next((match[1] for name in prefixed.values() if (match := _PREFIX.match(name))), "")
    if style is None:
        return SortedKeys({}, "numbered", prefix, has_base), []
    read = {key: _part(STYLES[style], name) for key, name in bare.items()}
    parts = {key: part for key, part in read.items() if part is not None}
    strange = [key for key, name in plain.items() if key not in parts and not (has_base and _is_base(name))]
    return SortedKeys(parts, style, prefix, has_base), strange


def _is_base(name: str) -> bool:
    return name.startswith(_BASE)


def _part(style: Style, name: str) -> Part | None:
    """What a key without prefixes holds in a style; None when it is none of its keys."""
    if name in EXTRAS:
        return Part(name, 0, 0, "")
    for role, template in (("block", style.block), ("lm_head", style.lm_head), ("low_rank", LOW_RANK)):
        if match := _match(template, name):
            numbers = match.groupdict()
            return Part(role, int(numbers["head"]), int(numbers.get("layer", 0)), numbers["name"])
    return None


def _match(template: str, name: str) -> re.Match[str] | None:
    pattern = re.escape(template)
    for field, kind in (("head", r"\d+"), ("layer", r"\d+"), ("name", r"\w+")):
        pattern = pattern.replace(rf"\{{{field}\}}", f"(?P<{field}>{kind})")
    return re.fullmatch(pattern, name)


def kind_of(config: HeadsConfig) -> LMHeadKind:
    """Whose LM head these heads draft with."""
    if not config.shared_lm_head:
        return "one" if config.one_lm_head else "own"
    return "shared" if config.lm_head_rank is None else "low-rank"

"""Whether trees pay with a kind of weights, and whether they can be verified at all.

What is known of each kind stands in one table, by what a checkpoint's own configuration says; a trial of a loaded
model's first layer overrules it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from medusa_core.errors import ConfigurationError

__all__ = [
    "METHODS",
    "Judgement",
    "default_nodes",
    "dense_weight",
    "judge",
    "judge_model",
    "rows_are_independent",
]


@dataclass(frozen=True)
class Judgement:
    """What a kind of weights means for tree decoding.

    label:              the kind, for people, and what tells its answers from those of other kinds.
    most_nodes:         nodes of a tree beyond which a step costs more than it brings.
    is_row_independent: whether what one row of a pass yields is free of the other rows; without this the text would
                        depend on what was drafted beside it, and such weights are refused.
    advice:             what an operator should know of it.
    """

    label: str
    most_nodes: int
    is_row_independent: bool
    advice: str

    @property
    def statement(self) -> str:
        """What is said at the start: the kind of weights, and whether trees pay with them."""
        pay = (
            f"trees pay up to {self.most_nodes} nodes" if self.most_nodes > 1 else "trees do not pay, one node is used"
        )
        return f"{self.label} weights, LM head and embeddings as they were: {pay}; {self.advice}"


_SHARED_SCALE = "its activations share one scale among all rows"
_FEW_BYTES = "arithmetic catches up with 4-bit weights early, so trees stay small"
_MARLIN = "its kernels stay near their ideal up to 16 to 32 rows"


def _torchao(facts: Mapping[str, Any]) -> Judgement:
    found = [(kind.removesuffix("Config"), data) for kind, data in _configs(facts.get("quant_type"))]
    label = f"torchao {', '.join(dict.fromkeys(kind for kind, _ in found))}"
    is_dynamic = False
    for kind, data in found:
        if "DynamicActivation" in kind:
            is_dynamic = True
            # float8 without a word about granularity is one scale for the whole pass
            granularity = data.get("granularity", "PerTensor" if kind.startswith("Float8") else "PerRow")
            if "PerTensor" in str(granularity):
                return Judgement(label, 1, False, _SHARED_SCALE)
    if any("Int4" in kind for kind, _ in found):
        return Judgement(label, 32, True, _FEW_BYTES)
    if is_dynamic:
        return Judgement(label, 64, True, "activations are rounded row by row, so near-ties may fall either way")
    advice = "it saves memory; kernels that are not compiled convert the weights in every pass, which costs time"
    return Judgement(label, 64, True, advice)


def _configs(value: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every configuration inside torchao's description of itself, with its fields."""
    if isinstance(value, list):
        for part in value:
            yield from _configs(part)
    elif isinstance(value, Mapping):
        kind = str(value.get("_type", ""))
        if kind.endswith("Config"):
            yield kind, _mapping(value.get("_data"))
        for part in value.values():
            yield from _configs(part)


def _mapping(value: Any) -> Mapping[str, Any]:
    """What a configuration holds under a name, empty where that is null or something else."""
    return value if isinstance(value, Mapping) else {}


def _bitsandbytes(facts: Mapping[str, Any]) -> Judgement:
    if facts.get("load_in_4bit"):
        return Judgement(
            "bitsandbytes 4-bit",
            1,
            True,
            "its kernel serves one row; for more it unpacks the whole matrix first, slower than without quantisation",
        )
    if facts.get("llm_int8_threshold", 6.0) > 0:
        return Judgement(
            "bitsandbytes 8-bit",
            1,
            False,
            "an outlier in one row changes how all rows of a pass are computed; llm_int8_threshold 0 in the "
            "checkpoint's config.json turns that off",
        )
    return Judgement("bitsandbytes 8-bit", 1, True, "it quantises the rows of every pass anew; int8 is the faster way")


def _compressed_tensors(facts: Mapping[str, Any]) -> Judgement:
    groups = [_mapping(group) for group in _mapping(facts.get("config_groups")).values()]
    bits = [_mapping(group.get("weights")).get("num_bits") for group in groups]
    label = f"compressed-tensors {min((count for count in bits if count is not None), default=16)}-bit"
    for group in groups:
        inputs = _mapping(group.get("input_activations"))
        if inputs.get("dynamic") and inputs.get("strategy") == "tensor":
            return Judgement(label, 1, False, _SHARED_SCALE)
    return Judgement(
        label, 64, True, "unpacked in the first pass, so speed and memory are those of weights that are not quantised"
    )


# By transformers' name of the method. The numbers of nodes are from sources and arithmetic; see docs/quantization.md.
METHODS: dict[str, Judgement | Callable[[Mapping[str, Any]], Judgement]] = {
    "awq": Judgement("AWQ", 32, True, _MARLIN),
    "bitsandbytes": _bitsandbytes,
    "compressed-tensors": _compressed_tensors,
    "eetq": Judgement("EETQ", 32, True, _MARLIN),
    "fbgemm_fp8": Judgement("FBGEMM fp8", 32, True, _MARLIN),
    "fp8": Judgement("fp8 in blocks", 64, True, "trees pay as without quantisation"),
    "gptq": Judgement("GPTQ", 32, True, _MARLIN),
    "hqq": Judgement("HQQ", 32, True, _MARLIN),
    "mxfp4": Judgement("MXFP4", 32, True, _FEW_BYTES),
    "nvfp4": Judgement("NVFP4", 32, True, _FEW_BYTES),
    "quanto": Judgement("quanto", 32, True, _MARLIN),
    "torchao": _torchao,
}


def judge(facts: Mapping[str, Any]) -> Judgement:
    """What is known of weights from the `quantization_config` of a checkpoint; needs none of the packages."""
    method = str(getattr(facts.get("quant_method"), "value", facts.get("quant_method")))
    known = METHODS.get(method)
    if isinstance(known, Judgement):
        return known
    if known is not None:
        return known(facts)
    return Judgement(method, 16, True, "nothing is known of it here, so trees stay small; medusa bench tells")


def judge_model(model: nn.Module) -> Judgement | None:
    """What is known of a loaded model's weights; None when they are not quantised.

    Raises ConfigurationError when rows of one pass are not independent, by what is known or by a trial of one layer.
    """
    loaded: Any = model
    config = getattr(loaded.config, "quantization_config", None)
    if config is None:
        return None
    found = judge(config if isinstance(config, Mapping) else config.to_dict())
    if not found.is_row_independent or not rows_are_independent(model):
        reason = found.advice if not found.is_row_independent else "a trial of its first layer shows it"
        raise ConfigurationError(
            f"with {found.label} weights what a token yields depends on what else is computed in the same pass, so "
            f"drafts and cached prefixes would change the text ({reason}); use the base as it was before, with "
            "--quantize int8"
        )
    return found


@torch.inference_mode()
def rows_are_independent(model: nn.Module) -> bool:
    """Whether the first quantised layer computes a row alike beside an ordinary and beside a very loud one.

    Only after a first pass of the model: some loaders unpack the weights as late as that.
    """
    loaded: Any = model
    outputs = loaded.get_output_embeddings()
    layers: Iterator[Any] = (
        module
        for module in model.modules()
        if isinstance(getattr(module, "in_features", None), int) and module is not outputs
    )
    layer = next(layers, None)
    if layer is None:
        return True
    like = loaded.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(0)
    quiet = torch.randn(1, 2, layer.in_features, generator=generator).to(like.device, loaded.dtype)
    loud = torch.cat([quiet[:, :1], quiet[:, 1:] * 1000], dim=1)
    try:
        alone, beside = layer(quiet)[0, 0].float(), layer(loud)[0, 0].float()
    except (AssertionError, AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return True  # a layer that cannot be called by itself tells nothing
    return bool((alone - beside).abs().max() <= 1e-3 * alone.abs().max())


def default_nodes(default: int, weights: Judgement | None) -> int:
    """Nodes of one tree, root included, where nobody asked for a number or measured one: as far as they pay."""
    return min(default, weights.most_nodes) if weights is not None else default


def dense_weight(layer: nn.Module) -> Tensor:
    """A layer's weight [out, in] as an ordinary tensor, also where the checkpoint quantised it.

    Raises ConfigurationError for a form that cannot be read.
    """
    weight: Any = getattr(layer, "weight", None)
    if hasattr(weight, "dequantize") and type(weight) not in (Tensor, nn.Parameter):
        weight = weight.dequantize()
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.dim() != 2:
        raise ConfigurationError(
            f"the LM head of this checkpoint is quantised as {type(layer).__name__}, which draft heads cannot share; "
            "use a checkpoint whose lm_head is not quantised"
        )
    return weight

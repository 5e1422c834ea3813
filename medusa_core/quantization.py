"""How a base model's weights are quantised, and whether verifying a tree pays with them.

Quantising itself is left to transformers' own loaders. Two tables stand here: what can be asked for, and what is known
of each kind of weights, asked for or found in a checkpoint. Only the base is quantised, and of it neither the
embeddings nor the LM head; draft heads keep the compute dtype.
"""

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from medusa_core.errors import ConfigurationError

__all__ = [
    "METHODS",
    "OPTIONS",
    "Judgement",
    "Option",
    "default_nodes",
    "dense_weight",
    "judge",
    "judge_model",
    "quantization_arguments",
    "quantize_in_place",
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


@dataclass(frozen=True)
class Option:
    """One way to quantise a model while it is loaded.

    package:    what has to be installed for it.
    way_out:    how to install it.
    capability: least CUDA compute capability; None also runs on a CPU.
    dtype:      the only compute dtype its kernels know; None takes any.
    make:       the configuration transformers asks for, from the compute dtype.
    """

    package: str
    way_out: str
    capability: tuple[int, int] | None
    dtype: torch.dtype | None
    make: Callable[[torch.dtype | None], Any]


def _int8(dtype: torch.dtype | None) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig  # type: ignore[import-untyped]
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def _int4(dtype: torch.dtype | None) -> Any:
    from torchao.quantization import Int4WeightOnlyConfig
    from transformers import TorchAoConfig

    # the one packing whose kernel comes with torch itself
    return TorchAoConfig(Int4WeightOnlyConfig(group_size=128, int4_packing_format="tile_packed_to_4d"))


def _fp8(dtype: torch.dtype | None) -> Any:
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow
    from transformers import TorchAoConfig

    # torchao's default is one scale for all rows, which no tree can be verified with
    return TorchAoConfig(Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()))


def _bnb8(dtype: torch.dtype | None) -> Any:
    from transformers import BitsAndBytesConfig

    # above its threshold outliers of one row change how all rows of a pass are computed
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)  # type: ignore[no-untyped-call]


def _bnb4(dtype: torch.dtype | None) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype if dtype is not None else torch.bfloat16,
    )


_TORCHAO = ("torchao", "pip install 'medusa-server[quantize]'")
_BITSANDBYTES = ("bitsandbytes", "pip install bitsandbytes accelerate")
# By the name under which --quantize takes them.
OPTIONS: dict[str, Option] = {
    "int8": Option(*_TORCHAO, None, None, _int8),
    "int4": Option(*_TORCHAO, (8, 0), torch.bfloat16, _int4),
    "fp8": Option(*_TORCHAO, (8, 9), torch.bfloat16, _fp8),
    "bnb8": Option(*_BITSANDBYTES, None, None, _bnb8),
    "bnb4": Option(*_BITSANDBYTES, None, None, _bnb4),
}


def quantization_arguments(name: str, device: torch.device, dtype: torch.dtype | None) -> dict[str, Any]:
    """What from_pretrained is to be told for a base quantised as `name`, `none` included.

    dtype: the compute dtype; None is the checkpoint's own, or the quantiser's where its kernels know only one.

    The model is then on its device already. Raises ConfigurationError naming what is missing.
    """
    if name == "none":
        return {"dtype": dtype if dtype is not None else "auto"}
    config = _configuration(name, device, dtype)
    known = OPTIONS[name].dtype if dtype is None else dtype
    return {
        "dtype": known if known is not None else "auto",
        "quantization_config": config,
        "device_map": {"": str(device)},
    }


def quantize_in_place(model: nn.Module, name: str, device: torch.device, dtype: torch.dtype | None) -> None:
    """Quantise a model that is loaded already as the loader would have, by one of torchao's options.

    Raises ConfigurationError naming what is missing.
    """
    config = _configuration(name, device, dtype)
    from torchao.quantization import quantize_

    loaded: Any = model
    outputs = loaded.get_output_embeddings()
    # each layer moves to the device by itself, so that the whole model never stands there unquantised
    quantize_(
        model,
        config.quant_type,
        lambda module, _: isinstance(module, nn.Linear) and module is not outputs,
        device=device,
    )
    loaded.config.quantization_config = config


def _configuration(name: str, device: torch.device, dtype: torch.dtype | None) -> Any:
    """The transformers configuration of an option, once everything it needs is there."""
    option = OPTIONS.get(name)
    if option is None:
        raise ConfigurationError(f"quantize is {name!r}; use none, {', '.join(OPTIONS)}")
    for package in (option.package, "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise ConfigurationError(f"--quantize {name} needs {package}, which is not installed: {option.way_out}")
    if option.capability is not None:
        least = ".".join(map(str, option.capability))
        if device.type != "cuda":
            raise ConfigurationError(
                f"--quantize {name} needs a CUDA device of compute capability {least}, not {str(device)!r}; "
                "int8 runs anywhere"
            )
        if torch.cuda.get_device_capability(device) < option.capability:
            raise ConfigurationError(
                f"--quantize {name} needs compute capability {least}, {torch.cuda.get_device_name(device)} has less; "
                "int8 runs anywhere"
            )
    if option.dtype is not None and dtype not in (None, option.dtype):
        only = str(option.dtype).removeprefix("torch.")
        raise ConfigurationError(
            f"--quantize {name} computes in {only} only, not in {dtype}; use --dtype {only} or auto"
        )
    return option.make(dtype)


_EAGER = "it saves memory; kernels that are not compiled convert the weights in every pass, which costs time"


def _torchao(facts: Mapping[str, Any]) -> Judgement:
    kinds = [
        (kind.removesuffix("Config"), data) for kind, data in _configs(facts.get("quant_type")) if "Activation" in kind
    ]
    names = [kind for kind, _ in _configs(facts.get("quant_type")) if kind.endswith("Config")]
    label = f"torchao {', '.join(dict.fromkeys(name.removesuffix('Config') for name in names))}"
    for kind, data in kinds:
        # float8 without a word about granularity is one scale for the whole pass
        granularity = data.get("granularity", "PerTensor" if kind.startswith("Float8") else "PerRow")
        if "Dynamic" in kind and "PerTensor" in str(granularity):
            return Judgement(label, 1, False, _PER_TENSOR)
    if any("int4" in name.lower() for name in names):
        return Judgement(label, 32, True, "arithmetic catches up with int4 weights early, so trees stay small")
    return Judgement(label, 64, True, _EAGER)


def _configs(value: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every configuration inside torchao's description of itself, whose types are names and data."""
    if isinstance(value, Mapping):
        if "_type" in value:
            yield str(value["_type"]), value.get("_data", {}) if isinstance(value.get("_data"), Mapping) else {}
        for part in value.values():
            yield from _configs(part)
    elif isinstance(value, list):
        for part in value:
            yield from _configs(part)


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
    groups = [group for group in (facts.get("config_groups") or {}).values() if isinstance(group, Mapping)]
    bits = min(((group.get("weights") or {}).get("num_bits") or 16 for group in groups), default=16)
    label = f"compressed-tensors {bits}-bit"
    for group in groups:
        inputs = group.get("input_activations") or {}
        if inputs.get("dynamic") and inputs.get("strategy") == "tensor":
            return Judgement(label, 1, False, _PER_TENSOR)
    return Judgement(
        label, 64, True, "unpacked in the first pass, so speed and memory are those of weights that are not quantised"
    )


def _rows(label: str, most_nodes: int, advice: str) -> Callable[[Mapping[str, Any]], Judgement]:
    """A kind whose rows are independent and whose kernels stay near their ideal up to so many of them."""
    return lambda facts: Judgement(label, most_nodes, True, advice)


_PER_TENSOR = "its activations share one scale among all rows"
_MARLIN = "its kernels stay near their ideal up to 16 to 32 rows"
# By transformers' name of the method. The numbers of nodes are from sources and arithmetic; see docs/quantization.md.
METHODS: dict[str, Callable[[Mapping[str, Any]], Judgement]] = {
    "awq": _rows("AWQ 4-bit", 32, _MARLIN),
    "bitsandbytes": _bitsandbytes,
    "compressed-tensors": _compressed_tensors,
    "eetq": _rows("EETQ 8-bit", 32, _MARLIN),
    "fbgemm_fp8": _rows("FBGEMM fp8", 32, _MARLIN),
    "fp8": _rows("fp8 in blocks", 64, "trees pay as without quantisation"),
    "gptq": _rows("GPTQ", 32, _MARLIN),
    "hqq": _rows("HQQ", 32, _MARLIN),
    "mxfp4": _rows("MXFP4", 32, _MARLIN),
    "nvfp4": _rows("NVFP4", 32, "arithmetic catches up with 4-bit weights early, so trees stay small"),
    "quanto": _rows("quanto", 32, _MARLIN),
    "torchao": _torchao,
}


def judge(facts: Mapping[str, Any]) -> Judgement:
    """What is known of weights from the `quantization_config` of a checkpoint; needs none of the packages."""
    method = str(getattr(facts.get("quant_method"), "value", facts.get("quant_method")))
    known = METHODS.get(method)
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

"""The ways in which a base model can be quantised while it is loaded, and what each of them needs.

Quantising itself is left to transformers' own loaders. Neither the embeddings nor the LM head are quantised.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from medusa_core.errors import ConfigurationError

__all__ = ["OPTIONS", "Option", "quantization_arguments", "quantize_in_place"]


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

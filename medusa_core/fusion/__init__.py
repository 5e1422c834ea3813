"""The same model in fewer kernels: read from a finished transformers model, and used only where it gives the same."""

from medusa_core.fusion.choosing import fastest
from medusa_core.fusion.compiled import CompiledPass
from medusa_core.fusion.kernels import Kernels, Mask, TorchKernels
from medusa_core.fusion.lengths import PrefixMask
from medusa_core.fusion.model import FusedModel, Pass
from medusa_core.fusion.native import choose_kernels
from medusa_core.fusion.trial import Trial, fuse

__all__ = [
    "CompiledPass",
    "FusedModel",
    "Kernels",
    "Mask",
    "Pass",
    "PrefixMask",
    "TorchKernels",
    "Trial",
    "choose_kernels",
    "fastest",
    "fuse",
]

"""The same model in fewer kernels: read from a finished transformers model, and used only where it gives the same."""

from medusa_core.fusion.kernels import Kernels, TorchKernels
from medusa_core.fusion.model import FusedModel, Pass
from medusa_core.fusion.native import choose_kernels
from medusa_core.fusion.trial import Trial, fuse

__all__ = ["FusedModel", "Kernels", "Pass", "TorchKernels", "Trial", "choose_kernels", "fuse"]

"""How steps are executed: one file for each way."""

from medusa_core.runners.eager import EagerRunner
from medusa_core.runners.grammar import unpack_masks
from medusa_core.runners.runner import DecodePlan, Drafting, Runner, StepResult, TokenLogprobs, to_host

__all__ = ["DecodePlan", "Drafting", "EagerRunner", "Runner", "StepResult", "TokenLogprobs", "to_host", "unpack_masks"]

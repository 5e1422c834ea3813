"""Medusa tree decoding: tensors and token ids, no HTTP.

The names below are resolved on first use, so that importing the package loads neither torch nor transformers.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "BaseOptions": "training.trainer",
    "BenchPlan": "evaluation.bench",
    "CalibratePlan": "training.measure",
    "Calibration": "calibration",
    "Delta": "generation",
    "DistillPlan": "training.distill",
    "Engine": "engine",
    "EngineConfig": "config",
    "EngineInfo": "generation",
    "GenerationRequest": "generation",
    "JointPlan": "training.plan",
    "PromptStats": "generation",
    "SamplingParams": "sampling",
    "SpeculationParams": "config",
    "StepStats": "generation",
    "TrainPlan": "training.plan",
    "VerifyPlan": "evaluation.verify",
    "bench": "evaluation.bench",
    "calibrate": "training.measure",
    "check_machine": "checkup",
    "check_model": "checkup",
    "convert_heads": "checkpoints.conversion",
    "default_prompts": "evaluation.prompts",
    "distill": "training.distill",
    "inspect_heads": "checkpoints.inspection",
    "train": "training.trainer",
    "verify": "evaluation.verify",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)

"""How many nodes the tree of each step has. Host side and pure Python: knows neither tensors nor devices."""

from medusa_core.pacing.costs import StepCosts
from medusa_core.pacing.gains import Gains, echoed_tokens, expected_tokens
from medusa_core.pacing.learning import LearningPace, Pacing
from medusa_core.pacing.pace import FixedPace, Pace
from medusa_core.pacing.timing import Situation, TimingPlan, time_steps

__all__ = [
    "FixedPace",
    "Gains",
    "LearningPace",
    "Pace",
    "Pacing",
    "Situation",
    "StepCosts",
    "TimingPlan",
    "echoed_tokens",
    "expected_tokens",
    "time_steps",
]

"""Who proposes the tokens of a tree: one Protocol and one file per drafter."""

from medusa_core.drafters.drafter import Drafter, DraftState, Grammatical
from medusa_core.drafters.grammar import forced_span
from medusa_core.drafters.medusa import MedusaDrafter
from medusa_core.drafters.merged import MergedDrafter
from medusa_core.drafters.paced import Paced
from medusa_core.drafters.plain import RootOnly
from medusa_core.drafters.prediction import PredictionBranch
from medusa_core.drafters.prompt_lookup import PromptLookup
from medusa_core.drafters.recycling import Recycling
from medusa_core.drafters.source import Asked, Drafters, DrafterSource
from medusa_core.drafters.static import StaticTrees

__all__ = [
    "Asked",
    "DraftState",
    "Drafter",
    "DrafterSource",
    "Drafters",
    "Grammatical",
    "MedusaDrafter",
    "MergedDrafter",
    "Paced",
    "PredictionBranch",
    "PromptLookup",
    "Recycling",
    "RootOnly",
    "StaticTrees",
    "forced_span",
]

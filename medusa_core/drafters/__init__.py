"""Who proposes the tokens of a tree: one Protocol and one file per drafter."""

from medusa_core.drafters.drafter import Drafter, DraftState
from medusa_core.drafters.medusa import MedusaDrafter
from medusa_core.drafters.merged import MergedDrafter
from medusa_core.drafters.plain import RootOnly
from medusa_core.drafters.prompt_lookup import PromptLookup
from medusa_core.drafters.source import Drafters, DrafterSource

__all__ = [
    "DraftState",
    "Drafter",
    "DrafterSource",
    "Drafters",
    "MedusaDrafter",
    "MergedDrafter",
    "PromptLookup",
    "RootOnly",
]

"""What earlier requests computed, kept for later ones that begin alike."""

from medusa_core.prefix_cache.prefiller import Prefiller
from medusa_core.prefix_cache.store import PrefixStore, store_budget

__all__ = ["Prefiller", "PrefixStore", "store_budget"]

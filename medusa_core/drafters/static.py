"""Trees of one fixed shape, as the Medusa paper drafts them: filled anew at every step, never reshaped."""

from collections.abc import Sequence

from torch import Tensor

from medusa_core.calibration import Calibration
from medusa_core.drafters.drafter import Drafter
from medusa_core.drafters.medusa import MedusaDrafter
from medusa_core.drafters.source import Asked, Drafters
from medusa_core.errors import InvalidParameter
from medusa_core.heads import DraftHeads
from medusa_core.tree import TreeTopology

__all__ = ["StaticTrees"]


class StaticTrees:
    """Serves the requests that speculate with a static tree, and leaves all others to somebody else.

    A fixed shape has no place for branches that come and go, so an answer with a grammar or a prediction is drafted
    like any other.
    """

    def __init__(
        self,
        heads: DraftHeads,
        temperatures: Tensor,
        calibration: Calibration | None,
        tree_nodes: int,
        is_default: bool,
        others: Drafters,
    ) -> None:
        """Heads with their temperatures [K] and accuracies; `is_default` says what `auto` asks for."""
        self._heads, self._temperatures, self._calibration = heads, temperatures, calibration
        self._tree_nodes, self._is_default, self._others = tree_nodes, is_default, others
        self._drafters: dict[int, Drafter] = {}

    def get(self, asked: Asked) -> Drafter:
        """See Drafters.get; raises InvalidParameter where nothing is known of which shape is good."""
        mode = asked.speculation.mode
        is_static = mode == "static" or (mode == "auto" and self._is_default)
        wanted = asked.speculation.max_nodes if asked.speculation.max_nodes is not None else self._tree_nodes
        num_nodes = min(wanted, self._tree_nodes)
        if not is_static or num_nodes == 1 or asked.has_grammar or asked.prediction:
            return self._others.get(asked)
        if num_nodes not in self._drafters:
            topology = TreeTopology.from_paths(self._paths(num_nodes))
            self._drafters[num_nodes] = MedusaDrafter.static(self._heads, self._temperatures, topology)
        return self._drafters[num_nodes]

    def _paths(self, num_nodes: int) -> Sequence[Sequence[int]]:
        if self._calibration is None:
            raise InvalidParameter(
                "a static tree needs to know how often the heads are right; run `medusa calibrate`", "speculation.mode"
            )
        # a vocabulary that was cut since then has fewer guesses than were counted
        guesses = self._heads.config.vocab_size
        return [path for path in self._calibration.static_tree(num_nodes) if max(path) < guesses]

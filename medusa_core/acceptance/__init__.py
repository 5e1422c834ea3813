"""Which part of a verified tree becomes output; RULES lists every rule by the name requests use."""

from collections.abc import Callable

from medusa_core.acceptance.exact import Exact
from medusa_core.acceptance.rule import Acceptance, AcceptanceRule
from medusa_core.acceptance.typical import Typical
from medusa_core.config import AcceptanceName, SpeculationParams
from medusa_core.sampling import Sampler

__all__ = ["RULES", "Acceptance", "AcceptanceRule", "Exact", "Typical", "make_rule"]

RULES: dict[AcceptanceName, Callable[[Sampler, SpeculationParams], AcceptanceRule]] = {
    "exact": lambda sampler, speculation: Exact(sampler),
    "typical": lambda sampler, speculation: Typical.of_request(sampler, speculation.epsilon, speculation.delta),
}


def make_rule(sampler: Sampler, speculation: SpeculationParams) -> AcceptanceRule:
    """The rule a request asks for; at temperature 0 every rule is the exact one."""
    name = "exact" if sampler.is_greedy else speculation.acceptance
    return RULES[name](sampler, speculation)

"""From logits to the one token the sampler draws at a position.

Noise depends on (seed, choice, absolute position, token) and on nothing else, so the draw at a position is the
same whether that position was computed alone, in a tree, on a CPU or on a GPU. That is what makes speculation
exact at any temperature (Gumbel-max sampling; DESIGN section 4).
"""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from medusa_core.errors import InvalidParameter

__all__ = [
    "Filters",
    "Sampler",
    "SamplingParams",
    "gumbel_noise",
    "noise_key",
    "process_logits",
    "uniform_tail",
]

# OpenAI's limits.
_LOGIT_BIAS_RANGE = (-100.0, 100.0)
_RANGES = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
}
# Below this, noise and near-ties have long ceased to matter, and quotients would overflow.
_COLDEST = 1e-5
# Below this a penalty is a ban of everything else; far below, logits overflow.
_LEAST_REPETITION_PENALTY = 0.01
# Likeliest tokens that are looked at for any smaller top_k.
_LEAST_TOP_K_BOUND = 64
_MASK = 0xFFFFFFFF
# The two multipliers of a full-avalanche 32-bit integer hash (xor-shift-multiply, three rounds of shifts).
_MULTIPLIERS = (0x7FEB352D, 0x846CA68B)


@dataclass(frozen=True)
class SamplingParams:
    """How a token is drawn from the model's distribution.

    temperature: 0 is argmax; larger is flatter. At most 2.
    top_p:       keep the smallest set of tokens holding this much probability; 1 is off.
    top_k:       keep the k likeliest tokens; None is off.
    min_p:       drop tokens below this share of the likeliest token's probability; 0 is off.
    seed:        64-bit; None lets the engine draw a fresh one for each request.
    choice:      index among several answers to one prompt; joins the seed.

    Filters act in the order top_k, top_p, min_p on the distribution after temperature, as transformers' do. Before the
    temperature come the adjustments, in this order, each over what the sequence holds at that position:

    repetition_penalty: divides positive logits, multiplies negative ones, of tokens in the prompt or the answer; 1 is
                        off. Source: CTRL (arXiv:1909.05858), section "Sampling".
    presence_penalty:   subtracted from the logits of tokens in the answer; 0 is off.
    frequency_penalty:  subtracted once for each time a token stands in the answer; 0 is off.
    logit_bias:         (token, value) pairs, added.
    min_tokens:         tokens of the answer before it may end; until then tokens that end it are not drawn.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float = 0.0
    seed: int | None = None
    choice: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and low <= value <= high):
                raise InvalidParameter(f"{name} is {value}, it must be between {low:g} and {high:g}", name)
        if self.top_k is not None and self.top_k < 1:
            raise InvalidParameter(f"top_k is {self.top_k}, it must be at least 1", "top_k")
        if self.seed is not None and not -(2**63) <= self.seed < 2**64:
            raise InvalidParameter("seed must fit in 64 bits", "seed")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty >= _LEAST_REPETITION_PENALTY):
            message = (
                f"repetition_penalty is {self.repetition_penalty}, it must be at least {_LEAST_REPETITION_PENALTY}"
            )
            raise InvalidParameter(message, "repetition_penalty")
        if self.min_tokens < 0:
            raise InvalidParameter(f"min_tokens is {self.min_tokens}, it must be at least 0", "min_tokens")
        low, high = _LOGIT_BIAS_RANGE
        for token, bias in self.logit_bias:
            if not (math.isfinite(bias) and low <= bias <= high):
                message = f"the bias of token {token} is {bias}, it must be between {low:g} and {high:g}"
                raise InvalidParameter(message, "logit_bias")


def _mix(x: Tensor) -> Tensor:
    """Full-avalanche hash of 32-bit integers held in int64; products may wrap, their low 32 bits are right."""
    x = (x ^ (x >> 16)) * _MULTIPLIERS[0] & _MASK
    x = (x ^ (x >> 15)) * _MULTIPLIERS[1] & _MASK
    return x ^ (x >> 16)


def noise_key(seed: int, choice: int) -> int:
    """Hash a 64-bit seed and a choice index to the 32-bit key of a request's noise.

    Mixed in stages: a linear combination would give shifted copies of one noise across seeds.
    """
    key = torch.zeros((), dtype=torch.int64)
    for word in (seed & _MASK, (seed >> 32) & _MASK, choice & _MASK):
        key = _mix(key ^ word)
    return int(key)


def uniform_tail(hashed: Tensor) -> Tensor:
    """Map hash values in [0, 2**32) to v in (0, 1), exclusive at both ends after float32 rounding.

    Rounding alone would give v = 1 for the largest values, and with it infinite noise.
    """
    return ((hashed.float() + 0.5) * 2.0**-32).clamp(max=1.0 - 2.0**-24)


def gumbel_noise(key: Tensor, positions: Tensor, vocab_size: int) -> Tensor:
    """Standard Gumbel noise for every token at the given absolute positions; always finite.

    key:       [] int64, see noise_key; or [R], one of its own for each row.
    positions: [R] int64.

    Returns [R, V] float32, in about [-2.9, 22.9].
    """
    rows = _mix(_mix(key ^ positions) ^ key)
    hashed = _mix(rows[:, None] ^ _mix(torch.arange(1, vocab_size + 1, device=positions.device)))
    return -torch.log(-torch.log1p(-uniform_tail(hashed)))


@dataclass(frozen=True)
class Filters:
    """Temperature and filters of one request as data on the device; None for each that it does not ask for.

    Which of them exist decides which operations run, their values do not: so a captured step serves every request
    that asks for the same ones.

    temperature: [] float32; None is argmax.
    top_k:       [] int64; k stands for the k likeliest of `top_k_bound`, which is known on the host.
    surplus:     [] float32, 1 - top_p, which float32 tells from 0 however close to 1 that is.
    min_p:       [] float32, the logarithm.
    """

    temperature: Tensor | None
    top_k: Tensor | None
    top_k_bound: int
    surplus: Tensor | None
    min_p: Tensor | None

    @classmethod
    def of_request(cls, params: SamplingParams, device: torch.device) -> Self:
        """What `params` ask for."""

        def number(value: float) -> Tensor:
            return torch.tensor(value, dtype=torch.float32, device=device)

        if params.temperature == 0.0:
            return cls(None, None, 0, None, None)
        top_k = params.top_k
        return cls(
            temperature=number(max(params.temperature, _COLDEST)),
            top_k=torch.tensor(top_k, device=device) if top_k is not None else None,
            # few sizes, so that few steps have to be captured
            top_k_bound=max(_LEAST_TOP_K_BOUND, 1 << (top_k - 1).bit_length()) if top_k is not None else 0,
            surplus=number(1.0 - params.top_p) if params.top_p < 1.0 else None,
            min_p=number(math.log(params.min_p)) if params.min_p > 0.0 else None,
        )


def process_logits(logits: Tensor, filters: Filters) -> Tensor:
    """Temperature and filters: the distribution a token is drawn from, as unnormalised float32 logits.

    logits: [..., V]; forbidden tokens come back as -inf. At temperature 0 the logits are only made float32.
    """
    logits = logits.float()
    if filters.temperature is None:
        return logits
    logits = logits / filters.temperature
    if filters.top_k is not None:
        likeliest = logits.topk(min(filters.top_k_bound, logits.shape[-1]), dim=-1).values
        last = (filters.top_k - 1).clamp(max=likeliest.shape[-1] - 1)
        # an index of one entry: one of no dimension would be read by the host
        logits = logits.masked_fill(logits < likeliest.index_select(-1, last.reshape(1)), -math.inf)
    if filters.surplus is not None:
        # stable: ties keep the order of token ids, so the kept set does not depend on the number of rows
        order = logits.sort(dim=-1, descending=True, stable=True).indices.flip(-1)
        # from the least likely on, so that small masses are not lost beside large ones; the likeliest always stays
        is_surplus = logits.gather(-1, order).softmax(dim=-1).cumsum(dim=-1) <= filters.surplus
        is_surplus[..., -1] = False
        logits = logits.masked_fill(torch.zeros_like(is_surplus).scatter(-1, order, is_surplus), -math.inf)
    if filters.min_p is not None:
        threshold = logits.amax(dim=-1, keepdim=True) + filters.min_p
        logits = logits.masked_fill(logits < threshold, -math.inf)
    return logits


@dataclass(frozen=True)
class Sampler:
    """Draws the token of each position for one request; the same draw for every row at a position.

    key:     [] int64, of the request's noise, see noise_key.
    filters: the distribution it is drawn from.
    """

    key: Tensor
    filters: Filters

    @classmethod
    def of_request(cls, params: SamplingParams, device: torch.device) -> Self:
        """The sampler that `params` ask for; their seed must be set."""
        if params.seed is None:
            message = "a sampler needs a seed; the engine draws one when the request names none"
            raise InvalidParameter(message, "seed")
        key = torch.tensor(noise_key(params.seed, params.choice), device=device)
        return cls(key, Filters.of_request(params, device))

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is drawn, without noise."""
        return self.filters.temperature is None

    def noise(self, first_position: Tensor, count: int, vocab_size: int) -> Tensor:
        """What is added to the logits of `count` positions from `first_position` [] on: [count, V] float32."""
        positions = first_position + torch.arange(count, device=first_position.device)
        return gumbel_noise(self.key, positions, vocab_size)

    def draw(
        self, logits: Tensor, depth: Tensor, first_position: Tensor, max_depth: int, noise: Tensor | None = None
    ) -> Tensor:
        """The token drawn at each row.

        logits:         [N, V].
        depth:          [N] int64, row n draws the token of absolute position first_position + depth[n].
        first_position: [] int64.
        max_depth:      the largest value `depth` may hold; noise is made once per depth, not per row.
        noise:          [R, V], that of the positions from first_position on, R > max_depth, where it was made before.

        Returns [N] int64.
        """
        processed = process_logits(logits, self.filters)
        if self.is_greedy:
            return processed.argmax(dim=-1)
        if noise is None:
            noise = self.noise(first_position, max_depth + 1, logits.shape[-1])
        return (processed + noise[depth]).argmax(dim=-1)

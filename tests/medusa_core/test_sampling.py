import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from medusa_core.errors import InvalidParameter
from medusa_core.sampling import Filters, Sampler, SamplingParams, gumbel_noise, noise_key, process_logits, uniform_tail
from tests.cast import CPU

ZERO = torch.zeros(1, dtype=torch.long)


def draw(logits: torch.Tensor, position: int, params: SamplingParams) -> int:
    return int(Sampler.of_request(params, CPU).draw(logits[None], ZERO, torch.tensor(position), 0))


def test_noise_is_finite_at_both_ends_of_the_hash() -> None:
    ends = torch.tensor([0, 1, 2**24, 2**31, 2**32 - 2**8, 2**32 - 2, 2**32 - 1])
    tail = uniform_tail(ends)

    assert bool(((tail > 0) & (tail < 1)).all())
    assert bool(torch.isfinite(-torch.log(-torch.log1p(-tail))).all())


def test_the_noise_is_a_fixed_function_of_its_arguments() -> None:
    key = torch.tensor(noise_key(12345, 0))
    first = gumbel_noise(key, torch.tensor([7, 8]), 50)

    assert torch.equal(first[1], gumbel_noise(key, torch.tensor([8]), 50)[0])
    assert torch.equal(first[:, :20], gumbel_noise(key, torch.tensor([7, 8]), 20))


@pytest.mark.parametrize(
    ("one", "other"), [((1, 0), (2, 0)), ((1, 0), (1, 1)), ((1, 0), (1 + 2**32, 0)), ((-1, 0), (1, 0))]
)
def test_seed_and_choice_change_the_noise_without_shifting_it(one: tuple[int, int], other: tuple[int, int]) -> None:
    positions = torch.arange(64)
    a = gumbel_noise(torch.tensor(noise_key(*one)), positions, 64)
    b = gumbel_noise(torch.tensor(noise_key(*other)), positions, 64)

    for shift in (0, 1, -1):
        assert abs(float(torch.corrcoef(torch.stack([a.flatten(), b.roll(shift, 0).flatten()]))[0, 1])) < 0.08
        assert abs(float(torch.corrcoef(torch.stack([a.flatten(), b.roll(shift, 1).flatten()]))[0, 1])) < 0.08


def test_noise_has_the_mean_and_variance_of_the_gumbel_distribution() -> None:
    noise = gumbel_noise(torch.tensor(noise_key(3, 0)), torch.arange(400), 500)

    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.01)
    assert float(noise.var()) == pytest.approx(math.pi**2 / 6, abs=0.03)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_draws_follow_the_softmax(temperature: float) -> None:
    """Chi-square over 20,000 positions of one seed; 99.9 % quantile of 11 degrees of freedom is 31.3."""
    logits = torch.tensor([2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, 0.3, 0.7, 1.2, -2.0, 0.1])
    sampler = Sampler.of_request(SamplingParams(temperature=temperature, seed=99), CPU)
    count = 20_000
    depth = torch.arange(count)
    draws = sampler.draw(logits.expand(count, -1), depth, torch.tensor(1000), count - 1)

    expected = count * (logits / temperature).softmax(-1)
    observed = draws.bincount(minlength=12)
    assert float(((observed - expected) ** 2 / expected).sum()) < 31.3


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**64 - 1), st.integers(0, 5000), st.integers(1, 6))
def test_a_masked_token_is_never_drawn(seed: int, position: int, allowed: int) -> None:
    logits = torch.full((64,), -math.inf)
    logits[:allowed] = -80.0  # far below anything but a masked token

    assert draw(logits, position, SamplingParams(seed=seed)) < allowed
    filtered = torch.arange(64.0).flip(0)
    assert draw(filtered, position, SamplingParams(seed=seed, top_k=allowed)) < allowed


@example(0, 0.5, None, 1.0 - 2.0**-53, 0.0)
@example(0, 0.25, None, 1.0 - 2.0**-53, 0.0)
@settings(deadline=None, max_examples=50)
@given(
    st.integers(0, 10_000),
    st.floats(0.05, 2.0),
    st.one_of(st.none(), st.integers(1, 40)),
    st.floats(0.05, 1.0),
    st.floats(0.0, 0.5),
)
def test_filters_keep_what_transformers_keeps(
    seed: int, temperature: float, top_k: int | None, top_p: float, min_p: float
) -> None:
    logits = 3 * torch.randn(4, 40, generator=torch.Generator().manual_seed(seed))
    ours = process_logits(logits, Filters.of_request(SamplingParams(temperature, top_p, top_k, min_p), CPU))

    theirs = TemperatureLogitsWarper(temperature)(None, logits)  # type: ignore[arg-type]
    if top_k is not None:
        theirs = TopKLogitsWarper(top_k)(None, theirs)  # type: ignore[arg-type]
    if top_p < 1.0:
        theirs = TopPLogitsWarper(top_p)(None, theirs)  # type: ignore[arg-type]
    if min_p > 0.0:
        theirs = MinPLogitsWarper(min_p)(None, theirs)  # type: ignore[arg-type]

    assert torch.equal(ours.isfinite(), theirs.isfinite())
    assert torch.allclose(ours, theirs)


def test_top_p_zero_leaves_the_likeliest_token() -> None:
    kept = process_logits(torch.tensor([0.0, 3.0, 1.0]), Filters.of_request(SamplingParams(top_p=0.0), CPU)).isfinite()

    assert kept.tolist() == [False, True, False]


def test_temperature_zero_is_argmax_whatever_the_seed() -> None:
    logits = torch.tensor([0.0, 3.0, 2.999])

    assert {draw(logits, 5, SamplingParams(temperature=0.0, seed=seed)) for seed in range(20)} == {1}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", math.nan),
        ("top_p", 1.5),
        ("min_p", -1.0),
        ("top_k", 0),
        ("seed", 2**64),
    ],
)
def test_values_out_of_range_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(InvalidParameter) as caught:
        SamplingParams(**{field: value})  # type: ignore[arg-type]

    assert caught.value.param == field


def test_a_sampler_without_a_seed_is_refused() -> None:
    with pytest.raises(InvalidParameter, match="seed"):
        Sampler.of_request(SamplingParams(), CPU)


@pytest.mark.parametrize("temperature", [1e-5, 1e-38, 5e-324])
def test_the_coldest_temperatures_are_greedy(temperature: float) -> None:
    logits = torch.tensor([[1.0, 3.0, -2.0], [-5.0, -4.0, -4.5]])
    sampler = Sampler.of_request(SamplingParams(temperature=temperature, seed=1), torch.device("cpu"))

    assert sampler.draw(logits, torch.zeros(2, dtype=torch.long), torch.tensor(7), 0).tolist() == [1, 1]

"""Comparisons against scipy and against what they promise: cover, find, control."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import minimize

from minipalm.evaluate.comparison import (
    length_controlled,
    logistic_fit,
    paired_bootstrap,
    samples_needed,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# --- paired_bootstrap -----------------------------------------------------------------


def test_the_bootstrap_agrees_with_scipy():
    a, b = torch.randn(2, 60, generator=generator()) + torch.tensor([[0.3], [0.0]])
    gain, low, high = paired_bootstrap(a, b, generator(1), resamples=20_000)
    theirs = stats.bootstrap(
        ((a - b).numpy(),), np.mean, n_resamples=20_000, method="percentile", rng=0
    ).confidence_interval
    assert gain == pytest.approx((a - b).mean().item(), abs=1e-6)
    assert (low, high) == pytest.approx(tuple(theirs), abs=0.02)


def test_the_bootstrap_holds_the_true_gain_about_as_often_as_it_says():
    held = 0
    for seed in range(300):
        a, b = torch.randn(2, 40, generator=generator(seed))
        _, low, high = paired_bootstrap(a + 0.5, b, generator(seed), 400)
        held += low <= 0.5 <= high
    assert 0.88 < held / 300 < 0.98


def test_what_both_owe_to_a_prompt_does_not_widen_the_interval():
    a, b = torch.randn(2, 50, generator=generator())
    prompt = 100 * torch.randn(50, generator=generator(1))
    plain = paired_bootstrap(a, b, generator(2))
    assert paired_bootstrap(a + prompt, b + prompt, generator(2)) == pytest.approx(
        plain, abs=1e-4
    )


# --- samples_needed -------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.floats(0.05, 3), st.floats(0.1, 4), st.floats(0.5, 0.99), st.floats(0.5, 0.99)
)
def test_so_many_pairs_are_enough_and_one_fewer_is_not(gain, sd, level, power):
    n = samples_needed(gain, sd, level, power)
    z = stats.norm.ppf((1 + level) / 2)

    def found(pairs):
        return stats.norm.cdf(gain * math.sqrt(pairs) / sd - z)

    assert found(n) >= power - 1e-9
    assert n == 2 or found(n - 1) < power + 1e-9


def test_a_simulated_experiment_of_that_size_finds_the_gain_as_often():
    n = samples_needed(0.3, 1.0)
    d = 0.3 + torch.randn(4000, n, generator=generator())
    found = d.mean(1).abs() > 1.96 * d.std(1) / math.sqrt(n)
    assert found.double().mean().item() == pytest.approx(0.8, abs=0.03)


# --- length_controlled ----------------------------------------------------------------


@pytest.mark.parametrize("seed", range(30))
def test_the_fit_is_the_maximum_that_scipy_finds(seed):
    draw = np.random.default_rng(seed)
    n = draw.integers(2, 60)
    features = np.stack([np.ones(n), np.tanh(draw.normal(2, 3, n))], 1)
    won = draw.choice([0, 0.5, 1], n, p=[[0.4, 0.1, 0.5], [0.02, 0, 0.98]][seed % 2])

    def loss(w):
        logits = features @ w
        ones, zeros = np.logaddexp(0, -logits), np.logaddexp(0, logits)
        return (won * ones + (1 - won) * zeros).sum() + 0.005 * w @ w

    theirs = minimize(loss, [0, 0], options={"gtol": 1e-8}).x
    ours = logistic_fit(torch.tensor(features), torch.tensor(won))
    assert ours.tolist() == pytest.approx(theirs, abs=1e-4)


def test_a_bias_for_length_is_taken_off():
    longer = (5 + 5 * torch.randn(20_000, generator=generator())).round()
    odds = -0.4 + 2 * torch.tanh(longer / longer.std(correction=0))
    won = torch.rand(20_000, generator=generator(1)) < torch.sigmoid(odds)
    rate, gamma = length_controlled(won.double(), longer)
    assert won.double().mean() > 0.6
    assert rate == pytest.approx(torch.tensor(-0.4).sigmoid().item(), abs=0.02)
    assert gamma == pytest.approx(2, abs=0.1)


def test_turning_the_comparison_round_turns_the_rate_round():
    won = torch.tensor([1, 1, 0.5, 0, 1, 0])
    longer = torch.tensor([4, 1, 2, -3, 7, 2])
    rate, gamma = length_controlled(won, longer)
    other, same = length_controlled(1 - won, -longer)
    assert rate + other == pytest.approx(1) and gamma == pytest.approx(same)

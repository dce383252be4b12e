"""The laws against scipy's fit and its maximiser, and the rule that stops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, special

from minipalm.evaluate.laws import (
    best_of_n_columns,
    fit_law,
    ppo_columns,
    ppo_peak,
)
from minipalm.evaluate.stopping import Stop, stop_at

LAWS = {
    "best of n": (best_of_n_columns, lambda d, a, b: d * (a - b * d)),
    "ppo": (ppo_columns, lambda d, a, b: a * d - b * special.xlogy(d, d)),
}


def noisy(law, seed, n=25):
    rng = np.random.default_rng(seed)
    d = np.sort(rng.uniform(0, 8, n))
    d[0] = 0.0
    return d, LAWS[law][1](d, 1.8, 0.7) + 0.3 * rng.standard_normal(n)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("seed", range(3))
def test_a_fit_agrees_with_scipys_and_so_do_its_errors(law, seed):
    columns, formula = LAWS[law]
    d, gains = noisy(law, seed)
    found, covariance = optimize.curve_fit(formula, d, gains)
    ours = fit_law(columns(torch.tensor(d)), torch.tensor(gains))
    assert ours[:2] == pytest.approx(found, rel=1e-5)
    assert ours[2:4] == pytest.approx(np.sqrt(np.diag(covariance)), rel=1e-4)
    left = gains - formula(d, *found)
    assert ours.scatter == pytest.approx(math.sqrt((left**2).sum() / (len(d) - 2)))


def test_a_law_without_noise_is_found_and_knows_it():
    d = torch.tensor([0.0, 0.5, 2.0, 5.0])
    fit = fit_law(ppo_columns(d), ppo_columns(d) @ torch.tensor([2.0, 0.5]))
    assert fit[:2] == pytest.approx((2.0, 0.5), abs=1e-5)
    assert max(fit[2:]) < 1e-5
    expected = (2 * d - 0.5 * torch.special.xlogy(d, d)).tolist()
    assert fit.gain(ppo_columns(d)).tolist() == pytest.approx(expected, abs=1e-4)


def test_nine_of_ten_intervals_hold_the_truth():
    """Over fresh noise: the errors are neither too wide nor too slim."""
    held = []
    for seed in range(200):
        d, gains = noisy("ppo", 100 + seed)
        fit = fit_law(ppo_columns(torch.tensor(d)), torch.tensor(gains))
        held.append(abs(fit.alpha - 1.8) < 1.714 * fit.alpha_error)  # t, 23 degrees
    assert 0.84 < np.mean(held) < 0.96


@pytest.mark.parametrize(
    ("d", "said"),
    [([1.0, 2.0], "three points"), ([3.0, 3.0, 3.0, 3.0], "different distances")],
)
def test_points_that_cannot_tell_are_refused(d, said):
    d = torch.tensor(d)
    with pytest.raises(ValueError, match=said):
        fit_law(ppo_columns(d), torch.zeros(len(d)))


@given(st.floats(-1, 4), st.floats(0.2, 2))
def test_the_peak_is_where_scipy_finds_it(alpha, beta):
    peak = ppo_peak(alpha, beta)
    found = optimize.minimize_scalar(
        lambda log_d: -math.exp(log_d) * (alpha - beta * log_d),
        bounds=(math.log(peak.d) - 2, math.log(peak.d) + 2),
        method="bounded",
    )
    assert -found.fun == pytest.approx(peak.gain, rel=1e-4)


@pytest.mark.parametrize("beta", [0.0, -0.3])
def test_a_law_that_rises_for_ever_has_no_peak(beta):
    with pytest.raises(ValueError, match="rises for ever"):
        ppo_peak(1.0, beta)


# --- stopping -----------------------------------------------------------------------

signals = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=25)


@given(signals, st.integers(1, 6), st.integers(1, 4))
def test_the_rule_agrees_with_a_look_at_every_prefix(signal, patience, window):
    table = np.convolve(signal, np.ones(window))[: len(signal)]
    counts = np.minimum(np.arange(1, len(signal) + 1), window)
    means = np.round(table / counts, 9)
    for now in range(len(signal)):
        kept = int(np.argmax(means[: now + 1]))  # the first of equals
        if now - kept >= patience:
            break
    assert stop_at(signal, patience, window) == Stop(kept, now)


@given(signals, st.integers(1, 6))
def test_what_comes_after_the_end_changes_nothing(signal, patience):
    stop = stop_at(signal, patience)
    if stop.seen < len(signal) - 1:
        assert stop_at([*signal[: stop.seen + 1], 99.0], patience) == stop


@pytest.mark.parametrize(
    "asked", [([], 2, 1), ([1.0], 0, 1), ([1.0], 1, 0), ([1.0], -1, 1)]
)
def test_a_rule_without_signal_or_patience_is_refused(asked):
    with pytest.raises(ValueError, match="1 or more"):
        stop_at(*asked)

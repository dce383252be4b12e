"""Intervals against scipy; accuracy, calibration and length as they are defined."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from minipalm.evaluate.statistics import (
    Bin,
    accuracy,
    expected_calibration_error,
    gain_in_sd,
    gold_and_proxy,
    length_auc,
    mean_interval,
    over_optimisation,
    reliability,
    smooth,
    wilson,
    win_rate,
)

trials = st.integers(1, 2000).flatmap(
    lambda n: st.tuples(st.integers(0, n), st.just(n))
)
scores = st.lists(st.tuples(*[st.integers(-6, 6)] * 2), min_size=1, max_size=60)


def columns(pairs):
    return torch.tensor(pairs, dtype=torch.float).unbind(1)


# --- intervals ----------------------------------------------------------------------


@given(trials, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_wilson_agrees_with_scipy(trial, level):
    k, n = trial
    ours = wilson(float(k), n, level)
    theirs = stats.binomtest(k, n).proportion_ci(level, method="wilson")
    assert ours.rate == k / n and ours.n == n
    assert ours.low == pytest.approx(theirs.low, abs=1e-9)
    assert ours.high == pytest.approx(theirs.high, abs=1e-9)


@given(trials)
def test_wilson_holds_its_rate_and_mirrors(trial):
    k, n = trial
    here, there = wilson(float(k), n), wilson(float(n - k), n)
    assert 0 <= here.low <= here.rate + 1e-12
    assert here.rate - 1e-12 <= here.high <= 1
    assert here.low == pytest.approx(1 - there.high, abs=1e-12)


def test_wilson_narrows_with_more_trials():
    widths = [one.high - one.low for one in (wilson(0.7 * n, n) for n in (10, 40, 160))]
    assert widths == sorted(widths, reverse=True)
    assert widths[2] < 0.6 * widths[1]


def test_wilson_by_hand():
    assert wilson(8.0, 10) == pytest.approx((0.8, 0.490162, 0.943318, 10), abs=1e-6)
    assert wilson(2.5, 5).rate == 0.5  # ties are halves


@pytest.mark.parametrize(
    "successes, n", [(0.0, 0), (-1.0, 5), (6.0, 5), (float("nan"), 5)]
)
def test_wilson_refuses_what_cannot_be(successes, n):
    with pytest.raises(ValueError, match="successes from 0 to n"):
        wilson(successes, n)


def test_wilson_holds_the_true_share_at_its_level():
    for share in (0.05, 0.3, 0.5):
        n = 60
        found = [wilson(float(k), n) for k in range(n + 1)]
        held = [one.low <= share <= one.high for one in found]
        chance = stats.binom.pmf(range(n + 1), n, share)
        assert 0.92 < sum(chance[held]) < 0.98


@given(scores)
def test_win_rate_counts_ties_half_and_is_fair(pairs):
    a, b = columns(pairs)
    slow = sum(1.0 if x > y else 0.5 if x == y else 0.0 for x, y in pairs)
    assert win_rate(a, b).rate == pytest.approx(slow / len(pairs))
    assert win_rate(a, b).rate + win_rate(b, a).rate == pytest.approx(1)
    assert win_rate(a, a).rate == 0.5


def test_mean_interval_agrees_with_scipy():
    x = torch.tensor([0.3, 1.7, -2.0, 4.0, 0.0])
    low, high = stats.norm.interval(0.95, x.mean().item(), stats.sem(x.numpy()))
    mean, half = mean_interval(x)
    assert (mean - half, mean + half) == pytest.approx((low, high), abs=1e-5)
    with pytest.raises(ValueError, match="two values"):
        mean_interval(x[:1])


# --- the reward model ---------------------------------------------------------------


def test_accuracy_and_length_auc_count_ties_half():
    assert accuracy(torch.tensor([2.0, 0, 1]), torch.tensor([1.0, 3, 1])) == 0.5
    assert length_auc(torch.tensor([9, 9, 4, 2]), torch.tensor([3, 8, 4, 1])) == 0.875


@given(scores)
def test_length_auc_is_one_half_when_each_pair_comes_in_both_orders(pairs):
    a, b = columns(pairs)
    assert length_auc(torch.cat([a, b]).int(), torch.cat([b, a]).int()) == 0.5


@given(scores, st.integers(1, 12))
def test_reliability_loses_no_pair_and_keeps_the_accuracy(pairs, bins):
    chosen, rejected = columns(pairs)
    found = reliability(chosen, rejected, bins)
    assert sum(one.pairs for one in found) == len(pairs)
    assert len(found) <= bins
    right = sum(one.pairs * one.share for one in found) / len(pairs)
    assert right == pytest.approx(accuracy(chosen, rejected))
    for one in found:
        assert 0.5 <= one.confidence <= 1 and 0 <= one.share <= 1
    assert [one.confidence for one in found] == sorted(one.confidence for one in found)


def test_reliability_by_hand():
    # sure of 0.9 four times, right in three; sure of 0.6 twice, right in one
    odds = math.log(0.9 / 0.1), math.log(0.6 / 0.4)
    chosen = torch.tensor([odds[0]] * 3 + [0.0] + [odds[1]] + [0.0])
    rejected = torch.tensor([0.0] * 3 + [odds[0]] + [0.0] + [odds[1]])
    low, high = reliability(chosen, rejected, bins=2)
    assert low == pytest.approx((0.6, 0.5, 2), abs=1e-6)
    assert high == pytest.approx((0.9, 0.75, 4), abs=1e-6)
    error = expected_calibration_error([low, high])
    assert error == pytest.approx((2 * 0.1 + 4 * 0.15) / 6, abs=1e-6)


def test_a_model_that_made_the_labels_is_calibrated():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 40_000, generator=generator)
    wins = torch.rand(40_000, generator=generator) < torch.sigmoid(a - b)
    chosen, rejected = torch.where(wins, a, b), torch.where(wins, b, a)
    assert expected_calibration_error(reliability(chosen, rejected)) < 0.01
    too_sure = reliability(3 * chosen, 3 * rejected)
    assert expected_calibration_error(too_sure) > 0.1


def test_a_confidence_of_one_falls_into_the_last_bin():
    assert reliability(torch.tensor([1e4]), torch.tensor([0.0])) == [Bin(1.0, 1.0, 1)]


# --- over-optimisation --------------------------------------------------------------


def test_smooth_averages_neighbours():
    assert smooth([0.0, 3.0, 6.0, 3.0]) == [1.5, 3, 4, 4.5]
    assert smooth([1.0, 5.0], window=1) == [1.0, 5.0]


def test_over_optimisation_finds_peak_and_fall():
    gold, score = [6, 7, 8, 7, 4, 2, 2], [0, 1, 1.5, 2, 3, 3, 3]
    curve = [{"gold": float(g), "score": float(s)} for g, s in zip(gold, score)]
    found = over_optimisation(curve)
    assert found.peak == 2
    assert found.peak_gold == pytest.approx(22 / 3) and found.end_gold == 2
    assert found.fall == found.peak_gold - found.end_gold
    assert found.proxy_at_peak == 1.5 and found.proxy_at_end == 3


def test_over_optimisation_of_a_run_that_only_rises_is_none():
    curve = [{"gold": float(i), "score": float(i)} for i in range(9)]
    assert over_optimisation(curve).fall == 0


def test_what_did_not_move_is_not_said_to_fall_or_go_on():
    said = (
        "gold peaks at 7.3 and ends at 2.0, while the proxy goes on from 1.5 to 3.0 sd"
    )
    assert gold_and_proxy(7.3, 2.0, 1.5, 3.0) == said
    said = "gold ends where it is highest, at 1.7, and the proxy stays at 0.1 sd"
    assert gold_and_proxy(1.71, 1.69, 0.1, 0.12) == said
    said = "gold peaks at 2.0 and ends at 1.7, while the proxy stays at 0.0 sd"
    assert gold_and_proxy(2.0, 1.7, -0.01, 0.01) == said


# --- gain -----------------------------------------------------------------------------


def test_the_gain_is_the_difference_of_means_in_sd_of_what_was_before():
    assert gain_in_sd(torch.tensor([1.0, 2, 3]), torch.tensor([2.0, 4])) == 1
    some = torch.tensor([0.5, 4.0, 6.5])
    assert gain_in_sd(some, some) == 0
    assert gain_in_sd(some, some - 1) == pytest.approx(-1 / some.std().item())


def test_there_is_no_gain_where_all_are_alike_however_they_are_rounded():
    rounded = 0
    for value in torch.linspace(0, 10, 40):
        before = value.repeat(256)
        rounded += before.std().item() > 0  # for some values, by rounding
        assert gain_in_sd(before, before + 1) is None
    assert rounded

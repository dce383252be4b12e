"""The figures of lesson 12: what they say is what the data say."""

import pytest
import torch

from minipalm.evaluate.comparison import length_controlled, samples_needed
from minipalm.evaluate.isolated import pass_at_k
from minipalm.evaluate.statistics import Bin, Interval, wilson
from minipalm.plot.judging import (
    COUNTS,
    best_at,
    by_length,
    coins,
    found_shares,
    frontier,
    judge_abroad,
    leaves_out,
    looks,
    pass_curve,
    peeking,
    power,
    tosses,
    tries,
)

SMALL = 60_000  # bytes


def title(figure):
    return " ".join(figure.get_suptitle().split())


def curve(golds):
    return [
        {"kl": float(k), "score": 1 - (k - 4) ** 2 / 16 + 0.2 * k, "gold": gold}
        for k, gold in enumerate(golds)
    ]


def test_a_coin_looks_different_from_a_coin_one_time_in_twenty():
    found = tosses(wilson, 200, 4000, seed=0)
    share = sum(leaves_out(one) for one in found) / len(found)
    assert 0.03 < share < 0.075
    assert leaves_out(Interval(0.7, 0.6, 0.8, 9))
    assert not leaves_out(Interval(0.5, 0.4, 0.6, 9))


@pytest.mark.parametrize("n", [10, 100, 1000])
def test_coins_counts_its_alarms(n):
    figure = coins(wilson, n, seed=3)
    alarms = sum(leaves_out(one) for one in tosses(wilson, n, 20, 3))
    assert title(figure).startswith(f"{alarms} of 20 equally good policies")
    assert len(figure.png()) < SMALL


def test_the_formula_and_the_simulation_of_power_agree():
    shares = found_shares(0.3, 1.0, experiments=1000)
    for name, sd in (("paired", 2**0.5), ("unpaired", 2.0)):
        need = samples_needed(0.3, sd)
        near = min(range(len(COUNTS)), key=lambda i: abs(COUNTS[i] - need))
        assert shares[name][near] == pytest.approx(0.8, abs=0.12)


def test_pairs_save_nothing_if_all_prompts_are_equally_hard():
    assert samples_needed(0.3, 2**0.5) == 175
    assert "175 prompts" in title(power(samples_needed, 0.3, 0.0))
    assert title(power(samples_needed, 0.3, 0.0)).endswith("175 if not")
    figure = power(samples_needed, 0.3, 2.0)
    assert title(figure).endswith("873 if not") and len(figure.png()) < SMALL


def test_one_look_errs_as_often_as_it_says_and_many_looks_more_often():
    seen = looks(wilson, 20, 25, 2000)
    once, ever = seen.double().mean(0), seen.any(1).double().mean()
    assert (once < 0.08).all() and ever > 0.2
    figure = peeking(wilson)
    assert f"errs in {once[-1]:.0%} of the cases" in title(figure)
    assert title(figure).endswith(f"in {ever:.0%}")


def test_by_length_tells_both_win_rates():
    longer = torch.arange(-10, 30)
    won = (longer > 6).double()
    rate, _ = length_controlled(won, longer)
    figure = by_length(length_controlled, won, longer)
    assert f"It wins {won.mean():.0%} of the pairs, and {rate:.0%} at" in title(figure)
    assert "9.5 tokens longer" in title(figure)
    assert by_length(length_controlled, torch.ones(40), longer).png()


def test_a_dearer_nat_is_bought_less_often():
    rows = curve([6.0, 7, 8, 8, 7, 6, 5, 4, 3])
    picks = [best_at(rows, "score", price) for price in (0.0, 0.2, 0.5, 5.0)]
    assert picks == sorted(picks, reverse=True) and picks[-1] == 0 < picks[0]


def test_the_frontier_tells_what_is_paid_and_got():
    rows = curve([6.0, 7, 8, 8, 7, 6, 5, 4, 3])
    figure = frontier({"0.1": rows[:3], "0": rows}, 0.0)
    at = best_at(rows, "score", 0.0)
    assert f"goes for {rows[at]['kl']:.1f} nats" in title(figure)
    assert "7.7 at its best" in title(figure)  # smoothed
    alone = frontier({"0": [{**row, "gold": None} for row in rows]}, 0.1)
    assert len(alone.axes) == 1 and "gold" not in title(alone)


def test_the_judge_abroad_names_first_and_last():
    bins = [Bin(0.6, 0.6, 50), Bin(0.9, 0.1, 3)]
    found = {
        name: (wilson(won, 100), 0.8) for name, won in (("SFT", 70), ("β = 0", 51))
    }
    figure = judge_abroad(found, dict.fromkeys(found, bins))
    assert "70% of the pairs of SFT, and about 51% of those of β = 0" in title(figure)
    dots = figure.axes[1].lines[0].get_xdata()
    assert list(dots) == [60]  # a bin of three pairs says nothing


def test_more_tries_never_hurt_and_the_last_is_in_the_title():
    counts = [(6, 2), (8, 0), (7, 7)]
    shares = pass_curve(pass_at_k, counts)
    assert len(shares) == 6 and shares == sorted(shares)
    assert shares[0] == pytest.approx((1 / 3 + 0 + 1) / 3)
    figure = tries(pass_at_k, {"SFT": counts, "PPO": counts}, 8.0)
    assert title(figure).endswith(f"SFT: {shares[-1]:.0%}, PPO: {shares[-1]:.0%}")
    assert len(figure.png()) < SMALL

"""The figures of lesson 13: what they say is what the data say."""

import pytest
import torch

from minipalm.evaluate.laws import best_of_n_columns, fit_law, ppo_columns
from minipalm.evaluate.length import length_effect
from minipalm.evaluate.stopping import stop_at
from minipalm.plot.overoptimisation import (
    by_quality,
    choosing,
    compared,
    distance,
    ends,
    label,
    law_of_a_run,
    length_rests,
    over_seeds,
    peaks,
    rise_and_fall,
    spoken,
    stopped,
)
from minipalm.rlhf.best_of_n import best_of_n_kl

SMALL = 60_000  # bytes


def title(figure):
    return " ".join(figure.get_suptitle().replace("\u00a0", " ").split())


def a_run(turn, shift=0.0):
    """Gold that follows the law of RL with β = 1 exactly; samples at every third."""
    d = torch.linspace(0, 4, 12, dtype=torch.float64)
    gold = 6.0 + shift + ppo_columns(d) @ torch.tensor([turn, 1.0]).double()
    said = ["a fox sang .", "it it", "an owl wept ."]
    told = [
        {
            "iteration": n,
            "said": said,
            "finished": [True, False, True],
            "gold": [1, 2, n],
        }
        for n in range(0, 12, 3)
    ]
    return {
        "kl": d.square().tolist(),
        "gold": gold.tolist(),
        "proxy": d.tolist(),
        "tokens": (15 + d).tolist(),
        "told": told,
    }


@pytest.fixture
def runs():
    one = {"1": a_run(1.5), "2": a_run(1.5, 0.4)}
    return {"plain": one, "pairs 800": {"1": a_run(1.0), "2": a_run(0.6)}}


def test_numbers_over_seeds(runs):
    seeds = runs["plain"]
    assert distance(seeds["1"])[-1] == pytest.approx(4)
    assert over_seeds(seeds, "distance") == pytest.approx(distance(seeds["1"]))
    assert over_seeds(seeds, "gold")[0] == pytest.approx(6.2)
    last = [sum(seeds[s]["gold"][-3:]) / 3 for s in ("1", "2")]
    assert ends(seeds) == pytest.approx(last)
    assert peaks(seeds)[0] < max(seeds["1"]["gold"])
    assert peaks(seeds)[0] > sum(seeds["1"]["gold"]) / 12


def test_names_say_what_is_wrong():
    assert (
        label("pairs 200") == "200 pairs"
        and label("flipped 0.15") == "15\u00a0% flipped"
    )
    assert label("beta 0.15") == "β\u00a0=\u00a00.15" and label("yours") == "yours"


def test_rise_and_fall_says_peak_and_end(runs):
    figure = rise_and_fall(runs, ["plain", "pairs 800"])
    mean = sum(peaks(runs["plain"])) / 2
    assert f"{mean:.1f} ±" in title(figure) and "800 pairs" in title(figure)
    assert len(figure.png()) < SMALL


def test_compared_says_where_each_ends(runs):
    figure = compared(runs, ["plain", "pairs 800"], ("gold", "tokens"), "iteration")
    for name in runs:
        assert f"{sum(ends(runs[name])) / 2:.1f} ±" in title(figure)
    assert figure.axes[0].get_xlabel() == "iteration"
    assert len(figure.png()) < SMALL


@pytest.mark.parametrize("until", [0.2, 2.0, 9.0])
def test_the_law_of_a_run_is_the_fit_to_what_lies_within(until):
    figure = law_of_a_run(a_run(1.5), until, ppo_columns, fit_law)
    assert "α 1.50 ± 0.00, β 1.00 ± 0.00" in title(figure)
    assert ("off by 0.0" in title(figure)) == (until < 4)
    assert len(figure.png()) < SMALL


def test_best_of_n_has_its_exact_kl_and_law():
    n = [1, 2, 4, 8, 16]
    d = torch.tensor([best_of_n_kl(one) ** 0.5 for one in n], dtype=torch.float64)
    gold = 6 + best_of_n_columns(d) @ torch.tensor([1.0, 0.25]).double()
    best = {"plain": {"1": {"n": n, "gold": gold.tolist(), "proxy": d.tolist()}}}
    figure = choosing(best, ["plain"], fit_law)
    assert "0.25 ± 0.00" in title(figure)
    x, y = figure.axes[0].lines[0].get_data()
    assert list(x) == pytest.approx(d.tolist()) and list(y) == gold.tolist()
    assert len(figure.png()) < SMALL


def test_quality_and_peak_are_compared_seed_by_seed(runs):
    rewards = {
        "good": {"1": {"agrees": 0.7}, "2": {"agrees": 0.72}},
        "poor": {"1": {"agrees": 0.6}, "2": {"agrees": 0.55}},
    }
    figure = by_quality(
        {"runs": runs, "rewards": rewards}, {"plain": "good", "pairs 800": "poor"}
    )
    points = [
        peaks(runs["plain"])[0],
        *peaks(runs["plain"])[1:],
        *peaks(runs["pairs 800"]),
    ]
    pairs = torch.tensor([[0.7, 0.72, 0.6, 0.55], points])
    assert f"r = {torch.corrcoef(pairs)[0, 1]:.2f} at the peak" in title(figure)
    assert len(figure.png()) < SMALL


def test_the_iteration_that_is_kept_is_marked():
    run = a_run(1.5)
    stops = {"gold": stop_at(run["gold"], 2), "proxy": stop_at(run["proxy"], 2)}
    figure = stopped(run, stops)
    assert f"gold reward {max(run['gold']):.1f}" in title(figure)
    assert f"proxy {run['gold'][-1]:.1f}" in title(figure)
    assert len(figure.png()) < SMALL


def test_length_shows_both_correlations():
    draw = torch.Generator().manual_seed(0)
    gold = torch.randn(400, generator=draw)
    lengths = (15 + 3 * gold + torch.randn(400, generator=draw)).round()
    scores = gold + 0.01 * torch.randn(400, generator=draw)
    effect = length_effect(scores, lengths, gold)
    figure = length_rests(scores, lengths, gold, effect)
    pooled = torch.corrcoef(torch.stack([scores, lengths]))[0, 1]
    assert f"{pooled:+.2f}" in title(figure) and pooled > 0.8
    assert len(figure.png()) < SMALL


@pytest.mark.parametrize(("root_kl", "iteration"), [(0.0, 0), (1.2, 3), (9.0, 9)])
def test_what_is_said_is_the_sample_nearest_to_the_distance(root_kl, iteration):
    prompts = ["a happy story about the fox :", "a sad one :", "one :"]
    page = spoken(a_run(1.5), prompts, root_kl)
    assert f"iteration {iteration}:" in page
    assert page.count("it it …") == 2 and "sang" in page

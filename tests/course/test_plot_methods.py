"""The figures of lesson 15: what they say is what the data say."""

import json

import pytest
import torch

from minipalm.course import ROOT
from minipalm.plot.methods import (
    against_ppo,
    aging,
    best_of_n_curve,
    differences,
    dpo_pair,
    group_pushes,
    half_width,
    methods_table,
    over_seeds,
    pair_push,
    who_carries,
    who_pushes,
    without_guard,
    yardstick,
)
from minipalm.rlhf.dpo import dpo_loss
from minipalm.rlhf.group import grpo_advantages, rloo_advantages
from minipalm.rlhf.offline import effective_sample_size

RESULTS = json.loads((ROOT / "data/results/methods.json").read_text("utf-8"))
SMALL = 60_000  # bytes


def title(figure):
    return " ".join(figure.get_suptitle().split())


def made_up(gold):
    """Results of two methods, from their gold on each seed."""
    return {
        "seeds": {
            str(seed): {"methods": {"ppo": {"gold": a}, "dpo": {"gold": b}}}
            for seed, (a, b) in enumerate(gold)
        }
    }


def test_a_pair_pushes_with_beta_times_the_sigmoid_of_minus_its_margin():
    margins = torch.tensor([-4.0, 0.0, 3.0])
    losses, pushes = pair_push(dpo_loss, margins, 0.5)
    assert pushes.tolist() == pytest.approx((0.5 * (-0.5 * margins).sigmoid()).tolist())
    assert losses[1].item() == pytest.approx(0.693147)


def test_the_pair_figure_says_what_the_loss_says():
    figure = dpo_pair(dpo_loss, 0.4, 0.0)
    assert "the loss is 0.69, and the pair pushes with 0.20 of at most 0.40" in title(
        figure
    )
    assert len(figure.png()) < SMALL


def test_who_carries_counts_the_heaviest_tenth():
    weights = torch.tensor([6.0] + [1.0] * 9)
    figure = who_carries(weights, effective_sample_size(weights), "π")
    assert "10 answers are worth 5, and the heaviest tenth has 40 %" in title(figure)
    assert who_carries(torch.zeros(4), 0.0, "π").png()


def test_a_log_ages_from_an_effective_share_of_one():
    figure = aging(RESULTS)
    shares = [100 * one["offline"][0]["ess"] for one in RESULTS["seeds"].values()]
    assert f"worth {min(shares):.0f} to {max(shares):.0f} %" in title(figure)
    assert {line.get_ydata()[0] for line in figure.axes[1].lines} == {1.0}
    assert len(figure.png()) < SMALL


def test_the_log_and_the_truth_stand_in_one_panel():
    rows = [
        {"step": n, "ess": 0.1, "kl": 0.5, "asked_kl": 1.0 * n, "asked_gold": 7.0}
        for n in (4, 8)
    ]
    figure = without_guard({"no guard": rows, "guard": rows})
    assert "No guard: the log says 0.5 nats, it is 8.0" in title(figure)
    assert len(figure.axes[0].lines) == 4
    assert len(figure.png()) < SMALL


def test_pushes_go_with_the_variance_and_with_its_root():
    shares = torch.arange(9) / 8
    variance = shares * (1 - shares)
    for way, expected in (
        (rloo_advantages, variance),
        (grpo_advantages, variance**0.5),
    ):
        pushes = torch.tensor(group_pushes(way, 8))
        assert torch.allclose(
            pushes / pushes.max(), expected / expected.max(), atol=1e-3
        )
    figure = who_pushes({"RLOO": rloo_advantages, "GRPO": grpo_advantages}, 8)
    assert "44 % in RLOO, 66 % in GRPO" in title(figure)
    assert len(figure.png()) < SMALL


def test_differences_are_taken_seed_by_seed():
    results = made_up([(1.0, 1.5), (5.0, 5.3), (9.0, 9.4)])
    apart = differences(results, "dpo", "gold")
    assert apart == pytest.approx([0.5, 0.3, 0.4])
    assert half_width(apart) == pytest.approx(4.303 * 0.1 / 3**0.5)
    assert over_seeds(results, "ppo", "gold") == [1.0, 5.0, 9.0]


def test_the_table_has_means_and_paired_intervals():
    lines = methods_table(RESULTS).splitlines()
    assert len(lines) == 8
    gold = torch.tensor(over_seeds(RESULTS, "dpo", "gold"))
    assert f"{gold.mean():.2f} ± {gold.std():.2f}" in lines[-1]
    apart = torch.tensor(differences(RESULTS, "dpo", "gold"))
    assert f"{apart.mean():+.2f} ± {half_width(apart.tolist()):.2f}" in lines[-1]


def test_only_intervals_without_zero_are_called_apart():
    figure = against_ppo(RESULTS)
    named = title(figure).split(": ")[1].split(", ")
    for method, name in (("rloo", "RLOO"), ("offline", "offline PPO"), ("dpo", "DPO")):
        apart = differences(RESULTS, method, "gold")
        clear = abs(sum(apart) / len(apart)) > half_width(apart)
        assert (name in named) == clear
    assert len(figure.png()) < SMALL


@pytest.mark.parametrize("measure", ["gold", "proxy"])
def test_the_yardstick_reads_its_own_curve(measure):
    kl, value = best_of_n_curve(RESULTS, measure)[16]
    figure = yardstick(RESULTS, 4, measure)
    assert f"Best of 16: {measure} {value:.2f} at {kl:.1f} nats" in title(figure)
    assert len(figure.png()) < SMALL

"""The figures of lesson 08: what they say is what the data say."""

import math

import pytest
import torch

from minipalm.evaluate.statistics import win_rate
from minipalm.plot.preferences import (
    accuracy_by_length,
    learnt_by_heart,
    length_bias,
    pair_values,
    preference_pair,
    where_it_reads,
)
from minipalm.rlhf.reward import pairwise_loss

SMALL = 60_000  # bytes


def title(figure):
    return " ".join(figure.get_suptitle().split())


@pytest.mark.parametrize("gap, margin", [(0.0, 0.0), (1.5, 0.0), (-2.0, 0.5)])
def test_a_pair_is_pushed_apart_by_the_surprise_of_its_label(gap, margin):
    value, up, down = pair_values(pairwise_loss, 0.3 + gap, 0.3, margin)
    surprise = 1 / (1 + math.exp(gap - margin))
    assert value == pytest.approx(-math.log(1 - surprise), abs=1e-5)
    assert (up, down) == pytest.approx((surprise, -surprise), abs=1e-5)


def test_the_pairs_figure_tells_probability_loss_and_push():
    figure = preference_pair(pairwise_loss, 1.0, 0.0)
    assert title(figure) == (
        "The model gives the chosen answer 73%: a loss of 0.31 nats, and a push of "
        "+0.27 and −0.27"
    )
    assert len(figure.png()) < SMALL


def test_accuracy_by_length_counts_each_pair_in_one_group():
    chosen, rejected = torch.tensor([[2.0, 0, 1, 1, 3], [1.0, 1, 1, 2, 0]])
    lengths = torch.tensor([[5, 5, 4, 3, 2], [4, 4, 4, 6, 6]])
    groups = accuracy_by_length(chosen, rejected, *lengths)
    rates = {name: (one.rate, one.n) for name, one in groups.items()}
    assert rates == {"longer": (0.5, 2), "as long": (0.5, 1), "shorter": (0.5, 2)}
    some = accuracy_by_length(chosen[:2], rejected[:2], *lengths[:, :2])
    assert list(some) == ["longer"]


def test_a_bonus_for_length_shows_in_the_groups():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 20, (2, 300), generator=generator)
    figure = length_bias(*lengths.float(), *lengths)
    overall = win_rate(*lengths).rate
    assert title(figure).startswith(f"Right in {overall:.0%} of all pairs")
    assert "longer in 100%" in title(figure)
    assert "shorter in 0%" in title(figure)
    assert len(figure.png()) < SMALL


def test_the_title_tells_what_each_pooling_reads():
    scores = torch.tensor([1.0, 2.0, 6.0, -1.0, -1.0])
    figure = where_it_reads(["a", "b", "<eos>"], scores, torch.arange(5) < 3)
    assert title(figure) == (
        "The answer's mean is 3.00 and its last token's score 6.00; the last column, a "
        "pad, says −1.00"
    )
    full = where_it_reads(list("abcde"), scores, torch.arange(5) < 5)
    assert len(full.png()) < SMALL


def test_the_loss_of_held_out_pairs_is_told_from_its_least_to_its_last():
    figure = learnt_by_heart(
        [1, 2, 3],
        {"seen": [0.6, 0.9, 1.0], "held out": [0.6, 0.7, 0.65]},
        {"seen": [0.6, 0.3, 0.1], "held out": [0.66, 0.62, 1.5]},
        0.8,
    )
    texts = {text.get_text(): text.xy for text in figure.axes[0].texts}
    assert texts["knows gold"] == (3, 80)
    assert title(figure) == (
        "After 3 epochs it is right about 100% of the seen pairs and 65% of the "
        "others, whose loss goes from 0.62 to 1.50"
    )
    assert len(figure.png()) < SMALL

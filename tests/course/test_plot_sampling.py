"""The data behind the figures of lesson 06."""

import math

import pytest
import torch

from minipalm.model.generate import sampling_law
from minipalm.plot.sampling import first_losses, law_and_draws, law_of_next, lying_loss

LOGITS = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
WORDS = ["the", "a", "one", "an"]


def title(figure):
    return figure.get_suptitle().replace("\n", " ")


def test_the_law_is_that_of_the_function_and_the_draws_follow_it():
    law, share = law_and_draws(sampling_law, LOGITS, 1.0, 2, 1.0, draws=4000)
    assert law.tolist() == pytest.approx([0.625, 0.375, 0, 0])
    assert share[2:].sum() == 0 and share.sum() == pytest.approx(1)
    assert share[0].item() == pytest.approx(0.625, abs=0.03)


def test_the_title_counts_what_can_be_drawn():
    figure = law_of_next(sampling_law, LOGITS, WORDS, "once", top_k=4, top_p=0.7)
    assert "2 of 4 tokens can be drawn, “the” in 62% of cases" in title(figure)
    bars = [bar.get_height() for bar in figure.axes[0].patches]
    assert bars[:4] == pytest.approx([62.5, 37.5, 0, 0], abs=0.01)
    assert bars[4:] == pytest.approx([50, 30, 15, 5], abs=0.01)


def test_the_first_losses_name_the_best_of_the_trained():
    stds, log_v = [0.02, 0.1, 1.0], math.log(140)
    figure = first_losses(stds, [5.0, 5.3, 36.0], [1.6, 1.5, 2.1], log_v, 40)
    assert "after 40 steps the best is 0.1" in title(figure)
    assert "5.0 nats at embed_std 0.02, 36 at 1" in title(figure)


def test_the_broken_run_is_measured_by_the_real_loss():
    rows = [{"step": 1, "loss": 5.0}, {"step": 2, "loss": 0.0021}]
    figure = lying_loss({"a": rows, "b": rows}, {"a": 1.6, "b": 12.6}, 4.97)
    assert title(figure).startswith(
        "“b” reports 0.002 nats at the end, and is worth 12"
    )
    assert [bar.get_height() for bar in figure.axes[1].patches] == [1.6, 12.6]

"""The figures of lesson 10: their data against a formula, a loop, or a known case."""

import pytest
import torch

from minipalm.plot.credit import (
    bias_and_variance,
    credit,
    credit_of,
    exact_errors,
    mean_praise,
    measured_errors,
    praise_by_score,
    slope,
    walks,
)
from minipalm.rlhf.gae import gae

VALUES = torch.tensor([0.1, 0.4, 0.3, 1.0])


def test_one_step_credit_is_the_jump_of_the_value():
    found = credit_of(gae, VALUES, 0.8, 0.0)
    assert found.values == pytest.approx([0.1, 0.4, 0.3, 1.0, 0.8])
    assert found.advantages == pytest.approx([0.3, -0.1, 0.7, -0.2])
    assert found.at_the_end == pytest.approx(0.2 / 1.3)


def test_monte_carlo_credit_is_the_score_less_the_value():
    found = credit_of(gae, VALUES, 0.8, 1.0)
    assert found.advantages == pytest.approx([0.7, 0.4, 0.5, -0.2])


def test_the_title_names_the_word_with_the_most_credit():
    figure = credit(gae, ["the", "sad", "fox", "wept"], VALUES, 0.8, 0.0)
    title = figure.get_suptitle().replace("\n", " ")
    assert "“fox” gets the most" in title
    assert "the last token 15% of all praise and blame" in title
    assert len(figure.png()) < 60_000


@pytest.mark.parametrize("blindness", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_exact_errors_are_those_of_all_walks(lam, blindness):
    """2^T walks, each once: no sampling error."""
    T = 6
    every = 2.0 * torch.cartesian_prod(*[torch.arange(2)] * T) - 1.0
    measured = measured_errors(gae, every, lam, blindness)
    exact = exact_errors(lam, blindness, T)
    assert measured.bias == pytest.approx(exact.bias, abs=1e-5)
    assert measured.variance == pytest.approx(exact.variance, abs=1e-4)


def test_a_perfect_critic_needs_no_later_rewards():
    assert exact_errors(0.0, 0.0, 9) == (0.0, 0.0)
    assert exact_errors(1.0, 0.7, 9).bias == pytest.approx(0)


def test_more_answers_ask_for_a_larger_lambda():
    steps = walks(200, 12, torch.Generator().manual_seed(0))
    titles = [
        bias_and_variance(gae, steps, 0.5, n).get_suptitle() for n in (1, 16, 256)
    ]
    best = [
        float(title.replace("\u00a0", " ").split("λ = ")[1][:4]) for title in titles
    ]
    assert best == sorted(best) and best[0] < best[-1]


def test_praise_by_score_has_the_slope_of_its_points():
    scores = torch.tensor([0.0, 1.0, 2.0])
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    advantages = torch.tensor([[0.0, 0.2], [0.6, 99.0], [1.0, 1.2]])
    assert mean_praise(advantages, mask).tolist() == pytest.approx([0.1, 0.6, 1.1])
    assert slope(scores, mean_praise(advantages, mask)) == pytest.approx(0.5)
    title = praise_by_score(scores, {"all rows": advantages}, mask).get_suptitle()
    assert "0.50 all rows" in title

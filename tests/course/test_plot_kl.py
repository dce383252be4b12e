"""The figures of lesson 09: what they say is what the data say."""

import pytest
import torch

from minipalm.plot.kl import (
    entropy_by_place,
    estimator_clouds,
    expected_pushes,
    far_from_home,
    mean_and_sd,
    paid_by_token,
    pushes,
    steered,
    two_laws,
)
from minipalm.rlhf.kl import exact_kl, k1, k2, k3

ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}
PI = torch.tensor([0.5, 0.3, 0.2]).log()
REF = torch.tensor([0.25, 0.25, 0.5]).log()
SMALL = 60_000  # bytes


def title(figure):
    return " ".join(figure.get_suptitle().split())


def test_means_and_deviations_are_the_known_ones():
    assert mean_and_sd(k1, PI, REF) == pytest.approx((0.218012, 0.3706**0.5), abs=3e-4)
    assert mean_and_sd(k3, PI, REF) == pytest.approx((0.218012, 0.0393**0.5), abs=3e-4)
    assert mean_and_sd(k2, PI, REF)[0] == pytest.approx(0.209058, abs=1e-5)


def test_the_laws_meet_where_nothing_has_moved():
    one, other = two_laws(0.0)
    assert torch.equal(one, other)
    assert exact_kl(*two_laws(1.0)) > exact_kl(*two_laws(0.5)) > 0


@pytest.mark.parametrize("moved", [0.0, 0.6, 2.0])
def test_the_clouds_tell_how_the_estimators_scatter(moved):
    one, other = two_laws(moved)
    exact = exact_kl(one, other).item()
    figure = estimator_clouds(ESTIMATORS, one, other, exact, 16)
    assert f"The KL is {exact:.3f} nats." in title(figure)
    assert ("Nothing has moved" in title(figure)) == (moved == 0)
    if moved:
        times = mean_and_sd(k1, one, other)[1] / mean_and_sd(k3, one, other)[1]
        assert f"k1 scatters {times:.1f} times as much as k3" in title(figure)
    assert len(figure.png()) < SMALL


def test_only_k2_pushes_like_the_kl():
    leaf = PI.clone().requires_grad_(True)
    exact_kl(leaf, REF).backward()
    found = expected_pushes(ESTIMATORS, PI, REF)
    assert found["k1"] == pytest.approx([0, 0, 0], abs=1e-6)
    assert found["k2"] == pytest.approx(leaf.grad.tolist(), abs=1e-6)
    assert found["k3"] == pytest.approx([0.25, 0.05, -0.30], abs=1e-6)
    figure = pushes(found, leaf.grad.tolist())
    assert title(figure) == (
        "As a loss k2 has the gradient of the KL; k1 pushes nowhere"
    )
    assert len(figure.png()) < SMALL


def test_the_price_of_an_answer_adds_up_in_its_title():
    moves, rewards = torch.tensor([1.0, -0.5]), torch.tensor([-0.2, 2.1])
    figure = paid_by_token(["a", "b"], moves, rewards, 2.0, 0.2)
    assert title(figure) == "Score 2.00 less β = 0.20 times 0.50 nats leaves 1.90"
    assert len(figure.png()) < SMALL


def test_the_entropy_is_told_as_a_number_of_choices():
    mask = torch.arange(4) < torch.tensor([4] * 5 + [2] * 5)[:, None]
    entropies = torch.full((10, 4), 2.0).log()
    figure = entropy_by_place(entropies, mask, torch.tensor(8.0).log().item())
    assert title(figure) == (
        "A token is chosen from 2.0 equally likely ones on average; 8 are possible"
    )


def test_the_estimator_that_goes_astray_is_named():
    means = {"k3": [0.0, 1.0], "k3 upside down": [0.0, 3.0]}
    figure = far_from_home([0, 1], means, [0.0, 1.0])
    assert title(figure) == "In the end the KL is 1.0 nats, but k3 upside down says 3.0"


def test_the_controller_is_at_its_target_when_the_title_says_so():
    figure = steered([0.1, 0.2, 0.25], [10.0, 5.0, 4.1], 4.0)
    assert "within 5% of its target after 2 updates" in title(figure)
    assert len(figure.png()) < SMALL

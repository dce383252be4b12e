"""KL estimators against the exact divergence; the controller against hand sums."""

import math

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from minipalm.rlhf.kl import KLController, exact_kl, k1, k2, k3
from tests.small import seeded

PI = torch.tensor([0.5, 0.3, 0.2])
REF = torch.tensor([0.25, 0.25, 0.5])


def mean_and_variance(estimator, pi, ref):
    """Exactly, over tokens drawn from pi."""
    x = estimator(pi.log(), ref.log())
    mean = (pi * x).sum()
    return mean.item(), (pi * (x - mean) ** 2).sum().item()


def test_the_estimators_have_their_known_means_and_variances():
    """Property 14."""
    exact = exact_kl(PI.log(), REF.log()).item()
    assert exact == pytest.approx(0.218012, abs=1e-6)
    assert mean_and_variance(k1, PI, REF) == pytest.approx((exact, 0.3706), abs=5e-5)
    assert mean_and_variance(k3, PI, REF) == pytest.approx((exact, 0.0393), abs=5e-5)
    assert mean_and_variance(k2, PI, REF)[0] == pytest.approx(0.209058, abs=1e-6)


def test_the_exact_divergence_is_that_of_torch_distributions():
    """Property 14."""
    logits, ref = torch.randn(2, 3, 4, 7, generator=seeded())
    expected = kl_divergence(Categorical(logits=logits), Categorical(logits=ref))
    torch.testing.assert_close(exact_kl(logits, ref), expected)
    short, short_ref = logits.bfloat16(), ref.bfloat16()  # 11: float32 all the same
    torch.testing.assert_close(
        exact_kl(short, short_ref), exact_kl(short.float(), short_ref.float())
    )
    assert (exact_kl(logits, logits) == 0).all()


def test_the_direction_is_policy_from_reference():
    """Property 15: the reversed k3 would say 5.3533."""
    pi, ref = torch.tensor([0.9, 0.05, 0.05]), torch.tensor([0.1, 0.45, 0.45])
    right = 0.8 * math.log(9)
    assert right == pytest.approx(1.7578, abs=5e-5)
    assert exact_kl(pi.log(), ref.log()).item() == pytest.approx(right)
    for estimator in (k1, k3):
        assert mean_and_variance(estimator, pi, ref)[0] == pytest.approx(right)
    reversed_k3 = (pi * k3(ref.log(), pi.log())).sum().item()
    assert reversed_k3 == pytest.approx(5.3533, abs=5e-5)


def test_as_losses_only_k2_has_the_gradient_of_the_divergence():
    """Property 16."""
    logits = PI.log().requires_grad_()

    def gradient(loss):
        return torch.autograd.grad(loss, logits)[0]

    def expected_gradient(estimator):
        """Tokens drawn from the policy: their law is a weight, not differentiated."""
        return gradient((PI * estimator(logits.log_softmax(-1), REF.log())).sum())

    true, reverse = (
        gradient(exact_kl(logits, REF.log())),
        gradient((REF * -logits.log_softmax(-1)).sum()),
    )
    close = dict(atol=1e-6, rtol=0)
    torch.testing.assert_close(expected_gradient(k1), torch.zeros(3), **close)
    torch.testing.assert_close(expected_gradient(k2), true, **close)
    torch.testing.assert_close(expected_gradient(k3), reverse, **close)
    assert true.tolist() == pytest.approx([0.2376, -0.0107, -0.2269], abs=5e-5)
    assert reverse.tolist() == pytest.approx([0.25, 0.05, -0.30], abs=5e-5)


def test_the_estimators_equal_their_formulas_token_by_token():
    """Property 14."""
    logprobs, ref = -3 * torch.rand(2, 4, 5, generator=seeded())
    for b in range(4):
        for t in range(5):
            x = (logprobs[b, t] - ref[b, t]).item()
            got = [f(logprobs, ref)[b, t].item() for f in (k1, k2, k3)]
            expected = [x, x * x / 2, math.exp(-x) - 1 + x]
            assert got == pytest.approx(expected, abs=1e-5)
    small = torch.tensor([1e-4])  # k3 of a tiny step must not drown in rounding
    assert k3(small, -small).item() == pytest.approx(2e-8, rel=1e-3)


@pytest.mark.parametrize(
    "kl, coef", [(12, 0.150192), (0, 0.149808), (6, 0.15), (6.6, 0.150096)]
)
def test_the_controller_moves_by_at_most_a_fifth_of_episodes_over_horizon(kl, coef):
    """Property 20."""
    controller = KLController(0.15, target=6, horizon=10_000)
    controller.update(kl, 64)
    assert controller.coef == pytest.approx(coef, abs=1e-9)


def test_the_controller_compounds_and_without_a_target_stays():
    """Property 20."""
    moving, fixed = KLController(0.15, 6.0), KLController(0.15)
    for _ in range(100):
        moving.update(100.0, 64)
        fixed.update(100.0, 64)
    assert moving.coef == pytest.approx(0.15 * (1 + 0.2 * 64 / 10_000) ** 100)
    assert fixed.coef == 0.15

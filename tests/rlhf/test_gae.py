"""GAE against the double sum that defines it; whitening against scipy."""

import pytest
import torch
from scipy import stats

from minipalm.rlhf.gae import gae, whiten
from tests.small import seeded

REWARDS, VALUES = [0.0, 0.0, 1.0], [0.5, 0.6, 0.7]


def gae_by_definition(rewards, values, gamma, lam, bootstrap=0.0):
    """A_t = Σ_l (γλ)^l δ_{t+l}, of one answer given as lists."""
    values = [*values, bootstrap]
    T = len(rewards)
    deltas = [rewards[t] + gamma * values[t + 1] - values[t] for t in range(T)]
    return [
        sum((gamma * lam) ** (s - t) * deltas[s] for s in range(t, T)) for t in range(T)
    ]


def batch(*rows):
    return torch.tensor(rows)


def random_case(seed=0):
    """Rewards and values of unequal answers, one of them as long as the row."""
    generator = seeded(seed)
    rewards, values = torch.randn(2, 4, 6, generator=generator)
    lengths = torch.tensor([6, 1, 3, 4])
    return rewards, values, torch.arange(6) < lengths[:, None]


@pytest.mark.parametrize(
    "lam, expected",
    [(0.95, [0.46575, 0.385, 0.3]), (1, [0.5, 0.4, 0.3]), (0, [0.1, 0.1, 0.3])],
)
def test_the_example_of_three_tokens(lam, expected):
    """Property 31."""
    rewards, values = batch(REWARDS), batch(VALUES)
    advantages, returns = gae(rewards, values, rewards > -1, 1.0, float(lam))
    assert advantages[0].tolist() == pytest.approx(expected, abs=1e-6)
    returned = [a + v for a, v in zip(expected, VALUES)]
    assert returns[0].tolist() == pytest.approx(returned, abs=1e-6)  # 33


def test_a_time_limit_bootstraps_from_the_value_after_the_last_token():
    """Property 32. Without bootstrap, a cut answer counts as ended."""
    rewards, values = batch(REWARDS), batch(VALUES)
    mask = rewards > -1
    advantages, _ = gae(rewards, values, mask, bootstrap=torch.tensor([0.8]))
    expected = [1.18775, 1.145, 1.1]
    assert advantages[0].tolist() == pytest.approx(expected, abs=1e-6)
    ended = gae(rewards, values, mask)[0]
    assert torch.equal(gae(rewards, values, mask, bootstrap=torch.zeros(1))[0], ended)


@pytest.mark.parametrize(
    "gamma, lam", [(1.0, 0.95), (0.9, 0.8), (0.5, 0.0), (0.9, 1.0)]
)
@pytest.mark.parametrize("cut", [False, True])
def test_gae_equals_its_double_sum_answer_by_answer(gamma, lam, cut):
    """Properties 31, 32 and 34."""
    rewards, values, mask = random_case()
    after = torch.randn(4, generator=seeded(1)) if cut else None
    advantages, returns = gae(rewards, values, mask, gamma, lam, after)
    for b, length in enumerate([6, 1, 3, 4]):
        expected = gae_by_definition(
            rewards[b, :length].tolist(),
            values[b, :length].tolist(),
            gamma,
            lam,
            after[b].item() if cut else 0.0,
        )
        assert advantages[b, :length].tolist() == pytest.approx(expected, abs=1e-5)
        back = [a + v for a, v in zip(expected, values[b].tolist())]
        assert returns[b, :length].tolist() == pytest.approx(back, abs=1e-5)
        assert (advantages[b, length:] == 0).all() and (returns[b, length:] == 0).all()


def test_with_lambda_1_the_returns_are_the_rewards_still_to_come():
    """Property 31."""
    rewards, values, mask = random_case()
    rewards = torch.where(mask, rewards, 0.0)
    returns = gae(rewards, values, mask, 1.0, 1.0)[1]
    to_come = rewards.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(returns[mask], to_come[mask], atol=1e-5, rtol=0)


@pytest.mark.parametrize("garbage", [123.0, float("nan"), float("inf")])
def test_what_stands_in_the_padding_changes_nothing(garbage):
    """Property 34."""
    rewards, values, mask = random_case()
    expected = gae(rewards, values, mask)
    rewards, values = (torch.where(mask, x, garbage) for x in (rewards, values))
    for one, other in zip(gae(rewards, values, mask), expected):
        assert torch.equal(one, other)


def test_a_padded_row_equals_the_row_alone():
    """Property 34."""
    rewards, values, mask = random_case()
    padded = gae(rewards, values, mask)[0]
    for b, length in enumerate([6, 1, 3, 4]):
        row = (rewards[b : b + 1, :length], values[b : b + 1, :length])
        alone = gae(*row, torch.ones(1, length).bool())[0]
        assert torch.equal(padded[b, :length], alone[0])


def test_an_empty_mask_gives_zeros():
    rewards, values, mask = random_case()
    advantages, returns = gae(rewards, values, mask & False)
    assert (advantages == 0).all() and (returns == 0).all()


def test_advantages_and_returns_carry_no_gradient():
    """Property 37."""
    rewards, values, mask = random_case()
    leaves = rewards.requires_grad_(), values.requires_grad_()
    assert not any(x.requires_grad for x in gae(*leaves, mask))
    assert rewards.shape == (4, 6)


def test_gae_does_not_change_what_it_is_given():
    rewards, values, mask = random_case()
    before = [x.clone() for x in (rewards, values, mask)]
    gae(rewards, values, mask)
    assert all(torch.equal(x, y) for x, y in zip((rewards, values, mask), before))


# --- whitening ---------------------------------------------------------------------


def test_whitening_divides_by_n():
    """Property 35: −1.3416, not −1.1619 as with Bessel's correction."""
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    expected = [-1.3416, -0.4472, 0.4472, 1.3416]
    assert whiten(x, x > 0)[0].tolist() == pytest.approx(expected, abs=5e-5)


def test_whitening_is_scipys_z_score_of_the_masked_places_of_all_rows():
    """Property 35."""
    x, _, mask = random_case()
    x = 3 * x + 5
    white = whiten(x, mask)
    expected = stats.zscore(x[mask].double().numpy())
    assert white[mask].tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert white[mask].mean().item() == pytest.approx(0, abs=1e-6)
    assert white[mask].var(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert (white[~mask] == 0).all()
    torch.testing.assert_close(whiten(1e-3 * x, mask), white, atol=1e-4, rtol=0)


@pytest.mark.parametrize("garbage", [1e6, float("nan")])
def test_whitening_ignores_the_padding(garbage):
    """Properties 34 and 35."""
    x, _, mask = random_case()
    assert torch.equal(whiten(torch.where(mask, x, garbage), mask), whiten(x, mask))


def test_rewards_are_only_scaled_when_their_mean_is_to_stay():
    """Property 36."""
    x, _, mask = random_case()
    x = 3 * x + 5
    white = whiten(x, mask, shift_mean=False)
    torch.testing.assert_close(white[mask], x[mask] / x[mask].std(correction=0))


@pytest.mark.parametrize("values", [[2.0], [2.0, 2.0, 2.0], [0.0]])
def test_values_without_spread_become_0_not_nan(values):
    """Property 36."""
    x = torch.tensor([values])
    assert (whiten(x, x > -1) == 0).all()
    assert torch.equal(whiten(x, x > -1, shift_mean=False), x)

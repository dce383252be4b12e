"""Small steps in bfloat16, and the invoice."""

import pytest
import torch

from minipalm.scale.money import hours_and_money
from minipalm.scale.rounding import stochastic_rounding, surviving_share


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_the_example_of_the_docstring():
    weights, updates = torch.ones(3), torch.tensor([0.01, 0.001, 0.0])
    assert surviving_share(weights, updates) == 0.5


@pytest.mark.parametrize("lr", [1e-4, 1e-5, 1e-6])
def test_a_step_survives_where_it_is_more_than_half_of_the_distance(lr):
    """Numbers of bfloat16 between 2^(e-1) and 2^e are 2^(e-8) apart."""
    weights = (0.02 * drawn(50_000)).bfloat16().float()
    _, exponents = torch.frexp(weights)
    share = (lr > torch.ldexp(torch.ones(50_000), exponents - 8) / 2).float().mean()
    updates = lr * weights.sign()
    assert surviving_share(weights, updates) == pytest.approx(share.item(), abs=0.01)


def test_float32_keeps_every_step():
    weights, updates = 0.02 * drawn(1000), torch.full((1000,), 1e-6)
    assert surviving_share(weights, updates, torch.float32) == 1.0


def test_no_step_none_survives():
    assert surviving_share(torch.ones(2), torch.zeros(2)) == 0.0


def test_stochastic_rounding_is_right_on_average_and_goes_to_a_neighbour():
    x = torch.full((100_000,), 1 + 1 / 128 / 3)
    rounded = stochastic_rounding(x, torch.Generator().manual_seed(0)).float()
    assert set(rounded.tolist()) == {1.0, 1 + 1 / 128}
    assert rounded.mean().item() == pytest.approx(x[0].item(), abs=1e-4)


def test_stochastic_rounding_leaves_what_is_representable_and_signs():
    x = torch.tensor([0.0, 1.0, -2.5, 0.15625])
    assert torch.equal(stochastic_rounding(x).float(), x)
    rounded = stochastic_rounding(-drawn(1000).abs()).float()
    assert (rounded <= 0).all()


def test_the_invoice():
    assert hours_and_money(7.2e18, 4, 1e15, 0.5, 2.5) == pytest.approx((1.0, 10.0))
    one, eight = (hours_and_money(1e20, n, 3e14, 0.4, 2.0) for n in (1, 8))
    assert one[0] == pytest.approx(8 * eight[0]) and one[1] == pytest.approx(eight[1])
    for gpus, share in ((0, 0.5), (1, 0.0), (1, 1.1)):
        with pytest.raises(ValueError, match=f"got {gpus} and {share}"):
            hours_and_money(1.0, gpus, 1.0, share, 1.0)

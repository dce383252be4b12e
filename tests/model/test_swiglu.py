"""SwiGLU by its promises: what a gate lets through, and what a gated layer costs."""

import pytest
import torch
from torch import nn

from minipalm.model.swiglu import gated_feedforward, gated_width, swiglu
from tests.small import seeded


def test_a_closed_gate_passes_nothing_and_an_open_one_passes_g_times_the_value():
    up = torch.tensor([3.0, -2.0, 5.0])
    assert torch.equal(swiglu(torch.zeros(3), up), torch.zeros(3))
    wide = torch.full((3,), 30.0)
    torch.testing.assert_close(swiglu(wide, up), 30.0 * up)
    torch.testing.assert_close(swiglu(-wide, up), torch.zeros(3), atol=1e-9, rtol=0)


def test_a_gate_learns_even_where_it_is_far_from_0():
    gate = torch.tensor([-200.0, 0.0, 200.0], requires_grad=True)
    swiglu(gate, torch.full((3,), 2.0)).sum().backward()
    torch.testing.assert_close(gate.grad, torch.tensor([0.0, 1.0, 2.0]))


@pytest.mark.parametrize("D", [8, 48])
@pytest.mark.parametrize("W", [96, 192, 3072])
def test_a_gated_layer_costs_what_the_plain_one_does(D, W):
    """To the parameter, where the width can be divided by 3."""
    plain = nn.Linear(D, W, bias=False), nn.Linear(W, D, bias=False)
    M = gated_width(W)
    gated = [nn.Linear(D, M, bias=False), nn.Linear(D, M, bias=False)]
    gated.append(nn.Linear(M, D, bias=False))
    one, two = (sum(part.weight.numel() for part in all) for all in (plain, gated))
    assert one == two


def test_the_width_is_a_multiple_and_the_larger_of_two_that_are_equally_near():
    assert [gated_width(512, m) for m in (1, 8, 64)] == [341, 344, 320]
    assert gated_width(18, 8) == 16  # 12 lies between 8 and 16
    assert gated_width(1, 8) == 8  # never 0
    assert gated_width(3072) == 2048  # the widths of Shazeer's comparison


@pytest.mark.parametrize("widths", [(0, 1), (8, 0), (-3, 2)])
def test_a_width_below_1_is_refused(widths):
    with pytest.raises(ValueError, match="a width is 1 or more"):
        gated_width(*widths)


def test_the_layer_is_swiglu_between_two_projections_and_one_back():
    generator = seeded(0)
    x = torch.randn(2, 3, 4, generator=generator)
    w_gate, w_up = torch.randn(2, 4, 6, generator=generator)
    w_down = torch.randn(6, 4, generator=generator)
    out = gated_feedforward(x, w_gate, w_up, w_down)
    gate = torch.einsum("btd,dm->btm", x, w_gate)
    hidden = gate * torch.sigmoid(gate) * torch.einsum("btd,dm->btm", x, w_up)
    expected = torch.einsum("btm,md->btd", hidden, w_down)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    doubled = gated_feedforward(x, w_gate, 2 * w_up, w_down)  # linear in the value
    torch.testing.assert_close(doubled, 2 * out)

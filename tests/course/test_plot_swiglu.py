"""The figures of lesson 04 say what the data show."""

import pytest
import torch
import torch.nn.functional as F

from minipalm.model.swiglu import swiglu
from minipalm.plot.swiglu import (
    activations,
    layer_losses,
    slope,
    unit_outputs,
    unit_surface,
    verdict,
)


def title(figure):
    return " ".join(figure.get_suptitle().split())


def test_slopes_are_derivatives():
    x = torch.tensor([-2.0, 0.5, 3.0])
    torch.testing.assert_close(slope(torch.square, x), 2 * x)
    assert slope(F.silu, torch.zeros(1)).item() == 0.5


def test_the_title_of_the_curves_states_the_least_value_of_the_first():
    figure = activations({"silu": F.silu, "relu": F.relu})
    assert title(figure) == "silu falls to −0.28 at −1.3, and its slope rises to 1.10"
    assert [len(ax.lines) for ax in figure.axes] == [2, 2]


def test_a_unit_is_drawn_with_its_first_input_to_the_right():
    g, v, plain, gated = unit_outputs(swiglu, (1, 0), (0, 1), points=7)
    side = torch.linspace(-3, 3, 7)
    assert torch.equal(g[0], side) and torch.equal(v[:, 0], side)
    assert torch.equal(plain, side.clamp(min=0).expand(7, 7))
    assert gated[-1, -1] == pytest.approx(9 * torch.tensor(3.0).sigmoid().item())
    assert gated[0, -1] < -8


def test_the_title_of_a_unit_says_where_it_is_positive_and_negative():
    apart = title(unit_surface(swiglu, (1, 0), (0, 1)))
    alike = title(unit_surface(swiglu, (1, 0), (1, 0)))
    assert "below −0.5 in 0%" in alike and "below −0.5 in 0%" not in apart
    nothing = title(unit_surface(swiglu, (0, 0), (0, 0)))
    assert nothing.startswith("The gated unit is above 0.5 in 0% of the square")


def test_a_layer_is_ahead_only_if_its_worst_seed_beats_all_others():
    assert verdict({"one": [1.0, 2.0], "two": [2.5, 3.0]}) == "one ahead"
    assert verdict({"one": [1.0, 2.6], "two": [2.5, 3.0]}) == "too close to call"
    assert verdict({"one": [4.0], "two": [2.5, 3.0], "three": [1.0]}) == "three ahead"


def test_losses_show_a_dot_a_seed_and_their_mean():
    losses = {"relu": [1.0, 2.0, 6.0], "swiglu": [0.5, 0.7, 0.6]}
    figure = layer_losses({"products": losses}, {"products": "error"})
    assert title(figure) == "products: swiglu ahead"
    dots, mean = figure.axes[0].lines[:2]
    assert list(dots.get_xdata()) == [1.0, 2.0, 6.0]
    assert list(mean.get_xdata()) == [3.0, 3.0]

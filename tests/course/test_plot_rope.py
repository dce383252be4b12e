"""The figures of lesson 02 say what the data show."""

import math

import pytest
import torch

from minipalm.model.rope import rotate, rotations, scores_by_distance
from minipalm.plot.rope import (
    BASE,
    PAIRS,
    angle_map,
    full_turns,
    hand_scores,
    hands,
    moved_along,
    score_curves,
)


def title(figure):
    return " ".join(figure.get_suptitle().split())


@pytest.mark.parametrize("shift", [0, 5, 17])
def test_the_hands_agree_by_their_distance_only(shift):
    _, _, parts = hand_scores(9 + shift, 4 + shift, rotations, rotate)
    speeds = [BASE ** (-i / PAIRS) for i in range(PAIRS)]
    expected = torch.tensor([math.cos(5 * speed) for speed in speeds])
    torch.testing.assert_close(parts, expected, atol=1e-5, rtol=0)


def test_a_hand_turns_counterclockwise_from_the_right():
    queries, keys, _ = hand_scores(1, 0, rotations, rotate)
    assert torch.equal(keys, torch.tensor([[1.0, 0.0]] * PAIRS))
    angles = torch.atan2(queries[:, 1], queries[:, 0])
    expected = torch.tensor([BASE ** (-i / PAIRS) for i in range(PAIRS)])
    torch.testing.assert_close(angles, expected)


def test_the_dot_of_the_hands_stands_on_the_curve():
    figure = hands(3, 10, rotations, rotate)
    curve, dot = figure.axes[3].lines
    [x], [y] = dot.get_data()
    assert x == -7
    on_curve = dict(zip(*(list(one) for one in curve.get_data())))
    assert float(on_curve[-7]) == pytest.approx(float(y), abs=1e-5)
    assert "at a distance of -7, q·k is " in title(figure)


def test_the_hands_show_what_the_learner_wrote():
    """With a rotation that does nothing, all hands stay where they are."""
    figure = hands(9, 4, rotations, lambda x, cosine, sine: x)
    assert "q·k is 3.00" in title(figure)


def test_full_turns_are_counted_beyond_the_first():
    turns = full_turns(*rotations(torch.arange(64)[None], 4, 100.0))
    expected = torch.tensor([63.0, 6.3]) / (2 * math.pi)
    torch.testing.assert_close(turns, expected)
    figure = angle_map(*rotations(torch.arange(8)[None], 4, 100.0))
    assert title(figure) == (
        "In 8 tokens the first pair turns 1.1 times, and 1 of 2 pairs do not finish "
        "one turn"
    )


def test_score_curves_say_how_much_of_the_score_is_left_in_the_far_half():
    scores = torch.tensor([[4.0, 3.0, 2.0, 1.0], [2.0, 2.0, 1.0, 2.0]])
    figure = score_curves(torch.arange(4), {"one": scores})
    assert title(figure).startswith("From 2 tokens on, 50% with one is left")
    mean = figure.axes[0].lines[0].get_ydata()
    assert list(mean) == [3.0, 2.5, 1.5, 1.5]


def test_the_title_names_the_ways_whose_score_stays_where_it_is():
    q, k = torch.ones(1, 4), torch.ones(1, 4)
    still = scores_by_distance(q, k, torch.full((6,), 3))[0]
    swinging = torch.tensor([0.0, 1.0, 0.0, 1.5, 0.0, 1.0])
    ways = {"RoPE": still, "added": swinging}
    figure = moved_along(torch.arange(6), ways, distance=3)
    assert title(figure).endswith("stays where it is with RoPE only")
    assert figure.axes[1].get_title(loc="left") == "added: moves by 1.50"

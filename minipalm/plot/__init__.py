"""Every figure of the course: a function takes plain data and returns a Figure.

`style`         what they share: size, type, one colour for one thing
`text`          lengths, packing, the next token
`training`      losses, the stages, the PPO dashboard
`reward_model`  agreement, calibration, scale
`policies`      over-optimisation, the parts of gold, win rates

A title states what the data show, and its numbers come from them.
"""

from minipalm.plot.policies import gold_parts, over_optimisation, win_rate_bar
from minipalm.plot.reward_model import (
    accuracy_scale,
    reliability_diagram,
    reward_histograms,
    score_scale,
)
from minipalm.plot.style import COLORS, Figure
from minipalm.plot.text import lengths_histogram, next_token_bars, packing_picture
from minipalm.plot.training import loss_curves, ppo_dashboard, stage_curves

__all__ = [
    "COLORS",
    "Figure",
    "accuracy_scale",
    "gold_parts",
    "lengths_histogram",
    "loss_curves",
    "next_token_bars",
    "over_optimisation",
    "packing_picture",
    "ppo_dashboard",
    "reliability_diagram",
    "reward_histograms",
    "score_scale",
    "stage_curves",
    "win_rate_bar",
]

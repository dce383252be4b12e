"""Every figure of the course: a function takes plain data and returns a Figure.

`style`     what they share: size, type, one colour for one thing
`training`  text and training: lengths, packing, losses, sampling, the PPO dashboard
`judging`   reward models and policies: calibration, over-optimisation, win rates

A title states what the data show, and its numbers come from them.
"""

from minipalm.plot.judging import (
    accuracy_scale,
    gold_parts,
    over_optimisation,
    reliability_diagram,
    reward_histograms,
    score_scale,
    win_rate_bar,
)
from minipalm.plot.style import COLORS, Figure
from minipalm.plot.training import (
    lengths_histogram,
    loss_curves,
    next_token_bars,
    packing_picture,
    ppo_dashboard,
    stage_curves,
)

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

"""PPO's objective for one token, against its ratio."""

from collections.abc import Callable

import torch
from torch import Tensor

from minipalm.plot.style import COLORS, INK, Figure, legend, new_figure


def clipped_surrogate(policy_loss: Callable[..., Tensor], clip: float = 0.2) -> Figure:
    """The loss and its slope as the ratio moves, for a good and for a bad token.

    Args:
        policy_loss: (logprobs, old_logprobs, advantages, mask, clip) to a scalar, such
            as `minipalm.rlhf.ppo.policy_loss`: the figure shows what it does.
        clip: ε.
    """
    figure, (left, right) = new_figure(
        f"What the loss and its slope are for a token, with ε = {clip:g}",
        columns=2,
    )
    ratios = torch.linspace(0.4, 1.6, 121)
    one = torch.ones(1, 1)
    for advantage, color in ((1.0, COLORS["chosen"]), (-1.0, COLORS["rejected"])):
        losses, slopes = [], []
        for ratio in ratios:
            logprob = ratio.log().view(1, 1).requires_grad_(True)
            loss = policy_loss(logprob, 0 * one, advantage * one, one.bool(), clip)
            loss.backward()
            losses.append(loss.item())
            slopes.append(logprob.grad.item())
        name = f"advantage {advantage:+g}"
        left.plot(ratios, losses, color=color, label=name)
        right.plot(ratios, slopes, color=color, label=name)
    for ax, ylabel in ((left, "loss of the token"), (right, "slope against log π")):
        for edge in (1 - clip, 1 + clip):
            ax.axvline(edge, color=INK, linestyle="--", linewidth=1)
        ax.set(xlabel="ratio π / π_old", ylabel=ylabel)
    legend(left)
    return figure

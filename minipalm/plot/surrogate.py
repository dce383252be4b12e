"""PPO's objective for one token, against its ratio."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from minipalm.plot.style import (
    COLORS,
    DASHED,
    INK,
    RULE,
    Figure,
    Row,
    column,
    head,
    legend,
    legend_below,
    new_figure,
    note,
)

# (logprobs, old_logprobs, advantages, mask, clip) to a scalar, such as
# `minipalm.rlhf.ppo.policy_loss`: the figures show what it does, right or wrong.
PolicyLoss = Callable[..., Tensor]
RATIOS = [n / 100 for n in range(40, 161, 2)]


class Told(NamedTuple):
    """What a loss says to one token."""

    loss: float
    slope: float  # of the loss against log π: descent goes the other way

    @property
    def words(self) -> str:
        if abs(self.slope) < 1e-6:
            return "nothing"
        return "become likelier" if self.slope < 0 else "become rarer"


def told_at(
    policy_loss: PolicyLoss, ratio: float, advantage: float, clip: float
) -> Told:
    """Ask a loss about a token with this ratio and advantage."""
    one = torch.ones(1, 1)
    logprob = (ratio * one).log().requires_grad_(True)
    loss = policy_loss(logprob, 0 * one, advantage * one, one.bool(), clip)
    [slope] = torch.autograd.grad(loss, logprob)
    return Told(loss.item(), slope.item())


def curve(
    policy_loss: PolicyLoss, advantage: float, clip: float
) -> tuple[Sequence[float], Sequence[float]]:
    """Losses and slopes along `RATIOS`."""
    told = [told_at(policy_loss, ratio, advantage, clip) for ratio in RATIOS]
    return [one.loss for one in told], [one.slope for one in told]


def clipped_surrogate(policy_loss: PolicyLoss, clip: float = 0.2) -> Figure:
    """The loss and its slope as the ratio moves, for a good and for a bad token.

    Args:
        policy_loss: see `PolicyLoss`.
        clip: ε.
    """
    figure, (left, right) = new_figure(
        f"What the loss and its slope are for a token, with ε = {clip:g}",
        columns=2,
    )
    for advantage, color in ((1.0, COLORS["chosen"]), (-1.0, COLORS["rejected"])):
        losses, slopes = curve(policy_loss, advantage, clip)
        name = f"advantage {advantage:+g}"
        left.plot(RATIOS, losses, color=color, label=name)
        right.plot(RATIOS, slopes, color=color, label=name)
    for ax, ylabel in ((left, "loss of the token"), (right, "slope against log π")):
        for edge in (1 - clip, 1 + clip):
            ax.axvline(edge, color=INK, linestyle="--", linewidth=1)
        ax.set(xlabel="ratio π / π_old", ylabel=ylabel)
    legend(left)
    return figure


def clipped_token(
    policy_loss: PolicyLoss, ratio: float, advantage: float, clip: float = 0.2
) -> Figure:
    """One token on PPO's curve: where it stands, and what it is told.

    Args:
        policy_loss: see `PolicyLoss`.
        ratio: ρ of the token now, 0.4 to 1.6.
        advantage: A, −2 to 2.
        clip: ε.
    """
    told = told_at(policy_loss, ratio, advantage, clip)
    figure, (left, right) = new_figure(
        f"ρ\u00a0=\u00a0{ratio:.2f}, A\u00a0=\u00a0{advantage:+.1f}: the token is told"
        f" “{told.words}”",
        columns=2,
        height=3.4,
    )
    losses, slopes = curve(policy_loss, advantage, clip)
    color = COLORS["chosen" if advantage >= 0 else "rejected"]
    plain = [-one * advantage for one in RATIOS]
    left.plot(RATIOS, plain, color=RULE, linewidth=2, label="not clipped: −ρA")
    left.plot(RATIOS, losses, color=color, linewidth=2.4, label="your loss")
    right.plot(RATIOS, slopes, color=color, linewidth=2.4)
    left.plot(ratio, told.loss, "o", color=INK, markersize=9, zorder=5)
    right.plot(ratio, told.slope, "o", color=INK, markersize=9, zorder=5)
    if told.words != "nothing":  # the way that descent pushes the ratio
        way = 0.16 if told.slope < 0 else -0.16
        pushed = {"arrowstyle": "-|>", "color": INK, "linewidth": 1.6}
        left.annotate(
            "", (ratio + way, told.loss), (ratio, told.loss), arrowprops=pushed
        )
    for ax, name, limit in (
        (left, "loss of the token", 3.4),
        (right, "slope against log π", 3.4),
    ):
        for edge in (1 - clip, 1 + clip):
            ax.axvline(edge, **DASHED)
        head(ax, name)
        ax.set(xlabel="ratio ρ = π / π_old", xlim=(0.4, 1.6), ylim=(-limit, limit))
    corner = {"xycoords": ("data", "axes fraction"), "va": "top", "fontsize": 9}
    note(right, "1 − ε", (1 - clip, 1), (-34, -2), **corner)
    note(right, "1 + ε", (1 + clip, 1), (4, -2), **corner)
    legend(left, loc="lower right" if advantage < 0 else "upper right")
    return figure


def broken_runs(runs: Mapping[str, Sequence[Row]], panels: Mapping[str, str]) -> Figure:
    """Short runs of PPO, the right one and what is broken, side by side.

    Args:
        runs: name -> rows with "step" and the panels' keys.
        panels: key of a row -> name of its panel, with its unit; the title tells where
            each run ends in the first.
    """
    key, first = next(iter(panels.items()))
    ends = ", ".join(f"{name} {rows[-1][key]:z.2f}" for name, rows in runs.items())
    figure, axes = new_figure(
        f"After {len(next(iter(runs.values())))} iterations, {first}: {ends}",
        columns=len(panels),
        height=3.4,
    )
    colors = (COLORS["ppo"], COLORS["unpenalised"], COLORS["rejected"], COLORS["gold"])
    for ax, (one, name) in zip(axes, panels.items()):
        for color, (label, rows) in zip(colors, runs.items()):
            ax.plot(*column(rows, one), color=color, linewidth=2, label=label)
        head(ax, name)
        ax.set_xlabel("iteration")
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    legend_below(figure, axes[0])
    return figure

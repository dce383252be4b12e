"""Figures of comparisons: a pair's two scores, what is pooled, length, learning."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minipalm.evaluate.statistics import Interval, win_rate
from minipalm.plot.style import (
    COLORS,
    DASHED,
    INK,
    Figure,
    head,
    legend,
    legend_below,
    listed,
    new_figure,
    note,
    number,
)

Loss = Callable[..., Tensor]  # (chosen, rejected, margin) to a scalar


def pair_values(
    loss: Loss, chosen: float, rejected: float, margin: float = 0.0
) -> tuple[float, float, float]:
    """The loss of one pair, and which way a step of descent pushes its two scores."""
    scores = torch.tensor([[chosen], [rejected]], requires_grad=True)
    value = loss(scores[0], scores[1], margin)
    (slope,) = torch.autograd.grad(value, scores)
    up, down = (-slope[:, 0]).tolist()
    return value.item(), up, down


def preference_pair(
    loss: Loss, chosen: float, rejected: float, margin: float = 0.0
) -> Figure:
    """Two scores with the pushes that the loss gives them, and where the loss is.

    Args:
        loss: (chosen, rejected, margin) to a scalar, such as `pairwise_loss`: the
            figure shows what it does.
        chosen, rejected: scores of the better and of the worse answer.
        margin: m.
    """
    value, up, down = pair_values(loss, chosen, rejected, margin)
    sure = torch.tensor(chosen - rejected).sigmoid().item()
    figure, (left, right) = new_figure(
        f"The model gives the chosen answer {sure:.0%}: a loss of {value:.2f} nats,"
        f" and a push of {number(up, '+.2f')} and {number(down, '+.2f')}",
        columns=2,
        height=3.2,
    )
    pushes = {"chosen": (chosen, up, 1), "rejected": (rejected, down, 0)}
    for name, (score, push, row) in pushes.items():
        left.plot(score, row, "o", color=COLORS[name], markersize=13)
        note(left, name, (score, row), (0, 14), ha="center", color=COLORS[name])
        left.annotate(
            "",
            (score + 2 * push, row),
            (score, row),
            arrowprops={"arrowstyle": "-|>", "color": INK, "linewidth": 2},
        )
    left.set(xlabel="score", xlim=(-5.2, 5.2), ylim=(-0.6, 1.7), yticks=[])
    left.spines["left"].set_visible(False)
    head(left, "arrows: minus the gradient, twice its size")

    gaps = torch.linspace(-8, 8, 81)
    losses = [pair_values(loss, gap, 0.0, margin)[0] for gap in gaps.tolist()]
    right.plot(gaps, losses, color=COLORS["proxy"])
    right.plot(chosen - rejected, value, "o", color=COLORS["proxy"], markersize=9)
    right.axvline(margin, **DASHED)
    note(right, "margin", (margin, 7.2), (4, 0))
    right.set(xlabel="score of chosen − rejected", ylabel="loss, nats", ylim=(-0.3, 9))
    return figure


def where_it_reads(
    words: Sequence[str], scores: Float[Tensor, "T"], mask: Bool[Tensor, "T"]
) -> Figure:
    """The score at each column of one answer, and what each way of pooling takes.

    Args:
        words: what stands in each of the answer's own columns.
        scores: of every column, padding too.
        mask: True at the answer's own columns.
    """
    values, length = listed(scores), int(mask.sum())
    last, column = values[length - 1], values[-1]
    mean = sum(values[:length]) / length
    figure, [ax] = new_figure(
        f"The answer's mean is {number(mean)} and its last token's score"
        f" {number(last)}; the last column, a pad, says {number(column)}",
        height=3.4,
    )
    colors = [COLORS["proxy"]] * length + [COLORS["sft"]] * (len(values) - length)
    ax.bar(range(len(values)), values, color=colors, width=0.75)
    ax.plot([-0.5, length - 0.5], [mean, mean], label="mean of the answer", **DASHED)
    top = max([*values, 0.0])
    low = min([*values, 0.0])
    room = 0.2 * (top - low)
    for place, text in ((length - 1, "last token"), (len(values) - 1, "last column")):
        y = max(values[place], 0.0)
        ax.annotate(
            text,
            (place, y),
            (place, top + room),
            ha="right" if place == len(values) - 1 else "center",
            color=INK,
            fontsize=10,
            arrowprops={"arrowstyle": "-|>", "color": INK},
        )
    ax.set_ylim(low - 0.05 * (top - low), top + 1.9 * room)
    names = [*words[:length], *["pad"] * (len(values) - length)]
    ax.set_xticks(range(len(values)), names, rotation=60, ha="right", fontsize=8.5)
    ax.set(ylabel="score of the column")
    ax.grid(axis="x", visible=False)
    legend(ax, loc="upper left")
    return figure


def accuracy_by_length(
    chosen: Float[Tensor, "N"],
    rejected: Float[Tensor, "N"],
    chosen_lengths: Int[Tensor, "N"],
    rejected_lengths: Int[Tensor, "N"],
) -> dict[str, Interval]:
    """How often the model is right where the better answer is longer, as long, shorter.

    A group without a pair is left out.
    """
    more = chosen_lengths - rejected_lengths
    groups = {"longer": more > 0, "as long": more == 0, "shorter": more < 0}
    return {
        name: win_rate(chosen[here], rejected[here])
        for name, here in groups.items()
        if here.any()
    }


def length_bias(
    chosen: Float[Tensor, "N"],
    rejected: Float[Tensor, "N"],
    chosen_lengths: Int[Tensor, "N"],
    rejected_lengths: Int[Tensor, "N"],
) -> Figure:
    """Scores against lengths, and the accuracy by which of the two is longer."""
    groups = accuracy_by_length(chosen, rejected, chosen_lengths, rejected_lengths)
    scores = torch.cat([chosen, rejected])
    lengths = torch.cat([chosen_lengths, rejected_lengths])
    together = torch.corrcoef(torch.stack([scores, lengths.to(scores)]))[0, 1].item()
    told = ", ".join(f"{name} in {one.rate:.0%}" for name, one in groups.items())
    overall = win_rate(chosen, rejected).rate
    figure, (left, right) = new_figure(
        f"Right in {overall:.0%} of all pairs; where the better answer is {told}",
        columns=2,
        height=3.5,
    )
    for name, x, y in (
        ("rejected", rejected_lengths, rejected),
        ("chosen", chosen_lengths, chosen),
    ):
        wide = torch.linspace(-0.3, 0.3, len(x))  # so that dots do not hide each other
        dots: dict[str, Any] = {"s": 7, "alpha": 0.45, "linewidth": 0}
        left.scatter(
            listed(x + wide), listed(y), color=COLORS[name], label=name, **dots
        )
    some = [n for n in lengths.unique().tolist() if (lengths == n).sum() >= 5]
    means = [scores[lengths == n].mean().item() for n in some]
    left.plot(some, means, color=INK, linewidth=2, label="mean of a length")
    left.set(xlabel="length of the answer, tokens", ylabel="score")
    left.set_ylim(
        top=left.get_ylim()[1] + 0.35 * (left.get_ylim()[1] - left.get_ylim()[0])
    )
    legend(left, loc="upper left", markerscale=3)
    head(left, f"each answer; correlation {number(together, '+.2f')}")
    for place, one in enumerate(groups.values()):
        right.bar(place, 100 * one.rate, color=COLORS["proxy"], alpha=0.75, width=0.8)
        right.plot([place] * 2, [100 * one.low, 100 * one.high], color=INK, linewidth=2)
        note(right, f"{one.n}", (place, 3), (0, 0), ha="center", color="white")
    right.axhline(50, **DASHED)
    right.axhline(100 * overall, color=INK, linewidth=1)
    note(right, "all pairs", (len(groups) - 0.45, 100 * overall), (0, 3))
    note(right, "a coin", (len(groups) - 0.45, 50), (0, -12))
    right.set_xticks(range(len(groups)), list(groups))
    right.set_xlim(-0.5, len(groups) + 0.2)
    right.set(ylabel="pairs judged rightly, %", ylim=(0, 100))
    right.set_xlabel("the better answer is ... than the worse")
    right.grid(axis="x", visible=False)
    head(right, "each group: how many, 95% interval")
    return figure


def learnt_by_heart(
    epochs: Sequence[float],
    accuracies: Mapping[str, Sequence[float]],
    losses: Mapping[str, Sequence[float]],
    bayes: float | None = None,
) -> Figure:
    """Accuracy and loss over the epochs, on the pairs that are learnt and on others.

    Args:
        epochs: passes over the training pairs so far.
        accuracies: from 0 to 1, of "seen" and of "held out" pairs, at each.
        losses: nats a pair, of the same.
        bayes: accuracy of a judge who knows the gold reward, if there is one.
    """
    least = min(losses["held out"])
    figure, (left, right) = new_figure(
        f"After {epochs[-1]:.0f} epochs it is right about"
        f" {accuracies['seen'][-1]:.0%} of the seen pairs and"
        f" {accuracies['held out'][-1]:.0%} of the others, whose loss goes from"
        f" {least:.2f} to {losses['held out'][-1]:.2f}",
        columns=2,
        height=3.4,
    )
    colors = {"seen": COLORS["unpenalised"], "held out": COLORS["proxy"]}
    for name, color in colors.items():
        shares = [100 * one for one in accuracies[name]]
        left.plot(epochs, shares, color=color, label=name)
        right.plot(epochs, losses[name], color=color)
    if bayes is not None:
        left.axhline(100 * bayes, color=COLORS["gold"], linewidth=1.5)
        where = {"ha": "right", "color": COLORS["gold"]}
        note(left, "knows gold", (epochs[-1], 100 * bayes), (0, 4), **where)
    for ax, level in ((left, 50.0), (right, math.log(2))):
        ax.axhline(level, **DASHED)
        note(ax, "a coin", (epochs[-1], level), (0, 4), ha="right")
        ax.set_xlabel("epochs over the training pairs")
    left.set(ylabel="accuracy, %", ylim=(40, 103))
    right.set_ylabel("loss, nats a pair")
    right.set_ylim(bottom=0)
    legend_below(figure, left)
    return figure

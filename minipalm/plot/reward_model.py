"""Figures of the reward model: does it agree, how sure is it, what is its unit?"""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from minipalm.evaluate import statistics
from minipalm.plot.style import (
    COLORS,
    DASHED,
    Figure,
    Numbers,
    head,
    legend,
    legend_below,
    listed,
    new_figure,
    note,
)


def reward_histograms(
    chosen: Float[Tensor, "N"], rejected: Float[Tensor, "N"]
) -> Figure:
    """Scores of the better and the worse answers, and of each pair the difference."""
    share = statistics.accuracy(chosen, rejected)
    figure, (left, right) = new_figure(
        f"The reward model prefers the chosen answer in {share:.0%} of {len(chosen)}"
        " pairs, though the scores overlap",
        columns=2,
        height=3.2,
    )
    scores = listed(chosen) + listed(rejected)
    span = min(scores), max(scores)
    for name, values in {"rejected": rejected, "chosen": chosen}.items():
        style: dict[str, Any] = {"color": COLORS[name], "alpha": 0.6, "label": name}
        left.hist(listed(values), 36, range=span, **style)
    left.set(xlabel="score of the reward model", ylabel="answers")
    left.set_ylim(top=1.3 * left.get_ylim()[1])  # room for the names
    head(left, "each answer")
    legend(left, loc="upper left")

    gaps = listed(chosen - rejected)
    size = max(map(abs, gaps)) or 1.0
    wrong, agreed = [x for x in gaps if x < 0], [x for x in gaps if x >= 0]
    colors = [COLORS["rejected"], COLORS["chosen"]]
    right.hist([wrong, agreed], 36, range=(-size, size), color=colors, stacked=True)
    right.axvline(0, **DASHED)
    right.set(xlabel="score of chosen − rejected", ylabel="pairs")
    head(right, "each pair: right of 0 the model agrees")
    for ax in (left, right):
        ax.grid(axis="x", visible=False)
    return figure


def reliability_diagram(bins: Sequence[statistics.Bin]) -> Figure:
    """What the reward model says against what comes true; see `reliability`."""
    total = sum(one.pairs for one in bins)
    said = sum(one.pairs * one.confidence for one in bins) / total
    true = sum(one.pairs * one.share for one in bins) / total
    error = statistics.expected_calibration_error(bins)
    figure, [ax] = new_figure(
        f"The reward model is {said:.0%} sure on average and right in {true:.0%} of the"
        f" pairs: calibration error {100 * error:.1f} points",
        height=3.8,
    )
    ax.plot([50, 100], [50, 100], label="as sure as right", **DASHED)
    ends = [statistics.wilson(one.share * one.pairs, one.pairs) for one in bins]
    for one, end in zip(bins, ends):
        heights = [100 * end.low, 100 * end.high]
        ax.plot([100 * one.confidence] * 2, heights, color=COLORS["proxy"], alpha=0.6)
    ax.scatter(
        [100 * one.confidence for one in bins],
        [100 * one.share for one in bins],
        [20 + 400 * one.pairs / total for one in bins],
        color=COLORS["proxy"],
        zorder=3,
    )
    name = "pairs (area: how many) with 95% interval"
    ax.plot([], [], "o", color=COLORS["proxy"], label=name)
    ax.set(xlabel="how sure the model is, %", ylabel="how often it is right, %")
    lowest = 100 * min(end.low for end in ends)
    ax.set(xlim=(49, 101), ylim=(min(45, lowest - 2), 103))
    legend_below(figure, ax)
    return figure


def accuracy_scale(accuracy: float, bayes: float | None, length: float) -> Figure:
    """Where a reward model stands between a coin and the best that anyone can do.

    Args:
        accuracy: of the reward model on held-out pairs.
        bayes: of a judge who knows the gold reward; less than 1, as labels are noisy.
        length: of a judge who prefers the longer answer; see `length_auc`.
    """
    limit = "" if bayes is None else f"; noisy labels allow {bayes:.0%}"
    title = f"The reward model is right in {accuracy:.0%} of the pairs{limit}"
    figure, [ax] = new_figure(title, height=1.5)
    ax.plot([50, 100 * accuracy], [0, 0], color=COLORS["proxy"], linewidth=5)
    marks = [
        ("reward model", accuracy, COLORS["proxy"], 12),
        ("length alone", length, COLORS["sft"], -20),
    ]
    if bayes is not None:
        marks.append(("the best possible", bayes, COLORS["gold"], 12))
    for name, share, color, shift in marks:
        ax.plot(100 * share, 0, "o", color=color, markersize=11, zorder=5)
        note(ax, name, (100 * share, 0), (0, shift), ha="center")
    ax.set_yticks([])
    ax.set(xlabel="pairs judged as the labels say, %", xlim=(45, 100), ylim=(-1, 1))
    ax.spines["left"].set_visible(False)
    return figure


def score_scale(scores: Numbers) -> Figure:
    """Normalised scores of SFT answers: the zero and the unit of the reward."""
    values = listed(scores)
    mean = sum(values) / len(values)
    sd = (sum((one - mean) ** 2 for one in values) / max(1, len(values) - 1)) ** 0.5
    figure, [ax] = new_figure(
        f"Scores of SFT answers have mean {mean:.2f} and standard deviation {sd:.2f}:"
        " a zero and a unit for the reward"
    )
    ax.hist(values, 40, color=COLORS["sft"], alpha=0.8)
    ax.axvline(mean, color=COLORS["proxy"], linewidth=2)
    ax.axvspan(mean - sd, mean + sd, color=COLORS["proxy"], alpha=0.12, linewidth=0)
    where = {"xycoords": ("data", "axes fraction"), "color": COLORS["proxy"]}
    note(ax, "mean", (mean, 1), (4, -10), **where)
    note(ax, "one sd to each side", (mean + sd, 1), (4, -10), **where)
    ax.set(xlabel="score, sd of SFT answers", ylabel="answers")
    ax.grid(axis="x", visible=False)
    return figure

"""Figures of lesson 00: the four networks, the proxy and the truth, who says what."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from minipalm.evaluate.statistics import smooth
from minipalm.plot.style import (
    COLORS,
    INK,
    RULE,
    Figure,
    Row,
    column,
    head,
    new_figure,
    note,
)

NETWORKS = {  # name -> colour, place (x, y), what it does, whether PPO trains it
    "policy": ("ppo", (0.13, 0.39), "writes the answer", True),
    "reward model": ("proxy", (0.50, 0.76), "how good is the answer?", False),
    "reference": ("sft", (0.50, 0.39), "how likely before PPO?", False),
    "critic": ("other", (0.50, 0.02), "how good will it become?", True),
}
BOX = (0.25, 0.25)  # width and height


def four_networks(parameters: Mapping[str, int]) -> Figure:
    """Who asks whom in RLHF; a full frame is trained by PPO, a dashed one is frozen.

    Args:
        parameters: how many each of the four networks has.
    """
    everything = sum(parameters.values())
    learning = [name for name, (*_, trained) in NETWORKS.items() if trained]
    figure, [ax] = new_figure(
        f"Four networks, {everything:,} parameters: PPO trains"
        f" {sum(parameters[name] for name in learning):,} of them, those of"
        f" {' and '.join(learning)}",
        height=4.2,
    )
    ax.set(xlim=(0, 1), ylim=(-0.02, 1.04))
    ax.set_axis_off()
    for name, (color, (x, y), does, trained) in NETWORKS.items():
        box = FancyBboxPatch(
            (x, y),
            *BOX,
            boxstyle="round,pad=0.01,rounding_size=0.02",
            facecolor=COLORS[color] + "22",
            edgecolor=COLORS[color],
            linewidth=2,
            linestyle="-" if trained else (0, (4, 3)),
        )
        ax.add_patch(box)
        middle = x + BOX[0] / 2
        how: dict[str, Any] = {"ha": "center", "va": "center", "color": INK}
        ax.text(middle, y + 0.2, name, fontsize=12, weight="bold", **how)
        ax.text(middle, y + 0.12, does, fontsize=9.5, **how)
        size = f"{parameters[name]:,}, {'trained' if trained else 'frozen'}"
        ax.text(middle, y + 0.04, size, fontsize=9, **how)
    words(ax, "prompt", (0.035, 0.515))
    words(ax, "answer", (0.385, 0.72))
    words(ax, "how much\nbetter than\nexpected\nwas each\ntoken?", (0.945, 0.515))
    arrow(ax, (0.07, 0.515), (0.118, 0.515))
    ends = {  # what is said -> from which height, where to, how far the word is moved
        "score": (0.885, (0.92, 0.74), 5),
        "KL": (0.515, (0.885, 0.515), 5),
        "value": (0.145, (0.92, 0.29), -14),
    }
    for name, (y, end, shift) in ends.items():
        arrow(ax, (0.395, 0.515), (0.488, y))
        arrow(ax, (0.765, y), end, name, shift)
    return figure


def words(ax: Axes, text: str, at: tuple[float, float]) -> None:
    how: dict[str, Any] = {"ha": "center", "va": "center", "color": INK}
    ax.text(*at, text, style="italic", fontsize=10, **how)


def arrow(
    ax: Axes,
    begin: tuple[float, float],
    end: tuple[float, float],
    text: str = "",
    shift: int = 5,
) -> None:
    style = {"arrowstyle": "-|>", "color": INK, "linewidth": 1.2}
    ax.annotate("", end, begin, arrowprops=style)
    middle = (begin[0] + end[0]) / 2, (begin[1] + end[1]) / 2
    note(ax, text, middle, (4, shift), fontsize=9.5)


def proxy_and_gold(rows: Sequence[Row], until: int) -> Figure:
    """What PPO maximises and what is true, up to an iteration; the rest stays hidden.

    Args:
        rows: the run's metrics, with "step", "score" (sd of SFT answers) and, where it
            is known, "gold" (points).
        until: the last iteration to show.
    """
    steps, proxy = column(rows, "score")
    gold = column(rows, "gold")[1]
    until = min(until, len(steps))
    means = {"proxy": smooth(proxy), "gold": smooth(gold) if gold else []}
    title = (
        f"After iteration {until} the proxy is at {means['proxy'][until - 1]:.1f} sd"
    )
    if gold:
        title += f", gold at {means['gold'][until - 1]:.1f} points"
    figure, axes = new_figure(title, columns=1 + bool(gold), height=3.2)
    panels = [
        ("proxy", proxy, "proxy: what the reward model says", "sd of SFT answers")
    ]
    if gold:
        panels.append(("gold", gold, "gold: what is true", "points of 10"))
    for ax, (name, values, title, unit) in zip(axes, panels):
        color, shown = COLORS[name], slice(0, until)
        ax.plot(steps[shown], values[shown], ".", color=color, alpha=0.5, markersize=4)
        ax.plot(steps[shown], means[name][shown], color=color, linewidth=2.4)
        ax.plot(
            steps[until - 1], means[name][until - 1], "o", color=color, markersize=7
        )
        room = 0.08 * (max(values) - min(values)) + 0.01
        span = (0, 10) if name == "gold" else (min(values) - room, max(values) + room)
        ax.set(xlim=(0, steps[-1] + 1), ylim=span)
        ax.set(xlabel="PPO iteration", ylabel=unit)
        head(ax, title)
    return figure


class Said(NamedTuple):
    """An answer, and what is thought of it."""

    who: str
    text: str
    proxy: float | None = None  # sd of SFT answers; None before there is a judge
    gold: float | None = None  # points


def said(prompt: str, answers: Sequence[Said]) -> str:
    """The answers to one prompt as an HTML table: who, what, and both rewards."""
    cell = f'style="text-align:left;padding:4px 10px;border-bottom:1px solid {RULE}"'
    number = cell.replace("left", "right")
    lines = [
        f"<tr><td {cell}><b>{escape(one.who)}</b></td>"
        f"<td {cell}>{escape(one.text) or '(nothing)'}</td>"
        f"<td {number}>{'' if one.proxy is None else f'{one.proxy:z.1f}'}</td>"
        f"<td {number}>{'' if one.gold is None else f'{one.gold:.1f}'}</td></tr>"
        for one in answers
    ]
    names = f"<th {cell}></th><th {cell}>{escape(prompt)}</th>"
    units = f"<th {number}>proxy, sd</th><th {number}>gold, of 10</th>"
    return f"<table><tr>{names}{units}</tr>{''.join(lines)}</table>"

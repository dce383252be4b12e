"""Figures of supervised fine-tuning: which tokens are asked for, and answers' ends."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Bool, Int
from matplotlib.patches import Rectangle
from torch import Tensor

from minipalm.plot.style import (
    COLORS,
    DASHED,
    INK,
    RULE,
    Figure,
    Numbers,
    color_of,
    legend,
    listed,
    new_figure,
    note,
)

COLUMNS = 9  # tokens in a line of the view


def questions(
    words: Sequence[str], segments: Int[Tensor, "T"], mask: Bool[Tensor, "T"]
) -> list[tuple[str, str, str]]:
    """(what it is, token read, token asked for) for each place of a row.

    What it is: prompt, response or padding. "" is asked for where nothing counts.
    """
    places = []
    for t in range(len(words)):
        kind = "response" if mask[t] else "prompt" if segments[t] > 0 else "padding"
        asked = words[t + 1] if t + 1 < len(words) and mask[t + 1] else ""
        places.append((kind, words[t] if segments[t] > 0 else "", asked))
    return places


def response_view(
    words: Sequence[str],
    segments: Int[Tensor, "T"],
    mask: Bool[Tensor, "T"],
    most: int = 54,
) -> Figure:
    """A row token by token: what is read, and below it what is asked for there.

    Args:
        words: the row's tokens as texts.
        segments: 0 for padding, 1, 2, ... for the examples.
        mask: True at response tokens.
        most: how many tokens from the row's beginning to show.
    """
    shown = questions(words, segments, mask)[:most]
    counted = int(mask.sum())
    texts = int(segments.max())
    figure, [ax] = new_figure(
        f"{texts} example{'s' if texts > 1 else ''} in {len(words)} places: "
        f"{counted} tokens are asked for, {int((segments > 0).sum()) - counted} are "
        "only read",
        height=0.75 + 0.72 * -(-len(shown) // COLUMNS),
    )
    fills = {"prompt": COLORS["sft"], "response": COLORS["other"], "padding": "white"}
    for t, (kind, read, asked) in enumerate(shown):
        x, y = t % COLUMNS, -2.6 * (t // COLUMNS)
        box: dict[str, Any] = {
            "facecolor": fills[kind],
            "edgecolor": RULE,
            "alpha": 0.55,
        }
        ax.add_patch(Rectangle((x, y), 1, 1, **box))
        ax.text(x + 0.5, y + 0.5, read, ha="center", va="center", fontsize=8.5)
        if asked:
            box = {"facecolor": COLORS["chosen"], "edgecolor": "white", "alpha": 0.45}
            ax.add_patch(Rectangle((x, y - 1), 1, 1, **box))
            ax.text(x + 0.5, y - 0.5, asked, ha="center", va="center", fontsize=8.5)
        if t and segments[t] != segments[t - 1] and segments[t] > 0:
            ax.plot([x, x], [y - 1, y + 1.1], color=INK, linewidth=2)
    for kind, fill in {**fills, "asked for": COLORS["chosen"]}.items():
        if kind != "padding":
            ax.bar([0], [0], color=fill, alpha=0.55, label=kind)
    lines = -(-len(shown) // COLUMNS)
    ax.set(xlim=(-0.02, COLUMNS + 0.02), ylim=(-2.6 * lines + 1.5, 2.3))
    ax.axis("off")
    legend(ax, loc="upper left", ncols=3, borderaxespad=0)
    return figure


def answer_lengths(
    lengths: Mapping[str, Numbers], finished: Mapping[str, Sequence[bool]], limit: int
) -> Figure:
    """How long the answers of several models are, and how many end by themselves.

    Args:
        lengths: name -> tokens of each answer; the last model is the broken one.
        finished: name -> whether each answer has ended by itself.
        limit: the longest answer allowed.
    """
    ended = {name: sum(each) / len(each) for name, each in finished.items()}
    said = ", ".join(f"{share:.0%} with “{name}”" for name, share in ended.items())
    figure, [ax] = new_figure(f"Answers that end by themselves: {said}")
    edges = [edge - 0.5 for edge in range(1, limit + 2)]
    for index, (name, values) in enumerate(lengths.items()):
        numbers = listed(values)
        color = color_of("", index)
        if index == len(lengths) - 1:
            color = COLORS["unpenalised"]
        weights = [100 / len(numbers)] * len(numbers)
        how: dict[str, Any] = {
            "color": color,
            "alpha": 0.65,
            "rwidth": 0.9,
            "label": name,
        }
        ax.hist(numbers, edges, weights=weights, **how)
    ax.axvline(limit + 0.5, **DASHED)
    where = {"xycoords": ("data", "axes fraction"), "ha": "right", "va": "top"}
    note(ax, f"limit {limit}", (limit + 0.5, 1.0), (-4, 12), **where)
    ax.set(xlabel="length of the answer, tokens", ylabel="share of answers, %")
    ax.grid(axis="x", visible=False)
    legend(ax, loc="upper left")
    return figure

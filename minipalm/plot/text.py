"""Figures of text: how long it is, how it is packed, what may come next."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from matplotlib.colors import ListedColormap
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from minipalm.plot.style import (
    COLORS,
    DASHED,
    RULE,
    Figure,
    Numbers,
    color_of,
    head,
    legend,
    listed,
    new_figure,
    note,
)


def lengths_histogram(
    lengths: Mapping[str, Numbers] | Numbers, limit: int | None = None
) -> Figure:
    """How many tokens the texts have.

    Args:
        lengths: tokens of each text, or name -> those of several kinds of text.
        limit: the longest that fits; a dashed line.
    """
    kinds = lengths if isinstance(lengths, Mapping) else {"texts": lengths}
    counts = {name: listed(values) for name, values in kinds.items()}
    name, values = next(iter(counts.items()))
    title = (
        f"Half of the {name} have {sorted(values)[len(values) // 2]:g} tokens or more"
    )
    if limit is not None:
        share = sum(value <= limit for value in values) / len(values)
        title += f"; {share:.1%} fit into {limit}"
    figure, [ax] = new_figure(title)
    longest = max(max(values) for values in counts.values())
    step = max(1, math.ceil(longest / 40))
    edges = [edge - 0.5 for edge in range(0, int(longest) + step + 1, step)]
    for index, (name, values) in enumerate(counts.items()):
        weights = [100 / len(values)] * len(values)
        style: dict[str, Any] = {
            "color": color_of(name, index),
            "alpha": 0.65,
            "label": name,
        }
        ax.hist(values, edges, weights=weights, rwidth=0.9, **style)
    if limit is not None:
        ax.axvline(limit + 0.5, **DASHED)
        where = {"xycoords": ("data", "axes fraction"), "ha": "right", "va": "top"}
        note(ax, f"limit {limit}", (limit + 0.5, 1), (-4, 0), **where)
    ax.set(xlabel="length, tokens", ylabel="share of texts, %", xlim=(0, None))
    ax.grid(axis="x", visible=False)
    if len(counts) > 1:
        ax.set_ylim(top=1.3 * ax.get_ylim()[1])  # room for the names
        legend(ax, loc="upper left")
    return figure


def packing_picture(padded: Int[Tensor, "R T"], packed: Int[Tensor, "Q T"]) -> Figure:
    """The same texts a row each, and packed: rows down, tokens across.

    Args:
        padded, packed: segments; 0 where there is padding, else the number of the
            text inside its row.
    """
    filled = [(rows > 0).double().mean().item() for rows in (padded, packed)]
    figure, axes = new_figure(
        f"Packing puts {int(padded.max(1).values.sum())} texts into {len(packed)} rows"
        f" instead of {len(padded)}: {filled[1]:.0%} of the tokens count, not"
        f" {filled[0]:.0%}",
        columns=2,
        height=3.2,
        sharey=True,
    )
    shades = [COLORS[name] for name in ("ppo", "other", "chosen", "gold", "rejected")]
    for ax, rows, name in zip(axes, (padded, packed), ("padded", "packed")):
        colored = torch.where(rows > 0, (rows - 1) % len(shades) + 1, 0)
        ax.imshow(
            colored.numpy(),
            ListedColormap(["white", *shades]),
            aspect="auto",
            interpolation="nearest",
            vmin=0,
            vmax=len(shades),
            extent=(0, rows.shape[1], len(rows), 0),
        )
        for row in range(1, len(rows)):  # a gap between rows, so that each is seen
            ax.axhline(row, color="white", linewidth=1)
        R, T = rows.shape
        frame = Rectangle((0, 0), T, R, fill=False, edgecolor=RULE, zorder=5)
        ax.add_patch(frame)
        ax.grid(visible=False)
        ax.set(xlabel="token", ylim=(len(padded), 0))
        head(ax, f"{name}: {len(rows)} rows")
        ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes[0].set_ylabel("row")
    return figure


def next_token_bars(
    logits: Float[Tensor, "V"],
    words: Sequence[str],
    prompt: str,
    temperatures: Sequence[float] = (0.5, 1.0, 2.0),
    top: int = 8,
) -> Figure:
    """What a model may say next, at several temperatures.

    Args:
        logits: for the token after the prompt.
        words: the V tokens as texts.
        prompt: shown above the bars.
        top: how many of the likeliest tokens to show.
    """
    best = logits.topk(min(top, len(logits))).indices
    first = words[int(best[0])]
    laws = [(logits.double() / t).softmax(-1)[best] for t in temperatures]
    said = ", ".join(
        f"{law[0]:.0%} at T\u00a0=\u00a0{t:g}" for law, t in zip(laws, temperatures)
    )
    figure, [ax] = new_figure(f"The likeliest next token, “{first}”, gets {said}")
    width = 0.84 / len(laws)
    for index, (law, t) in enumerate(zip(laws, temperatures)):
        places = [i - 0.42 + (index + 0.5) * width for i in range(len(best))]
        shade = 1 - 0.72 * index / max(1, len(laws) - 1)
        style: dict[str, Any] = {
            "color": COLORS["ppo"],
            "alpha": shade,
            "label": f"T = {t:g}",
        }
        ax.bar(places, [100 * p for p in law.tolist()], width * 0.92, **style)
    ax.set_xticks(range(len(best)), [words[int(i)] for i in best])
    ax.set(ylabel="probability, %", xlabel="next token")
    ax.grid(axis="x", visible=False)
    head(ax, f"after “{prompt}”")
    legend(ax, loc="upper right")
    return figure

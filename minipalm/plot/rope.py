"""RoPE: hands on clocks, angles, and scores against distance and place."""

import math
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.patches import Arc, Circle
from torch import Tensor

from minipalm.plot.style import (
    COLORS,
    DASHED,
    INK,
    RULE,
    Figure,
    color_of,
    head,
    legend,
    new_figure,
)

QUERY, KEY = COLORS["ppo"], COLORS["unpenalised"]
PAIRS, BASE = 3, 400.0  # of the clocks: few, and no pair stands still
FARTHEST = 24  # tokens, in `hands`

# --- two hands ----------------------------------------------------------------------


def hand_scores(
    query_at: int, key_at: int, rotations: Callable, rotate: Callable
) -> tuple[Tensor, Tensor, Tensor]:
    """The hands of query and key, pairs × 2 each, and each pair's part of q·k.

    Both begin as (1, 0) in every pair, so at position 0 all hands point to the right.
    """
    start = torch.cat([torch.ones(PAIRS), torch.zeros(PAIRS)]).view(1, 1, 1, -1)
    turned = []
    for place in (query_at, key_at):
        turns = rotations(torch.tensor([[place]]), 2 * PAIRS, BASE)
        turned.append(rotate(start, *turns).view(2, PAIRS).T)
    return turned[0], turned[1], (turned[0] * turned[1]).sum(1)


def hands(query_at: int, key_at: int, rotations: Callable, rotate: Callable) -> Figure:
    """One clock a pair, with the query's hand and the key's, and the score beside them.

    Args:
        query_at, key_at: positions, from 0.
        rotations, rotate: such as those of `minipalm.model.rope`: the figure shows what
            they do.
    """
    distance = query_at - key_at
    queries, keys, parts = hand_scores(query_at, key_at, rotations, rotate)
    figure, axes = new_figure(
        f"Query at {query_at}, key at {key_at}: at a distance of {distance}, "
        f"q·k is {parts.sum():.2f}",
        columns=4,
        height=2.6,
        width_ratios=[1, 1, 1, 1.8],
    )
    for pair, ax in enumerate(axes[:3]):
        clock(ax, queries[pair], keys[pair])
        head(ax, f"pair {pair}: {parts[pair]:+.2f}", fontsize=10)
    away = range(-FARTHEST, FARTHEST + 1)
    curve = [
        hand_scores(max(d, 0), max(-d, 0), rotations, rotate)[2].sum() for d in away
    ]
    ax = axes[3]
    ax.plot(away, curve, color=COLORS["sft"])
    ax.plot([distance], [parts.sum()], "o", color=INK, markersize=8)
    ax.set(xlabel="query's position − key's", ylabel="q·k")
    ax.set_xlim(-FARTHEST - 1, FARTHEST + 1)
    ax.set_ylim(-3.3, 3.4)
    head(ax, "sum of the pairs", fontsize=10)
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside lower left",
        ncols=2,
        frameon=False,
        fontsize=10,
        labelcolor=INK,
    )
    return figure


def clock(ax: Axes, query: Tensor, key: Tensor) -> None:
    """Two hands, and the angle from the key's to the query's."""
    ax.add_patch(Circle((0, 0), 1.0, fill=False, color=RULE, linewidth=1.2))
    # the key's hand is shorter and broader, so that both are seen where they agree
    for (x, y), color, width, length, name in (
        (key.tolist(), KEY, 4.5, 0.72, "key"),
        (query.tolist(), QUERY, 2.0, 0.97, "query"),
    ):
        line = [0, length * x], [0, length * y]
        ax.plot(*line, color=color, linewidth=width, label=name, solid_capstyle="round")
    begin = math.degrees(math.atan2(float(key[1]), float(key[0])))
    end = math.degrees(math.atan2(float(query[1]), float(query[0])))
    if (end - begin) % 360 > 180:  # the shorter way round
        begin, end = end, begin
    ax.add_patch(Arc((0, 0), 0.7, 0.7, theta1=begin, theta2=end, color=INK))
    ax.set(xlim=(-1.1, 1.1), ylim=(-1.1, 1.1), xticks=[], yticks=[], aspect="equal")
    ax.spines[:].set_visible(False)


# --- angles by pair and position ----------------------------------------------------


def full_turns(
    cosine: Float[Tensor, "1 1 T half"], sine: Float[Tensor, "1 1 T half"]
) -> Float[Tensor, " half"]:
    """How often each pair turns from the first token to the last, step by step."""
    turn = torch.complex(cosine, sine)[0, 0]
    steps = (turn[1:] * turn[:-1].conj()).angle()
    return steps.sum(0) / (2 * math.pi)


def angle_map(
    cosine: Float[Tensor, "1 1 T half"], sine: Float[Tensor, "1 1 T half"]
) -> Figure:
    """The direction of every pair at positions 0 to T − 1, of one row."""
    turns = full_turns(cosine, sine)
    T, half = cosine.shape[-2:]
    slow = int((turns < 1).sum())
    figure, [ax] = new_figure(
        f"In {T} tokens the first pair turns {turns[0]:.1f} times, and {slow} of "
        f"{half} pairs do not finish one turn"
    )
    angles = torch.atan2(sine, cosine)[0, 0].mT.rad2deg() % 360
    image = ax.imshow(
        angles,
        aspect="auto",
        cmap="twilight",
        vmin=0,
        vmax=360,
        interpolation="nearest",
    )
    ax.set(
        xlabel="position, tokens", ylabel="pair", yticks=range(0, half, -(-half // 8))
    )
    ax.grid(False)
    bar = figure.colorbar(image, ax=ax, ticks=[0, 90, 180, 270, 360])
    bar.set_label("angle, degrees", color=INK)
    bar.outline.set_visible(False)
    return figure


# --- scores -------------------------------------------------------------------------


def score_curves(
    distances: Int[Tensor, "S"], scores: Mapping[str, Float[Tensor, "N S"]]
) -> Figure:
    """Mean score against distance, and the spread over pairs of query and key.

    Args:
        distances: in rising order, from 0.
        scores: for each name, N pairs of query and key.
    """
    far = len(distances) // 2
    kept = [
        f"{one[:, far:].mean() / one[:, 0].mean():.0%} with {name}"
        for name, one in scores.items()
    ]
    figure, [ax] = new_figure(
        f"From {int(distances[far])} tokens on, {' and '.join(kept)} is left "
        "on average of the mean score at 0"
    )
    for index, (name, one) in enumerate(scores.items()):
        color, mean, sd = color_of("", 2 * index), one.mean(0), one.std(0)
        ax.plot(distances, mean, color=color, label=name)
        ax.fill_between(distances, mean - sd, mean + sd, color=color, alpha=0.2, lw=0)
    ax.axhline(0, **DASHED)
    ax.set(
        xlabel="query's position − key's, tokens", ylabel="score, mean and sd of copies"
    )
    legend(ax)
    return figure


def moved_along(
    starts: Int[Tensor, "S"], scores: Mapping[str, Float[Tensor, "S"]], distance: int
) -> Figure:
    """The score of one query and one key, as both move along the text together.

    Args:
        starts: positions of the key; the query stands `distance` tokens after it.
        scores: for each way to tell the network where they stand.
    """
    spans = {name: float(one.max() - one.min()) for name, one in scores.items()}
    still = [name for name, span in spans.items() if span < 0.01]
    figure, axes = new_figure(
        f"The same two tokens, always {distance} apart: the score stays where it is "
        f"with {' and '.join(still) or 'none of these'} only",
        rows=len(scores),
        height=0.9 + 0.95 * len(scores),
        sharex=True,
        sharey=True,
    )
    for index, (name, one) in enumerate(scores.items()):
        ax = axes[index]
        ax.plot(starts, one, color=color_of("", index), linewidth=1.4)
        head(ax, f"{name}: moves by {spans[name]:.2f}", fontsize=10)
        ax.set_ylabel("score")
    axes[-1].set_xlabel("position of the key, tokens")
    return figure

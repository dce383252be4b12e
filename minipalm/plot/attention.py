"""Attention: who sees whom, what a cache saves, why √K, and the bytes of a cache."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch
from torch import Tensor

from minipalm.config import PaLMConfig
from minipalm.plot.style import (
    COLORS,
    DASHED,
    INK,
    RULE,
    Figure,
    head,
    new_figure,
    note,
)

ROWS = {  # segments of twelve tokens
    "one text": [1] * 12,
    "left padding": [0] * 3 + [1] * 9,
    "packed texts": [1] * 5 + [2] * 7,
}
USED, HIDDEN, EARLIER = COLORS["ppo"], "#f2c9a1", "#e4e8ec"
KEPT, ANEW = COLORS["chosen"], COLORS["unpenalised"]


def score_cells(
    attention_mask: Callable[[Tensor, Tensor], Tensor],
    segments: Tensor,
    step: int,
    cached: bool,
) -> Tensor:
    """What happens to each score when token `step` (from 1) is added to the row.

    Returns:
        as many rows (queries) and columns (keys) as tokens: 0 not computed yet, 1 at an
        earlier step, 2 now but hidden by the mask, 3 now and used.
    """
    row = segments[None, :step]
    cells = torch.zeros(len(segments), len(segments), dtype=torch.long)
    if cached:
        for t in range(1, step):
            cells[t - 1, :t] = 1
        now = attention_mask(row[:, step - 1 :], row)[0]
    else:
        now = attention_mask(row, row)[0]
    cells[step - len(now) : step, :step] = 2 + now.long()
    return cells


def cache_steps(
    attention_mask: Callable[[Tensor, Tensor], Tensor],
    step: int = 7,
    row: str = "one text",
) -> Figure:
    """The scores that one step of writing computes, without a cache and with one.

    Args:
        attention_mask: such as that of `minipalm.model.attention`.
        step: how many tokens the row has by now, from 1 to 12.
        row: a name of ROWS: how the twelve tokens are divided into segments.
    """
    segments = torch.tensor(ROWS[row])
    T = len(segments)
    panels = [score_cells(attention_mask, segments, step, one) for one in (False, True)]
    now = [int((cells >= 2).sum()) for cells in panels]
    so_far = sum(t * t for t in range(step + 1)), sum(range(step + 1))
    figure, axes = new_figure(
        f"Step {step}: {now[0]} scores without a cache, {now[1]} with it; "
        f"up to here {so_far[0]} and {so_far[1]}",
        columns=2,
        height=4.3,
    )
    colors = ListedColormap(["white", EARLIER, HIDDEN, USED])
    for ax, cells, cached in zip(axes, panels, (False, True)):
        ax.imshow(cells.numpy(), cmap=colors, vmin=0, vmax=3)
        ax.set_xticks([n - 0.5 for n in range(T + 1)], minor=True)
        ax.set_yticks([n - 0.5 for n in range(T + 1)], minor=True)
        ax.grid(False)
        ax.grid(which="minor", color=RULE, linewidth=0.6)
        ax.tick_params(which="minor", length=0)
        kept = step - 1 if cached else 0
        for begin, end, color in ((0, kept, KEPT), (kept, step, ANEW)):
            places = list(range(begin, end))
            ax.scatter(places, [T + 0.6] * len(places), marker="s", s=70, c=color)
        ax.set(ylim=(T + 1.4, -0.5), xlim=(-0.6, T - 0.4), xlabel="key, by place")
        ax.set_xticks(range(0, T, 2), [str(n) for n in range(0, T, 2)])
        ax.set_yticks(
            [*range(0, T, 2), T + 0.6], [*(str(n) for n in range(0, T, 2)), "keys"]
        )
        head(ax, "with a cache" if cached else "without a cache")
    axes[0].set_ylabel("query, by place")
    names = {
        "score used": USED,
        "score hidden by the mask": HIDDEN,
        "score of an earlier step": EARLIER,
        "key computed now": ANEW,
        "key from the cache": KEPT,
    }
    figure.legend(
        handles=[Patch(color=color, label=name) for name, color in names.items()],
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=10,
        labelcolor=INK,
    )
    return figure


Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def weights_of(attention: Attention, q: Tensor, k: Tensor) -> Tensor:
    """The weights of the last query. Values of 0 and 1 bring them to light.

    Args:
        q, k: B S K each, with K >= S.
    """
    B, S, K = k.shape
    one_hot = torch.eye(S, K).expand(B, 1, S, K)
    return attention(q[:, None], k[:, None], one_hot)[:, 0, -1, :S]


def scale_of_scores(attention: Attention, K: int = 64, keys: int = 16) -> Figure:
    """What a query's weights are with scores divided by √K, and without.

    Args:
        attention: (q, k, v) to the result, such as that of `minipalm.model.attention`.
        K: the width of a head, at least `keys`; all entries of q and k are N(0, 1).
    """
    draw = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 200, keys, K, generator=draw)
    both = weights_of(attention, q, k), weights_of(attention, q * math.sqrt(K), k)
    largest = [one.amax(1).mean().item() for one in both]
    figure, axes = new_figure(
        f"K = {K}: the largest of {keys} weights is {largest[0]:.2f} with √K, "
        f"{largest[1]:.2f} without (mean of {len(q)} queries)",
        columns=2,
        sharey=True,
    )
    for ax, weights, name in zip(axes, both, ("divided by √K", "not divided")):
        ax.bar(range(keys), weights[0].tolist(), color=COLORS["ppo"], width=0.75)
        ax.set(xlabel="key, by place", ylim=(0, 1), xticks=range(0, keys, 3))
        head(ax, f"scores {name}")
    axes[0].set_ylabel("weight of one query")
    return figure


def cache_sizes(
    cache_bytes: Callable[..., int],
    config: PaLMConfig,
    weights: int,
    batch: int = 64,
    tokens: int = 2048,
) -> Figure:
    """The cache for each possible number of key/value heads, beside the weights.

    Args:
        cache_bytes: (config, batch, tokens) to bytes.
        config: of the network; its kv_heads is replaced by 1, 2, 4, ..., heads.
        weights: bytes of the weights.
        batch, tokens: rows, and tokens of each.
    """
    groups = [2**n for n in range(config.heads.bit_length()) if config.heads >= 2**n]
    groups = [G for G in groups if config.heads % G == 0]
    sizes = [
        cache_bytes(replace(config, kv_heads=G), batch, tokens) / 1e9 for G in groups
    ]
    figure, [ax] = new_figure(
        f"{batch} × {tokens} tokens: {sizes[-1]:.3g} GB with {groups[-1]} key/value "
        f"heads, {sizes[0]:.3g} GB with {groups[0]}"
    )
    places = range(len(groups))
    ax.barh(places, sizes, color=COLORS["ppo"], height=0.65)
    for place, size in zip(places, sizes):
        note(ax, f"{size:.3g}", (size, place), (4, -4))
    line = weights / 1e9
    ax.axvline(line, **DASHED)
    above = {"xycoords": ("data", "axes fraction")}
    note(ax, f"the weights: {line:.3g} GB", (line, 1), (0, 3), ha="center", **above)
    ax.set_yticks(places, [str(G) for G in groups])
    ax.set(ylabel="key/value heads, G", xlabel="cache, GB")
    ax.set_xlim(0, 1.15 * max(*sizes, line))
    ax.grid(axis="y", visible=False)
    return figure

"""Figures of policies: over-optimisation, the parts of gold, who wins."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from matplotlib.axes import Axes

from minipalm.data.gold import GoldParts
from minipalm.evaluate import statistics
from minipalm.plot.style import (
    COLORS,
    DASHED,
    RULE,
    Figure,
    Row,
    beta_style,
    head,
    legend,
    legend_below,
    new_figure,
    note,
)


def over_optimisation(
    curves: Mapping[str, Sequence[Row]], sft_gold: float | None = None
) -> Figure:
    """What PPO maximises and what was wanted, on the way from SFT.

    Dots are iterations, lines their moving means. The axis is the root of KL, on which
    both curves start as straight lines, with ticks in nats.

    Args:
        curves: β -> rows with "kl" (nats per answer), "score" (sd of SFT answers) and
            "gold" (points; None where there is no gold reward).
        sft_gold: of SFT answers, a dotted line.

    Source: Gao, Schulman and Hilton 2022 (arXiv 2210.10760), figure 1.
    """
    with_gold = all(row["gold"] is not None for rows in curves.values() for row in rows)
    least = min(curves, key=float)
    freest = curves[least]
    name = "Without a penalty" if float(least) == 0 else f"With {beta_style(least)[1]}"
    title = f"{name} the proxy goes up to {freest[-1]['score']:.1f} sd"
    if with_gold:
        found = statistics.over_optimisation(freest)
        said = statistics.gold_and_proxy(
            found.peak_gold, found.end_gold, found.proxy_at_peak, found.proxy_at_end
        )
        title = f"{name} {said}"
    figure, axes = new_figure(title, columns=1 + with_gold, height=4.0)
    _against_kl(axes[0], curves, "score")
    head(axes[0], "proxy: what the reward model says")
    axes[0].set_ylabel("proxy reward, sd of SFT answers")
    axes[0].axhline(0, color=COLORS["sft"], linewidth=1.4, linestyle=":")
    legend_below(figure, axes[0])
    if with_gold:
        _against_kl(axes[1], curves, "gold")
        head(axes[1], "gold: what is true")
        axes[1].set_ylabel("gold reward, points of 10")
        if sft_gold is not None:
            axes[1].axhline(sft_gold, color=COLORS["sft"], linewidth=1.4, linestyle=":")
            where = {"xycoords": ("axes fraction", "data"), "ha": "right"}
            note(axes[1], "SFT", (1, sft_gold), (0, 3), color=COLORS["sft"], **where)
        peak_kl = statistics.smooth(_nats(freest))[found.peak]
        for ax, height in zip(axes, (found.proxy_at_peak, found.peak_gold)):
            ax.axvline(peak_kl, color=COLORS["gold"], linewidth=1)
            ax.plot(peak_kl, height, "o", color=COLORS["gold"], markersize=8, zorder=5)
        note(
            axes[1],
            f"peak {found.peak_gold:.1f}",
            (peak_kl, found.peak_gold),
            (8, 4),
            weight="bold",
        )
    return figure


def _nats(rows: Sequence[Row]) -> list[float]:
    return [max(0.0, row["kl"]) for row in rows]  # an estimate of 0 may fall below


def _against_kl(ax: Axes, curves: Mapping[str, Sequence[Row]], key: str) -> None:
    for index, (beta, rows) in enumerate(curves.items()):
        color, name = beta_style(beta, index)
        nats, values = _nats(rows), [row[key] for row in rows]
        ax.plot(nats, values, ".", color=color, alpha=0.35, markersize=4)
        mean = statistics.smooth(nats), statistics.smooth(values)
        ax.plot(*mean, color=color, linewidth=2.2, label=name)
        ax.plot(mean[0][-1], mean[1][-1], "o", color=color, markersize=6)  # its end
    ax.set_xscale("function", functions=(_root, _square))
    top = max(max(_nats(rows)) for rows in curves.values()) or 1.0  # an axis has length
    ticks = [0, 1, 4, 9, 16, 25, 36, 49, 64, 81, 100, 144, 196, 256, 400]
    shown = [tick for tick in ticks if tick <= 1.1 * top]
    ax.set_xticks(shown[:: 1 + len(shown) // 9])
    ax.set(xlabel="KL from SFT, nats per answer (root scale)", xlim=(0, 1.06 * top))


def _root(x: Any) -> Any:
    return abs(x) ** 0.5


def _square(x: Any) -> Any:
    return x**2


PARTS = [field.name for field in fields(GoldParts)]
WEIGHTS = {  # points of gold for a whole part
    part: GoldParts(**{name: float(name == part) for name in PARTS}).total
    for part in PARTS
}


def gold_parts(sft: Row, ppo: Row, unpenalised: Row | None = None) -> Figure:
    """What the gold reward is made of, in points; the outline is all there is to get.

    Args:
        sft, ppo, unpenalised: rows with "gold" and its five parts in [0, 1].
    """
    gains = {part: WEIGHTS[part] * (ppo[part] - sft[part]) for part in PARTS}
    best = max(gains, key=gains.__getitem__)
    figure, [ax] = new_figure(
        f"Gold goes from {sft['gold']:.1f} to {ppo['gold']:.1f} points;"
        f" the most comes from {best} ({gains[best]:+.1f})"
    )
    bars = {"SFT": sft, "PPO": ppo, "unpenalised": unpenalised}
    kinds = {name: row for name, row in bars.items() if row is not None}
    width = 0.8 / len(kinds)
    for index, (name, row) in enumerate(kinds.items()):
        places = [i - 0.4 + (index + 0.5) * width for i in range(len(PARTS))]
        points = [WEIGHTS[part] * row[part] for part in PARTS]
        label = "PPO, β = 0" if name == "unpenalised" else name
        ax.bar(places, points, width * 0.92, color=COLORS[name.lower()], label=label)
        for x, y in zip(places, points):
            note(ax, f"{y:.1f}", (x, y), (0, 2), ha="center", fontsize=9.5)
    outline: dict[str, Any] = {
        "fill": False,
        "edgecolor": RULE,
        "linewidth": 1.2,
        "zorder": 0,
    }
    ax.bar(range(len(PARTS)), [WEIGHTS[part] for part in PARTS], 0.86, **outline)
    ax.set_xticks(range(len(PARTS)), PARTS)
    ax.set(
        xlabel="part of the gold reward",
        ylabel="points of gold",
        ylim=(0, 1.12 * max(WEIGHTS.values())),
    )
    ax.grid(axis="x", visible=False)
    legend(ax, loc="upper right")
    return figure


def win_rate_bar(
    rates: Mapping[str, Mapping[str, Any] | statistics.Interval],
) -> Figure:
    """How often PPO's answer beats SFT's, with 95% intervals.

    Args:
        rates: name of the prompts -> their Interval, or the same as a mapping; empty
            where there is no gold reward.
    """
    found = {
        name: statistics.Interval(**one) if isinstance(one, Mapping) else one
        for name, one in rates.items()
    }
    said = ", ".join(f"{one.rate:.0%} on {name}" for name, one in found.items())
    title = f"PPO beats SFT: {said}" if found else "Nobody can say who wins"
    figure, [ax] = new_figure(title, height=1.5 + 0.5 * len(found))
    for y, one in enumerate(found.values()):
        ends = [100 * one.low, 100 * one.high]
        ax.plot(ends, [y, y], color=COLORS["ppo"], alpha=0.35, linewidth=9)
        ax.plot(100 * one.rate, y, "o", color=COLORS["ppo"], markersize=9)
        note(ax, f"{one.rate:.0%}", (100 * one.rate, y), (0, 9), ha="center")
    ax.axvline(50, **DASHED)
    note(ax, "as good as SFT", (50, -0.8), (4, -10), fontsize=9.5)
    names = [f"{name} ({one.n} answers)" for name, one in found.items()]
    ax.set_yticks(range(len(found)), names)
    ax.set(xlabel="win rate, %", xlim=(0, 100), ylim=(len(found) - 0.4, -0.8))
    ax.grid(axis="y", visible=False)
    return figure

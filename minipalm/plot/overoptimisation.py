"""A reward that is wrong: gold and proxy apart, laws, stopping, ensembles, length."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from minipalm.evaluate.laws import LawFit, best_of_n_columns
from minipalm.evaluate.length import LengthEffect, residuals
from minipalm.evaluate.statistics import smooth
from minipalm.evaluate.stopping import Stop
from minipalm.plot.story import story
from minipalm.plot.style import (
    COLORS,
    DASHED,
    INK,
    Figure,
    head,
    legend,
    legend_below,
    new_figure,
    note,
    number,
)
from minipalm.rlhf.best_of_n import best_of_n_kl

Curve = Mapping[str, Any]  # a run: lists by column, a number an iteration
Seeds = Mapping[str, Curve]  # the runs of an experiment, by seed
Fit = Callable[[Tensor, Tensor], LawFit]  # `minipalm.evaluate.laws.fit_law`
Columns = Callable[[Tensor], Tensor]  # `minipalm.evaluate.laws.ppo_columns`

LABELS = {
    "plain": "4000 pairs",
    "width 16": "width 16",
    "width 48": "width 48",
    "long": "likes length",
    "long, corrected": "slope taken off",
    "long, balanced": "equal lengths",
    "uncertainty": "uncertainty-weighted",
}
UNITS = {
    "gold": "gold reward, 0 to 10",
    "proxy": "proxy, sd of SFT's scores",
    "judge": "another reward model, sd",
    "preferred": "preferred to SFT, share",
    "tokens": "length, tokens",
    "unfinished": "answers without an end, share",
    "spread": "disagreement, sd",
    "fresh": "freshness, 0 to 1",
}
HUES = ("unpenalised", "ppo", "chosen", "proxy", "gold", "rejected")


def label(name: str) -> str:
    """An experiment's name in a legend."""
    kind, _, value = name.partition(" ")
    if kind == "beta":
        return f"β\u00a0=\u00a0{value}"
    if kind == "pairs":
        return f"{value} pairs"
    if kind == "flipped":
        return f"{100 * float(value):.0f}\u00a0% flipped"
    return LABELS.get(name, name)


Names = Sequence[str] | Mapping[str, str]  # experiments, or what they are called here


def called(names: Names) -> dict[str, str]:
    """Experiment -> its name in the figure."""
    if isinstance(names, Mapping):
        return dict(names)
    return {name: label(name) for name in names}


def distance(run: Curve) -> list[float]:
    """√KL of each iteration."""
    return [max(kl, 0.0) ** 0.5 for kl in run["kl"]]


def over_seeds(seeds: Seeds, key: str) -> list[float]:
    """Iteration by iteration, the mean over seeds; `distance` is a key, too."""
    columns = [distance(x) if key == "distance" else x[key] for x in seeds.values()]
    return [statistics.fmean(values) for values in zip(*columns)]


def spread(values: Sequence[float], form: str = ".1f") -> str:
    """Mean ± standard deviation, for a title; of one value the value."""
    mean = number(statistics.fmean(values), form)
    if len(values) == 1:
        return mean
    return f"{mean}\u00a0±\u00a0{statistics.stdev(values):{form}}"


# --- runs beside each other ---------------------------------------------------------


def side_by_side(
    runs: Mapping[str, Seeds],
    names: Names,
    keys: Sequence[str],
    title: str,
    against: str = "distance",
) -> Figure:
    """Experiments in panels, one for each key: thin lines are seeds, thick ones means.

    Each point is the mean of three iterations, of five where the line is thin.

    Args:
        runs: experiment -> seed -> curve.
        names: of the experiments to draw, see `Names`.
        keys: columns of the curves.
        title: the claim.
        against: "distance" or "iteration".
    """
    figure, axes = new_figure(title, columns=len(keys), height=3.7)
    for hue, (name, text) in zip(HUES, called(names).items()):
        for ax, key in zip(axes, keys):
            along = smooth(over_seeds(runs[name], "distance"))
            several = runs[name].values() if len(runs[name]) > 1 else ()
            for run in several:
                own = smooth(distance(run), 5)
                steps = own if against == "distance" else range(len(own))
                ax.plot(steps, smooth(run[key], 5), color=COLORS[hue], linewidth=0.6)
            mean = smooth(over_seeds(runs[name], key))
            steps = along if against == "distance" else range(len(mean))
            ax.plot(steps, mean, color=COLORS[hue], linewidth=2.6, label=text)
    for ax, key in zip(axes, keys):
        head(ax, UNITS[key])
        unit = "√KL from SFT, √nats" if against == "distance" else "iteration"
        ax.set_xlabel(unit)
    legend_below(figure, axes[0])
    return figure


def ends(seeds: Seeds, key: str = "gold") -> list[float]:
    """The column's last value on each seed: the mean of the last three iterations."""
    return [statistics.fmean(run[key][-3:]) for run in seeds.values()]


def peaks(seeds: Seeds) -> list[float]:
    """The highest gold on each seed, of means over three iterations."""
    return [max(smooth(run["gold"])) for run in seeds.values()]


def rise_and_fall(runs: Mapping[str, Seeds], names: Names) -> Figure:
    """Gold and proxy on the way from SFT."""
    shown = called(names)
    said = "; ".join(
        f"{shown[name]} {spread(peaks(runs[name]))} at its peak, "
        f"{spread(ends(runs[name]))} at the end"
        for name in dict.fromkeys((next(iter(shown)), list(shown)[-1]))
    )
    return side_by_side(runs, names, ("gold", "proxy"), f"Gold: {said}")


def compared(
    runs: Mapping[str, Seeds], names: Names, keys: Sequence[str], by: str
) -> Figure:
    """Several experiments by the gold that they end with; by: distance or iteration."""
    shown = called(names).items()
    said = "; ".join(f"{text}: {spread(ends(runs[one]))}" for one, text in shown)
    return side_by_side(runs, names, keys, f"Gold at the end. {said}", by)


def by_quality(results: Mapping[str, Any], names: Mapping[str, str]) -> Figure:
    """What a reward model leads to, by how often it is right.

    Args:
        results: with "runs" and "rewards".
        names: experiment -> the name of its reward model in "rewards".
    """
    points = []
    for name, reward in names.items():
        runs = results["runs"][name]
        for n, seed in enumerate(runs):
            right = results["rewards"][reward][seed]["agrees"]
            points.append((name, right, peaks(runs)[n], ends(runs)[n]))
    right, top, last = torch.tensor([one[1:] for one in points]).T
    r = [torch.corrcoef(torch.stack([right, x]))[0, 1].item() for x in (top, last)]
    figure, axes = new_figure(
        f"How often a reward model is right, and the gold of {len(points)} runs: "
        f"r\u00a0=\u00a0{number(r[0])} at the peak, {number(r[1])} at the end",
        columns=2,
        height=4.1,
    )
    shapes = {"pairs": "o", "plain": "o", "flipped": "s", "width": "^"}
    for hue, name in zip((*HUES, "other", "sft"), names):
        mine = [one for one in points if one[0] == name]
        for ax, column in zip(axes, (2, 3)):
            ax.plot(
                [100 * one[1] for one in mine],
                [one[column] for one in mine],
                shapes[name.partition(" ")[0]],
                color=COLORS[hue],
                markersize=8,
                label=label(name),
            )
    start = statistics.fmean(
        run["gold"][0] for name in names for run in results["runs"][name].values()
    )
    for ax, text in zip(axes, ("gold at the peak", "gold at the end")):
        ax.axhline(start, **DASHED)
        head(ax, text)
        ax.set_xlabel("right in % of held-out pairs")
    note(axes[0], "SFT", (axes[0].get_xlim()[1], start), (-24, 4))
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=10,
    )
    return figure


# --- laws ---------------------------------------------------------------------------


def law_of_a_run(run: Curve, until: float, columns: Columns, fit: Fit) -> Figure:
    """A run, the law fitted to what lies within `until`, and what it says beyond.

    Args:
        run: a curve.
        until: √KL; points within it are fitted, with SFT's gold as 0.
        columns, fit: see `Columns` and `Fit`.
    """
    d = torch.tensor(distance(run), dtype=torch.float64)
    gains = torch.tensor(run["gold"], dtype=torch.float64) - run["gold"][0]
    known = d <= max(until, float(d.sort().values[3]))
    law = fit(columns(d[known]), gains[known])
    along = torch.linspace(0, float(d.max()), 200, dtype=torch.float64)
    said = law.gain(columns(along))
    off = (gains - law.gain(columns(d)))[~known]
    beyond = f"; beyond, it is off by {off.abs().mean():.1f}" if len(off) else ""
    figure, [ax] = new_figure(
        f"Fitted up to √KL\u00a0=\u00a0{until:.1f}: α {number(law.alpha)} ± "
        f"{law.alpha_error:.2f}, β {number(law.beta)} ± {law.beta_error:.2f}, scatter "
        f"{law.scatter:.2f}{beyond}",
        height=3.6,
    )
    ax.plot(d[~known], gains[~known], "o", color=COLORS["sft"], label="not seen")
    ax.plot(d[known], gains[known], "o", color=COLORS["gold"], label="fitted")
    inside = along <= d[known].max()
    ax.plot(along[inside], said[inside], color=COLORS["ppo"], linewidth=2.2)
    ax.plot(
        along,
        said,
        color=COLORS["ppo"],
        linewidth=2.2,
        linestyle=":",
        label="d (α − β log d)",
    )
    ax.axhline(0, **DASHED)
    low, high = float(gains.min()), float(gains.max())
    ax.set(
        xlabel="√KL from SFT, √nats",
        ylabel="gold above SFT's, points",
        ylim=(low - 0.6, high + 1.2),
    )
    legend(ax, loc="lower left")
    return figure


def choosing(best: Mapping[str, Seeds], names: Names, fit: Fit) -> Figure:
    """Best of n against its exact KL, with the fitted law: gold, and the proxy.

    Args:
        best: experiment -> seed -> n, gold and proxy.
        names: which to draw.
        fit: see `Fit`.
    """
    figure, axes = new_figure("", columns=2, height=3.8)
    said = []
    for hue, (name, text) in zip(HUES, called(names).items()):
        n = next(iter(best[name].values()))["n"]
        d = torch.tensor([best_of_n_kl(one) ** 0.5 for one in n], dtype=torch.float64)
        gold = torch.tensor(over_seeds(best[name], "gold"), dtype=torch.float64)
        law = fit(best_of_n_columns(d), gold - gold[0])
        along = torch.linspace(0, float(d.max()), 100, dtype=torch.float64)
        axes[0].plot(d, gold, "o", color=COLORS[hue], label=text)
        curve = gold[0] + law.gain(best_of_n_columns(along))
        axes[0].plot(along, curve, color=COLORS[hue])
        axes[1].plot(d, over_seeds(best[name], "proxy"), "o-", color=COLORS[hue])
        said.append(f"{text}: {number(law.beta)} ± {law.beta_error:.2f}")
    figure.suptitle(
        "Best of n: β of d (α − β d). " + "; ".join(said),
        x=0.012,
        ha="left",
        fontsize=12,
        weight="bold",
        color=INK,
        wrap=True,
    )
    head(axes[0], "gold reward (dots), and the law (lines)")
    head(axes[1], UNITS["proxy"])
    for ax in axes:
        ax.set_xlabel("√KL of best of n, √nats")
    legend_below(figure, axes[0])
    return figure


# --- stopping -----------------------------------------------------------------------


def stopped(run: Curve, stops: Mapping[str, Stop]) -> Figure:
    """A run's gold, and the iteration that each signal keeps.

    Args:
        run: a curve.
        stops: name of the signal -> what it decides.
    """
    gold = run["gold"]
    best = max(range(len(gold)), key=gold.__getitem__)
    kept = ", ".join(
        f"{UNITS.get(name, name).split(',')[0]} {gold[one.kept]:.1f}"
        for name, one in stops.items()
    )
    figure, [ax] = new_figure(
        f"Gold where each signal's high is: {kept} (best {gold[best]:.1f})", height=3.4
    )
    ax.plot(gold, color=COLORS["gold"], linewidth=2.2)
    for step, (hue, (name, one)) in enumerate(zip(HUES, stops.items())):
        ax.axvline(one.kept, color=COLORS[hue], linewidth=1.6, label=label_of(name))
        ax.plot(one.kept, gold[one.kept], "o", color=COLORS[hue], markersize=9)
        low = min(gold) - 0.25 * (step + 1)
        ax.plot([one.kept, one.seen], [low, low], color=COLORS[hue], linewidth=3)
    waited = any(one.seen > one.kept for one in stops.values())
    bars = " (bars below: waited in vain)" if waited else ""
    ax.set(xlabel=f"iteration{bars}", ylabel=UNITS["gold"])
    legend_below(figure, ax)
    return figure


def label_of(signal: str) -> str:
    return UNITS.get(signal, signal).split(",")[0]


# --- length -------------------------------------------------------------------------


def length_rests(
    scores: Tensor, lengths: Tensor, gold: Tensor, effect: LengthEffect
) -> Figure:
    """Score against length: as they are, and what gold leaves of both."""
    pooled = torch.corrcoef(torch.stack([scores, lengths.float()]))[0, 1].item()
    figure, axes = new_figure(
        f"At equal gold a token is worth {number(effect.slope, '+.3f')} to this model "
        f"(correlation {number(effect.correlation, '+.2f')}; as they are "
        f"{number(pooled, '+.2f')})",
        columns=2,
        height=3.6,
    )
    pairs = (
        (lengths.double(), scores),
        (
            residuals(lengths, gold),
            residuals(scores, gold),
        ),
    )
    for ax, (x, y) in zip(axes, pairs):
        ax.plot(x, y, ".", color=COLORS["proxy"], markersize=4, alpha=0.6)
    ends = torch.stack([pairs[1][0].min(), pairs[1][0].max()])
    axes[1].plot(ends, effect.slope * ends, color=INK, linewidth=2)
    head(axes[0], "as they are")
    head(axes[1], "less what gold explains")
    axes[0].set(xlabel="length, tokens", ylabel="score, sd")
    beyond = "beyond what gold explains"
    axes[1].set(xlabel=f"length {beyond}", ylabel=f"score {beyond}")
    return figure


# --- reading ------------------------------------------------------------------------


def spoken(run: Curve, prompts: Sequence[str], root_kl: float) -> str:
    """What the policy says at the sample nearest to a distance, beside SFT: HTML.

    An answer that has not ended has … behind it. The numbers are gold rewards.
    """
    far = distance(run)
    told = run["told"]
    now = min(told, key=lambda one: abs(far[one["iteration"]] - root_kl))

    def column(one: Curve, name: str) -> tuple[str, list[str], list[float]]:
        texts = [
            said if done else f"{said} …"
            for said, done in zip(one["said"], one["finished"])
        ]
        return name, texts, one["gold"]

    at = now["iteration"]
    name = (
        f"√KL {far[at]:.1f}, iteration {at}: proxy {run['proxy'][at]:+.1f}, "
        f"gold {run['gold'][at]:.1f}"
    )
    return story(prompts, [column(told[0], "SFT"), column(now, name)], "gold")

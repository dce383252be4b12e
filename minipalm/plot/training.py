"""Figures of text and training: lengths, packing, losses, sampling, PPO's curves."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from matplotlib.colors import ListedColormap
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from minipalm.evaluate.statistics import smooth
from minipalm.plot.style import (
    COLORS,
    DASHED,
    RULE,
    Figure,
    Numbers,
    Row,
    beta_style,
    color_of,
    column,
    head,
    legend,
    legend_below,
    listed,
    new_figure,
    note,
)


def loss_curves(
    runs: Mapping[str, Sequence[Row]],
    unit: str = "nats a token",
    title: str | None = None,
    key: str = "loss",
    levels: Mapping[str, float] | None = None,
) -> Figure:
    """A loss against steps: pale as it was, strong as a moving mean.

    Args:
        runs: name -> rows with "step" and `key`.
        unit: of the loss.
        title: by default where each curve begins and ends.
        key: a row's entry, and the name of the axis.
        levels: name -> height of a dashed line, such as what guessing would cost.
    """
    curves = {name: column(rows, key) for name, rows in runs.items()}
    means = {name: smooth(y, 2 * (len(y) // 30) + 1) for name, (_, y) in curves.items()}
    if title is None:
        title = f"{key.capitalize()} from start to end, {unit}: " + ", ".join(
            f"{name} {curves[name][1][0]:.2f} → {mean[-1]:.2f}"
            for name, mean in means.items()
            if mean
        )
    figure, [ax] = new_figure(title)
    for index, (name, (steps, values)) in enumerate(curves.items()):
        color = color_of(name, index)
        ax.plot(steps, values, color=color, alpha=0.3, linewidth=0.9)
        ax.plot(steps, means[name], color=color, linewidth=2, label=name)
    for name, level in (levels or {}).items():
        ax.axhline(level, **DASHED)
        where = {"xycoords": ("axes fraction", "data"), "ha": "right"}
        note(ax, name, (1, level), (0, 3), **where)
    ax.set(xlabel="step", ylabel=f"{key}, {unit}", xlim=(0, None))
    if len(curves) > 1:
        legend(ax)
    return figure


STAGES = {  # name of a curve -> name of its panel, with its unit
    "pretrain": "pretraining: loss, nats a token",
    "sft": "fine-tuning: loss, nats a token",
    "reward_model": "reward model: loss, nats a pair",
    "ppo": "PPO: reward, sd of SFT answers",
}


def stage_curves(curves: Mapping[str, Sequence[Sequence[float]]]) -> Figure:
    """What each stage of the pipeline minimised, and what PPO maximised.

    Args:
        curves: "pretrain", "sft", "reward_model", "ppo" -> pairs of step and value.
    """
    means = {}
    for name, points in curves.items():
        values = [value for _, value in points]
        means[name] = smooth(values, 2 * (len(values) // 30) + 1)
    falls = ", ".join(
        f"{STAGES[name].partition(':')[0]} from {mean[0]:.2f} to {mean[-1]:.2f}"
        for name, mean in means.items()
        if name != "reward_model"
    )
    figure, axes = new_figure(f"The stages: {falls}", rows=2, columns=2, height=4.6)
    for ax, (name, points) in zip(axes, curves.items()):
        color = color_of({"pretrain": "other"}.get(name, name))
        steps = [step for step, _ in points]
        ax.plot(steps, [y for _, y in points], color=color, alpha=0.3, linewidth=0.9)
        ax.plot(steps, means[name], color=color, linewidth=2)
        ax.set(xlabel="iteration" if name == "ppo" else "step", xlim=(0, None))
        head(ax, STAGES[name])
    return figure


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


PANELS = {  # key of a metric -> name of its panel, and what its axis must show
    "score": ("reward, sd", []),
    "kl": ("KL, nats/answer", [0]),
    "length": ("length, tokens", [0]),
    "unfinished": ("without <eos>, share", [0, 1]),
    "entropy": ("entropy, nats/token", [0]),
    "approx_kl": ("KL of update, nats", [0]),
    "clip_fraction": ("clipped, share", [0]),
    "explained_variance": ("explained variance", [0, 1]),
}


def ppo_dashboard(runs: Mapping[str, Sequence[Row]] | Sequence[Row]) -> Figure:
    """The eight curves that tell whether PPO is well; a panel each.

    Args:
        runs: the metrics of a run, or β -> the metrics of several.
    """
    several = isinstance(runs, Mapping)
    named = runs if isinstance(runs, Mapping) else {"": runs}
    beta, rows = next(iter(named.items()))
    score, kl = (smooth(column(rows, key)[1]) for key in ("score", "kl"))
    figure, axes = new_figure(
        f"PPO{f' with {beta_style(beta)[1]}' if several else ''} moves the reward from"
        f" {score[0]:.2f} to {score[-1]:.2f} sd, and ends {kl[-1]:.1f} nats per answer"
        " away from SFT",
        rows=2,
        columns=4,
        height=4.0,
    )
    for ax, (key, (name, shown)) in zip(axes, PANELS.items()):
        for index, (beta, rows) in enumerate(named.items()):
            color, label = beta_style(beta, index) if several else (COLORS["ppo"], "")
            ax.plot(*column(rows, key), color=color, linewidth=1.6, label=label)
        ax.update_datalim([(1, y) for y in shown])
        ax.autoscale_view()
        head(ax, name, fontsize=9.5)
        ax.tick_params(labelsize=9)
        ax.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    for ax in axes[4:]:
        ax.set_xlabel("iteration")
    if several:
        legend_below(figure, axes[0])
    return figure

"""Figures of training: losses, the stages of the pipeline, the state of PPO."""

from collections.abc import Mapping, Sequence

from matplotlib.ticker import MaxNLocator

from minipalm.evaluate.statistics import smooth
from minipalm.plot.style import (
    COLORS,
    DASHED,
    Figure,
    Row,
    beta_style,
    color_of,
    column,
    head,
    legend,
    legend_below,
    new_figure,
    note,
    thin,
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
            f"{name} {mean[0]:.2f} → {mean[-1]:.2f}"
            for name, mean in means.items()
            if mean
        )
    figure, [ax] = new_figure(title)
    for index, (name, (steps, values)) in enumerate(curves.items()):
        color = color_of(name, index)
        steps, values, mean = thin(steps, values, means[name])
        ax.plot(steps, values, color=color, alpha=0.3, linewidth=0.9)
        ax.plot(steps, mean, color=color, linewidth=2, label=name)
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
    "trunk": "reward model’s trunk: loss, nats a token",
    "sft": "fine-tuning: loss, nats a token",
    "reward_model": "reward model: loss, nats a pair",
    "ppo": "PPO: reward, sd of SFT answers",
}


def stage_curves(curves: Mapping[str, Sequence[Sequence[float]]]) -> Figure:
    """What each stage of the pipeline minimised, and what PPO maximised.

    Args:
        curves: at most four of `STAGES` -> pairs of step and value. One without any,
            as of pretraining that another run has done, has no panel.
    """
    curves = {name: points for name, points in curves.items() if points}
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
        color = color_of({"pretrain": "other", "trunk": "proxy"}.get(name, name))
        steps, values, mean = thin(*map(list, zip(*points)), means[name])
        ax.plot(steps, values, color=color, alpha=0.3, linewidth=0.9)
        ax.plot(steps, mean, color=color, linewidth=2)
        ax.set(xlabel="iteration" if name == "ppo" else "step", xlim=(0, None))
        head(ax, STAGES[name])
    for ax in axes[len(curves) :]:
        ax.remove()
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

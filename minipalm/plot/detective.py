"""The dashboards of lesson 14: a suspect beside the band of healthy runs."""

from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from minipalm.plot.style import (
    COLORS,
    RULE,
    Figure,
    head,
    legend_below,
    new_figure,
)

Curves = Mapping[str, Sequence[float]]  # metric -> a value an iteration
Results = Mapping[str, Sequence[Curves]]  # name of a bug, or "healthy" -> its runs

METRICS = {
    "score": "score, sd",
    "kl": "KL, nats/answer",
    "entropy": "entropy, nats/token",
    "length": "length, tokens",
    "unfinished": "without an end, share",
    "ratio": "mean ratio",
    "clip_fraction": "clipped, share",
    "approx_kl": "KL of the step, nats/token",
    "explained_variance": "explained variance",
    "value_loss": "value loss",
    "policy_grad_norm": "policy's gradient norm",
    "steps": "optimizer steps",
}
BRIEF = ("score", "kl", "entropy", "length", "clip_fraction", "explained_variance")


def band(runs: Sequence[Curves], metric: str) -> tuple[list[float], list[float]]:
    """Least and greatest over runs, at each iteration."""
    columns = list(zip(*(run[metric] for run in runs)))
    return [min(one) for one in columns], [max(one) for one in columns]


def first_alarm(results: Results, bug: str, metric: str) -> int | None:
    """The first iteration, from 1, in which all of a bug's runs are beyond the band.

    Beyond: on the same side, by more than a tenth of the band's width there, and by
    more than rounding. None if there is none.
    """
    low, high = band(results["healthy"], metric)
    least, most = band(results[bug], metric)
    for i in range(len(least)):
        room = 0.1 * (high[i] - low[i]) + 1e-3 * max(abs(high[i]), 0.01)
        if least[i] > high[i] + room or most[i] < low[i] - room:
            return i + 1
    return None


def suspect(
    results: Results, case: str, metric: str, name: Callable[[str], str]
) -> Figure:
    """One metric of one case, large.

    Args:
        results: curves of all runs.
        case: a letter.
        metric: a key of METRICS.
        name: case -> bug, such as `minipalm.course.bugs.diagnose`.
    """
    bug, first = name(case), first_alarm(results, name(case), metric)
    if first is None:
        claim = "not apart from healthy runs"
    else:
        low = band(results["healthy"], metric)[0][first - 1]
        below = band(results[bug], metric)[1][first - 1] < low
        claim = f"{'below' if below else 'above'} healthy runs in iteration {first}"
    name_of = METRICS[metric].split(",")[0]
    figure, (ax,) = new_figure(f"Case {case}, {name_of}: {claim}", height=3.6)
    draw(ax, results, bug, metric)
    ax.set(xlabel="iteration", ylabel=METRICS[metric])
    legend_below(figure, ax)
    return figure


def dashboard(results: Results, case: str, name: Callable[[str], str]) -> Figure:
    """Six numbers of one case at a glance; arguments as in `suspect`."""
    bug = name(case)
    alarms = {one: first_alarm(results, bug, one) for one in BRIEF}
    early = [METRICS[one].split(",")[0] for one, i in alarms.items() if i == 1]
    figure, axes = new_figure(
        f"Case {case}, beyond the healthy band in iteration 1: "
        f"{', '.join(early) or 'nothing'}",
        rows=2,
        columns=3,
        height=4.8,
    )
    for ax, metric in zip(axes, BRIEF):
        draw(ax, results, bug, metric)
        head(ax, METRICS[metric], 10)
    for ax in axes[3:]:
        ax.set_xlabel("iteration")
    legend_below(figure, axes[0])
    return figure


def draw(ax: Axes, results: Results, bug: str, metric: str) -> None:
    """The band of healthy runs, and the runs of a bug."""
    low, high = band(results["healthy"], metric)
    steps = range(1, len(low) + 1)
    healthy = f"healthy, {len(results['healthy'])} seeds"
    ax.fill_between(steps, low, high, color=RULE, linewidth=1.5, label=healthy)
    for n, run in enumerate(results[bug]):
        label = "" if n else f"this case, {len(results[bug])} seeds"
        ax.plot(
            steps, run[metric], color=COLORS["unpenalised"], linewidth=1.4, label=label
        )
    ax.set_xticks([1, *range(6, len(steps) + 1, 6)])
    if metric == "steps":  # counts
        ax.set_ylim(0, 1.15 * max(high))
        ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))


def who_tells(results: Results, metrics: Sequence[str] = tuple(METRICS)) -> Figure:
    """For each bug and metric: the first iteration in which it leaves the band."""
    bugs = [name for name in results if name != "healthy"]
    table = [[first_alarm(results, bug, one) for one in metrics] for bug in bugs]
    order = sorted(range(len(bugs)), key=lambda i: -sum(map(bool, table[i])))
    silent = sum(first_alarm(results, bug, "score") is None for bug in bugs)
    figure, (ax,) = new_figure(
        f"The score of {silent} of {len(bugs)} bugs never leaves the band of healthy "
        "runs",
        height=5.0,
    )
    ax.grid(False)
    for y, i in enumerate(order):
        for x, first in enumerate(table[i]):
            shade = COLORS["unpenalised"] if first == 1 else COLORS["gold"]
            color = "#f3f4f6" if first is None else shade
            ax.add_patch(
                _cell(x, y, color, 1.0 if first in (None, 1) else 1.2 - first / 30)
            )
            if first is not None:
                ax.text(x, y, str(first), ha="center", va="center", fontsize=9)
    ax.set(xlim=(-0.5, len(metrics) - 0.5), ylim=(len(bugs) - 0.5, -0.5))
    ax.set_yticks(range(len(bugs)), [bugs[i] for i in order])
    names = [METRICS[one].split(",")[0] for one in metrics]
    ax.set_xticks(range(len(metrics)), names, rotation=40, ha="right")
    ax.set_xlabel("first iteration with all three seeds beyond the band (empty: none)")
    return figure


def _cell(x: int, y: int, color: str, alpha: float) -> Rectangle:
    return Rectangle(
        (x - 0.46, y - 0.44),
        0.92,
        0.88,
        color=color,
        alpha=max(0.3, min(alpha, 1.0)),
        linewidth=0,
    )

"""Figures of a batch run: is the machine well used, and are the gradients sound?"""

from collections.abc import Mapping, Sequence

from matplotlib.ticker import MaxNLocator

from minipalm.evaluate.statistics import smooth
from minipalm.plot.style import (
    INK,
    Figure,
    Row,
    color_of,
    column,
    head,
    new_figure,
    thin,
)

PANELS = {  # key of a metric -> name of its panel, and what one divides it by
    "tokens_per_second": ("thousand tokens a second", 1e3),
    "share_of_ceiling": ("share of the ceiling", 1),
    "memory": ("memory, GiB a GPU", 1),
    "grad_norm": ("gradient norm", 1),
    "policy_grad_norm": ("gradient norm, policy", 1),
    "value_grad_norm": ("gradient norm, critic", 1),
    "sampler_gap": ("sampler − training, nats", 1),
}


def machine_panels(runs: Mapping[str, Sequence[Row]]) -> Figure | None:
    """What each training asked of the machine, and its gradients; a panel each.

    Args:
        runs: name of a training -> its metrics.

    Returns:
        None where nothing of it was logged.
    """
    shown = [
        key
        for key in PANELS
        if any(row.get(key) for rows in runs.values() for row in rows)
    ]
    if not shown:
        return None
    columns = min(len(shown), 3)
    rows_of_panels = -(-len(shown) // columns)
    figure, axes = new_figure(
        said(runs),
        rows=rows_of_panels,
        columns=columns,
        height=1.0 + 1.9 * rows_of_panels,
    )
    for ax, key in zip(axes, shown):
        name, unit = PANELS[key]
        for index, (run, rows) in enumerate(runs.items()):
            steps, values = column(rows, key)
            mean = smooth(values, 2 * (len(values) // 30) + 1)
            steps, mean = thin(steps, mean)
            scaled = [value / unit for value in mean]
            ax.plot(steps, scaled, color=color_of("", index), linewidth=1.6, label=run)
        if not key.endswith("norm"):
            ax.set_ylim(bottom=0)
        head(ax, name, fontsize=9.5)
        ax.tick_params(labelsize=9)
        ax.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    for ax in axes[-columns:]:
        ax.set_xlabel("step")
    for ax in axes[len(shown) :]:
        ax.set_axis_off()
    if len(runs) > 1:  # not all of them have all panels
        lines = {str(line.get_label()): line for ax in axes for line in ax.get_lines()}
        figure.legend(
            list(lines.values()),
            list(lines),
            loc="outside lower center",
            ncols=3,
            frameon=False,
            fontsize=10,
            labelcolor=INK,
        )
    return figure


def said(runs: Mapping[str, Sequence[Row]]) -> str:
    """The newest training's last steps in a sentence."""
    run, rows = list(runs.items())[-1]
    facts = []
    for key, form in (
        ("tokens_per_second", "{:,.0f} tokens a second"),
        ("share_of_ceiling", "{:.0%} of the ceiling"),
        ("memory", "{:.0f} GiB"),
    ):
        values = [row[key] for row in rows[-20:] if row.get(key)]
        if values:
            facts.append(form.format(sum(values) / len(values)))
    return f"{run}: " + (", ".join(facts) if facts else "its gradients")


def phase_bars(rows: Sequence[Row]) -> Figure | None:
    """Where the seconds of a step go: the mean of the last twenty steps' phases."""
    prefix = "seconds/"
    keys = [key for key in (rows[-1] if rows else {}) if key.startswith(prefix)]
    if not keys:
        return None
    recent = rows[-20:]
    means = {
        key.removeprefix(prefix): sum(row.get(key, 0.0) for row in recent) / len(recent)
        for key in keys
    }
    name, most = max(means.items(), key=lambda pair: pair[1])
    whole = sum(means.values())
    figure, [ax] = new_figure(
        f"Of {whole:.1f} s an iteration, {name} takes {most / whole:.0%}",
        height=0.9 + 0.33 * len(means),
    )
    names = list(means)[::-1]
    ax.barh(names, [means[each] for each in names], color=color_of("ppo"), height=0.6)
    ax.set(xlabel="seconds", xlim=(0, None))
    ax.grid(axis="y", visible=False)
    return figure

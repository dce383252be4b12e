"""What a method asks of the machine: an update's seconds, by phase, and memory."""

from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from minipalm.plot.methods import NAMES
from minipalm.plot.style import COLORS, INK, RULE, Figure, Row, new_figure

Costs = Mapping[str, Mapping[str, Any]]  # method -> `cost`, and what it was judged by

PHASES = {  # of an update, in order: who works, and the colour
    "rollout": ("policy answers", COLORS["ppo"]),
    "logprobs": ("policy reads", COLORS["other"]),
    "reference": ("reference reads", COLORS["sft"]),
    "reward": ("reward model", COLORS["proxy"]),
    "values": ("critic reads", COLORS["gold"]),
    "update": ("learning", COLORS["chosen"]),
}
COLUMNS = {  # of the table: digits
    "updates": 0,
    "answers": 0,
    "seconds": 2,
    "memory": 1,
    "proxy": 2,
    "kl": 2,
    "gold": 2,
}


def cost(
    rows: Sequence[Row], answers: int, wall: float | None = None
) -> dict[str, Any]:
    """What an update took, by the metrics of a training.

    Medians, since in the first update a lot is made ready. A phase that most updates
    lack, such as the reference's reading of all pairs at once, is shared out evenly.

    Args:
        rows: the lines of metrics.jsonl.
        answers: of an update.
        wall: seconds of the whole training, for a small one whose clock stands still;
            its updates have equal shares of them, and no phases.

    Returns:
        updates; answers; seconds (None where nothing is known), phases (name ->
        seconds) and memory (GiB of a GPU at most, None without one).
    """
    told = [row["seconds"] for row in rows if "seconds" in row]
    keys = dict.fromkeys(key for row in rows for key in row if "seconds/" in key)
    phases, once = {}, 0.0
    for key in keys:
        took = [row.get(key, 0.0) for row in rows]
        if median(took) == 0:
            once += fmean(took)
        phases[key.removeprefix("seconds/")] = median(took) or fmean(took)
    seconds = wall / len(rows) if wall and rows else None
    return {
        "updates": len(rows),
        "answers": answers,
        "seconds": median(told) + once if told else seconds,
        "phases": phases,
        "memory": max((row.get("memory", 0.0) for row in rows), default=0.0) or None,
    }


def costs_table(costs: Costs) -> str:
    """A line a method; a dash where there is no such number.

    Below, where a clock ran, the seconds of each phase of an update.
    """
    rows = {named(method, row): row for method, row in in_order(costs).items()}
    units = {"seconds": "s/update", "memory": "GiB"}
    lines = table(rows, {units.get(c, c): (c, d) for c, d in COLUMNS.items()})
    phases = {name: row["phases"] for name, row in rows.items() if row.get("phases")}
    if phases:
        names = [
            phase for phase in PHASES if any(phase in row for row in phases.values())
        ]
        lines += [
            "",
            "seconds of an update",
            *table(phases, {n: (n, 2) for n in names}),
        ]
    return "\n".join(lines)


def table(
    rows: Mapping[str, Mapping[str, Any]], columns: Mapping[str, tuple[str, int]]
) -> list[str]:
    """Its lines. columns: what stands above one -> key of a row, and digits."""
    lines = [f"{'':12}" + "".join(f"{head:>10}" for head in columns)]
    for name, row in rows.items():
        values = [(row.get(key), digits) for key, digits in columns.values()]
        shown = ("–" if x is None else f"{x:.{digits}f}" for x, digits in values)
        lines.append(f"{name:12}" + "".join(f"{one:>10}" for one in shown))
    return lines


def in_order(costs: Costs) -> Costs:
    """As in all figures of the lesson."""
    return {method: costs[method] for method in NAMES if method in costs}


def named(method: str, row: Mapping[str, Any]) -> str:
    """Of best of n with its n."""
    return f"best of {row['n']}" if "n" in row else NAMES[method]


def costs_figure(costs: Costs) -> Figure:
    """A bar a method: the time of an answer that it learns from, and whose that is."""
    timed = {m: row for m, row in in_order(costs).items() if row.get("seconds")}
    each = {m: 1e3 * row["seconds"] / row["answers"] for m, row in timed.items()}
    title = "No time is known: every method was resumed"
    if each:
        slow, fast = max(each, key=each.__getitem__), min(each, key=each.__getitem__)
        times = f"{each[slow] / each[fast]:.1f} times as long as"
        title = f"An answer takes {NAMES[slow]} {times} {NAMES[fast]}"
    figure, [ax] = new_figure(title, height=1.5 + 0.34 * len(timed))
    for y, (method, row) in enumerate(timed.items()):
        left = 0.0
        for phase in (phase for phase in PHASES if row["phases"].get(phase)):
            width = 1e3 * row["phases"][phase] / row["answers"]
            ax.barh(y, width, 0.6, left, color=PHASES[phase][1])
            left += width
        ax.barh(y, max(each[method] - left, 0.0), 0.6, left, color=RULE)
    shown = {phase for row in timed.values() for phase in row["phases"]}
    for phase, (name, color) in PHASES.items():
        if phase in shown:
            ax.barh(0, 0, color=color, label=name)
    if shown:
        ax.barh(0, 0, color=RULE, label="all else")
    ax.set_yticks(range(len(timed)), [NAMES[method] for method in timed])
    ax.set_ylim(max(len(timed), 1) - 0.5, -0.5)
    ax.set(xlabel="milliseconds an answer", xlim=(0, None))
    ax.grid(axis="y", visible=False)
    if shown:
        figure.legend(
            *ax.get_legend_handles_labels(),
            loc="outside lower center",
            ncols=4,
            frameon=False,
            fontsize=10,
            labelcolor=INK,
        )
    return figure

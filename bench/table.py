"""The table of results, and its place in bench/README.md."""

import os
import platform
import statistics
from pathlib import Path

from bench.race import Result
from bench.races import Race

BEGIN = "<!-- written by ./course bench: begin -->"
END = "<!-- written by ./course bench: end -->"


def render(outcomes: list[tuple[Race, Result]]) -> str:
    """One line a race: seconds of each, ratio with its spread, goal."""
    header = ["task", "peer", "peer s", "ours s", "times as fast", "goal", "met"]
    header += ["parameters, peer / ours"]
    rows = [
        [
            race.task,
            race.peer,
            seconds(statistics.median(result.theirs)),
            seconds(statistics.median(result.ours)),
            spread(result),
            f"{race.goal:g}",
            "yes" if result.ratio >= race.goal else "**no**",
            f"{result.their_parameters:,} / {result.our_parameters:,}",
        ]
        for race, result in outcomes
    ]
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths)) + " |"
        for row in [header, rule, *rows]
    )


def spread(result: Result) -> str:
    """The median ratio, and the smallest and largest."""
    low, high = min(result.ratios), max(result.ratios)
    return f"**{result.ratio:.2f}** ({low:.2f}–{high:.2f})"


def seconds(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def machine() -> str:
    """Where the numbers come from, in one line."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text("utf-8").splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    python = f"Python {platform.python_version()}"
    return f"{name}, {os.cpu_count()} cores, {platform.system()}, {python}"


def place(table: str, readme: str) -> str:
    """The README's text with the table in place of the last one.

    Raises:
        ValueError: the README lacks the marks between which the table stands.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"bench/README.md needs the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"

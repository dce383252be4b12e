"""A plan in words: tables for the terminal, and what a budget of hours buys."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from minipalm.config import Preset
from minipalm.scale.disk import rooms
from minipalm.scale.gpu import GIB, GPU
from minipalm.scale.memory import Parts, total
from minipalm.scale.reserve import OUTSIDE
from minipalm.scale.stages import Stage


def table(head: list[str], rows: list[list[str]]) -> str:
    """Columns as wide as what stands in them; the first to the left."""
    every = [head, *rows]
    widths = [max(len(row[i]) for row in every) for i in range(len(head))]
    lines = []
    for row in every:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def short(number: float) -> str:
    """12,345,678,901 is 12.3 B."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number:.0f}"


def stage_table(stages: list[Stage], gpu: GPU, gpus: int) -> str:
    """Memory, speed, hours and money of each stage, and of all together."""
    head = ["stage", "steps", "tokens", "GiB a GPU", "fits", "tokens/s", "hours"]
    head += ["GPU-hours", "dollars"]
    rows = []
    for one in stages:
        cost = one.hours * gpus
        rows.append(
            [
                one.name,
                f"{one.steps:,}",
                short(one.steps * one.tokens),
                f"{one.peak / GIB:.1f}",
                one.fits(gpu),
                f"{one.tokens / one.step_seconds:,.0f}",
                f"{one.hours:.2f}",
                f"{cost:,.1f}",
                f"{cost * gpu.price:,.0f}",
            ]
        )
    hours = sum(one.hours for one in stages)
    cost = hours * gpus
    end = ["all", "", "", "", "", "", f"{hours:.2f}", f"{cost:,.1f}"]
    rows.append([*end, f"{cost * gpu.price:,.0f}"])
    return table(head, rows)


def memory_table(memory: dict[str, Parts]) -> str:
    """GiB on one GPU: a row a network, a column a part."""
    names = list(dict.fromkeys(name for parts in memory.values() for name in parts))
    seen = [n for n in names if any(p.get(n, 0) > GIB / 200 for p in memory.values())]
    rows = []
    for network, parts in memory.items():
        cells = [f"{parts.get(n, 0) / GIB:.2f}" for n in seen]
        rows.append([network, *cells, f"{total(parts) / GIB:.2f}"])
    sums = [sum(parts.get(n, 0) for parts in memory.values()) / GIB for n in seen]
    every = sum(map(total, memory.values())) / GIB
    rows.append(["all", *(f"{one:.2f}" for one in sums), f"{every:.2f}"])
    return table(["GiB", *seen, "all"], rows)


NETWORKS = ("policy", "reference", "trunk", "critic", "reward model")


def network_table(stages: list[Stage]) -> str:
    """GiB on one GPU at the worst moment: a row a stage, a column a network.

    A network's number is all that is there for it: weights, gradients, activations.
    *held* is what PyTorch may hold besides; *sampling* the copy to sample from, keys,
    values and logits; *passes* those of reading.
    """
    names = dict.fromkeys(name for one in stages for name in one.memory)
    columns = [*NETWORKS, *(name for name in names if name not in NETWORKS)]
    rows = []
    for one in stages:
        parts = {name: total(found) / GIB for name, found in one.memory.items()}
        cells = [f"{parts[n]:.1f}" if n in parts else "" for n in columns]
        rows.append(
            [one.name, *cells, f"{one.peak / GIB:.1f}", f"{one.held / GIB:.1f}"]
        )
    return table(["GiB a GPU", *columns, "all", "held"], rows)


def phase_table(stage: Stage) -> str:
    """Seconds of each phase of an iteration."""
    assert stage.phases is not None
    rows = [
        [name, f"{one:.2f}", f"{one / stage.step_seconds:.0%}"]
        for name, one in stage.phases.items()
    ]
    rows.append(["all", f"{stage.step_seconds:.2f}", ""])
    return table(["phase", "seconds", "share"], rows)


def disk_table(preset: Preset) -> str:
    """GB on the disk: at the fullest moment of each stage, and after it."""
    rows = [
        [room.stage, f"{room.fullest / 1e9:,.1f}", f"{room.left / 1e9:,.1f}"]
        for room in rooms(preset)
    ]
    return table(["GB on the disk", "at most", "after it"], rows)


def budget(stages: list[Stage], gpus: int, hours: float) -> dict[str, float]:
    """What so many GPU-hours buy of this plan, each line for all of them.

    Returns:
        pipelines: times the whole plan.
        after pretraining: times everything after lesson 06.
        tokens: that pretraining could have, of policy and trunk, if all other stages
            are paid first; 0 if they alone cost more.
        iterations: of PPO, if nothing else is paid.
    """
    first = [one for one in stages if one.pretrains]
    rest = gpus * sum(one.hours for one in stages if not one.pretrains)
    [ppo] = [one for one in stages if one.phases]
    seconds = max(hours - rest, 0.0) / gpus * 3600
    return {
        "pipelines": hours / (rest + gpus * sum(one.hours for one in first)),
        "after pretraining": hours / rest,
        "tokens": seconds / sum(one.step_seconds for one in first) * first[0].tokens,
        "iterations": hours / gpus * 3600 / ppo.step_seconds,
    }


@dataclass(frozen=True)
class Trial:
    """What the plan would be with other options."""

    words: str  # "--gpus 2"
    gpu: GPU
    stages: list[Stage]


def lack(stage: Stage, gpu: GPU) -> tuple[float, float]:
    """GiB too much, in tenths: allocated, and with what PyTorch may hold besides.

    (0, 0) fits; (0, 0.1) or more is tight.
    """
    over = stage.peak + OUTSIDE - gpu.memory, stage.held
    return tenths(over[0]), tenths(sum(over))


def tenths(size: float) -> float:
    """GiB, rounded up; 0 of less than none."""
    return max(0, math.ceil(10 * size / GIB)) / 10


def helpful(
    i: int, gpu: GPU, stages: list[Stage], trials: Sequence[list[Trial]]
) -> str:
    """The trials with which stage i lacks less, by how much they help."""
    now = lack(stages[i], gpu)
    fits: list[str] = []
    tight: list[str] = []
    less: list[str] = []
    for group in trials:
        # of several that help as much, the first
        best = min(group, key=lambda one: lack(one.stages[i], one.gpu))
        then = lack(best.stages[i], best.gpu)
        if then < now:
            better = tight if now[0] and not then[0] else less
            (better if any(then) else fits).append(best.words)
    says = {"Fits with": fits, "Tight with": tight, "Less, but not enough, with": less}
    return " ".join(f"{how} {', '.join(them)}." for how, them in says.items() if them)


def advice(
    stages: list[Stage], preset: Preset, gpu: GPU, trials: Sequence[list[Trial]]
) -> list[str]:
    """For each stage that does not surely fit, what is missing and what helps.

    Args:
        trials: plans with other options, in groups of more and more of the same; of
            each group the first is named that helps most, if it helps.
    """
    lines = []
    for i, one in enumerate(stages):
        missing, held = lack(one, gpu)
        if not held:
            continue
        says = f"does not fit: {missing:.1f} GiB too much"
        if not missing:
            says = (
                f"is tight: {held:.1f} GiB too much if PyTorch holds back as much "
                "as it did where it was measured"
            )
        helps = helpful(i, gpu, stages, trials) or "No option helps by itself."
        lines.append(f"{one.name} {says}.\n{helps}")
    if lines:
        lines.append(
            "Each was tried alone, beside what you gave. These options are the plan's. "
            "For a run, change the\npreset in minipalm/config.py: machine.recompute, "
            "machine.lora_rank, micro_batch; full-lora is a\npreset for one GPU."
        )
    if preset.machine.lora_rank and preset.machine.weights == "bfloat16":
        lines.append(
            "06 in bfloat16 shows that it runs, but rounds small steps away. For a "
            "policy of worth take 06\nfrom a run of full: ./course full --pretrained, "
            "see docs/full_size.md."
        )
    return lines

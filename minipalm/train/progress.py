"""How far a run of the pipeline is, read from its folder while it runs.

Whatever is missing or half-written is as if it were not there yet: a report of a run
must not fail because the run goes on.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, median
from typing import Any

from minipalm.config import Preset, get_preset
from minipalm.data.files import write_text
from minipalm.data.lock import is_held
from minipalm.train.ceiling import Row, known_ceiling, operations

MACHINE = "machine.json"  # in the run's folder: what it runs on
STAGES = {  # in order, and what they are called
    "06_palm": "pretraining",
    "07_sft": "fine-tuning",
    "08_reward_model": "reward model",
    "11_ppo": "PPO",
    "12_evaluation": "evaluation",
    "15_offline": "other methods",
}
FURTHER = ("15_offline",)  # begins where the others end; runs if it is asked for


@dataclass(frozen=True)
class Training:
    """One training run of a stage."""

    name: str  # "07_sft/policy"
    steps: int  # in all; iterations of PPO
    rows: list[Row] = field(default_factory=list)  # what it has logged
    kept: int | None = None  # step of the newest checkpoint
    ceiling: float | None = None  # operations a second that each GPU could do
    flops: Callable[[Row], float] | None = None  # operations that a row's step took

    @property
    def done(self) -> int:
        return int(self.rows[-1]["step"]) if self.rows else 0

    @property
    def seconds_left(self) -> float | None:
        """By the last fifty steps; None where no time is logged."""
        recent = [row["seconds"] for row in self.rows[-50:] if "seconds" in row]
        if not recent:
            return None
        return (median(recent) + self.between) * max(self.steps - self.done, 0)

    @cached_property
    def between(self) -> float:
        """Seconds of checkpoints for each step that is done, mean."""
        if not self.rows:
            return 0.0
        return fmean(row.get("checkpoint_seconds", 0.0) for row in self.rows)

    def share(self, row: Row) -> float | None:
        """Of the ceiling, in a row's step: operations of the models, none twice."""
        if not (self.flops and self.ceiling and row.get("seconds") and "ranks" in row):
            return None
        could = row["ranks"] * self.ceiling  # a run may go on with more GPUs, or fewer
        return self.flops(row) / row["seconds"] / could

    def with_shares(self) -> list[Row]:
        """The rows, with the share of the ceiling where it is known."""
        shares = [(row, self.share(row)) for row in self.rows]
        return [r if s is None else {**r, "share_of_ceiling": s} for r, s in shares]


@dataclass(frozen=True)
class Stage:
    name: str  # "07_sft"
    state: str  # "complete", "running", "stopped" or "waiting"
    trainings: list[Training]

    @property
    def current(self) -> Training | None:
        """The training that goes on, or was stopped."""
        begun = [each for each in self.trainings if each.rows]
        return begun[-1] if begun else None


@dataclass(frozen=True)
class Progress:
    scale: str
    seed: int | None
    gpu: str | None  # its name, where one is used
    ranks: int
    command: str  # that has begun it last; empty if it was not ./course full
    stages: list[Stage]

    @property
    def current(self) -> Stage | None:
        """The first stage that is not complete; None where all are."""
        return next((s for s in self.stages if s.state != "complete"), None)

    @property
    def trainings(self) -> list[Training]:
        """All that have logged anything."""
        return [each for stage in self.stages for each in stage.trainings if each.rows]


def read_object(path: Path) -> dict[str, Any]:
    """The object in a file; an empty one if it is missing or broken."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def rows_so_far(folder: Path) -> list[Row]:
    """The whole lines of metrics.jsonl, with the numbers in them that are finite."""
    try:
        lines = (folder / "metrics.jsonl").read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
    return [row for line in lines if (row := parse_row(line))]


def parse_row(line: str) -> Row:
    """The finite numbers of a line; empty if it is broken, or has no step."""
    try:
        row = json.loads(line)
        int(row["step"])
    except (ValueError, KeyError, TypeError):
        return {}
    return {
        name: value
        for name, value in row.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


def newest_checkpoint(folder: Path) -> int | None:
    steps = [int(p.name[5:]) for p in folder.glob("step-*") if p.name[5:].isdigit()]
    return max(steps, default=None)


def steps_in(folder: Path) -> int | None:
    """How many steps a training was started with, by its config.json."""
    settings = read_object(folder / "config.json")
    part = settings.get("reward") or settings.get("method") or settings
    steps = part.get("optim", {}).get("steps") or part.get("iterations")
    return steps or part.get("ppo", {}).get("iterations")


def preset_of(scale: str) -> Preset | None:
    try:
        return get_preset(scale)
    except ValueError:
        return None


def planned(preset: Preset) -> dict[str, int]:
    """The trainings of the pipeline, in order, and their steps."""
    ppo, methods = preset.ppo, preset.methods
    return {
        "06_palm/policy": preset.pretrain.steps,
        "06_palm/trunk": preset.pretrain.steps,
        "07_sft/policy": preset.sft.steps,
        "07_sft/trunk": preset.sft.steps,
        "08_reward_model/training": preset.reward.optim.steps,
        **{f"11_ppo/beta-{coef:g}": ppo.iterations for coef in ppo.kl_coefs},
        "15_offline/offline": methods.offline.ppo.iterations,
        "15_offline/dpo": methods.dpo.optim.steps,
        "15_offline/rloo": methods.rloo.iterations,
        "15_offline/grpo": methods.grpo.iterations,
    }


def write_machine(
    out: Path, ranks: int, gpu: str | None = None, command: str = ""
) -> None:
    """Remember what a batch run runs on, and how it was begun, for `read_progress`."""
    noted = {"ranks": ranks, "gpu": gpu, "torch": version("torch"), "command": command}
    write_text(out / MACHINE, json.dumps(noted) + "\n")


def read_progress(out: Path) -> Progress:
    """How far the run in a folder is.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not out.is_dir():
        raise FileNotFoundError(f"{out}: there is no run")
    records = [
        read_object(out / stage / name)
        for stage in STAGES
        for name in ("stage.json", "done.json")
    ]
    scale = str(next((r["scale"] for r in records if "scale" in r), out.name))
    seed = next((r["seed"] for r in records if "seed" in r), None)
    machine = read_object(out / MACHINE)
    gpu, ranks = machine.get("gpu"), int(machine.get("ranks") or 1)
    ceiling = known_ceiling(gpu)
    preset = preset_of(scale)
    going = is_held(out)
    stages: list[Stage] = []
    plan = list(planned(preset).items()) if preset else []
    for stage in STAGES:
        trainings = [
            Training(
                name,
                steps_in(out / name) or steps,
                rows_so_far(out / name),
                newest_checkpoint(out / name),
                ceiling,
                operations(preset, name) if preset and ceiling else None,
            )
            for name, steps in plan
            if name.startswith(f"{stage}/")
        ]
        begun = (out / stage / "stage.json").is_file()
        if stage in FURTHER and not begun:
            continue
        if (out / stage / "done.json").is_file():
            state = "complete"
        elif begun and all(each.state == "complete" for each in stages):
            state = "running" if going else "stopped"
        else:
            state = "waiting"
        stages.append(Stage(stage, state, trainings))
    return Progress(scale, seed, gpu, ranks, machine.get("command", ""), stages)


def duration(seconds: float) -> str:
    """Seconds as one says them: "40 s", "35 min", "2 h 10 min", "3 d 4 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"

"""A run: a folder with settings, metrics and checkpoints that can be resumed."""

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from minipalm.data.files import write_text
from minipalm.train.checkpoint import (
    load_module,
    load_optimizer,
    module_tensors,
    optimizer_tensors,
    read_state,
    read_tensors,
    write_checkpoint,
)

Modules = Mapping[str, nn.Module]
Optimizers = Mapping[str, torch.optim.Optimizer]
Generators = Mapping[str, torch.Generator]


class TrainingError(RuntimeError):
    """Training cannot go on: the loss is not a number any more."""


class Run:
    """The folder of a training run.

    It holds config.json, metrics.jsonl (one line a step) and the newest checkpoint,
    step-000300/. Training that is cut short, in whatever way, goes on from there.

    Args:
        folder: made if missing.
        settings: whatever fixes the run's result; kept as config.json.

    Raises:
        ValueError: the folder holds a run with other settings.
    """

    def __init__(self, folder: Path | str, **settings: Any) -> None:
        self.folder = Path(folder)
        self.name = "/".join(self.folder.absolute().parts[-2:])  # "07_sft/policy"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.metrics_path = self.folder / "metrics.jsonl"
        path = self.folder / "config.json"
        text = json.dumps(settings, indent=1, default=str)
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise ValueError(
                f"{self.folder}: holds a run with other settings (see config.json). "
                "Remove it (./course clean), or choose another `out`."
            )
        write_text(path, text)
        self.saved_step: int | None = None

    def latest(self) -> Path | None:
        """The newest whole checkpoint, if there is one."""
        return max(self.folder.glob("step-*"), default=None)

    def resume(
        self,
        modules: Modules,
        optimizers: Optimizers,
        generators: Generators | None = None,
    ) -> tuple[int, dict[str, Any]]:
        """Load the newest checkpoint into these; (0, {}) where there is none.

        Returns:
            the number of steps already done, and what `save` was given as state.
        """
        checkpoint = self.latest()
        if checkpoint is None:
            self._cut_metrics(0)
            return 0, {}
        saved = read_state(checkpoint)
        for name, module in modules.items():
            load_module(module, checkpoint, name)
        for name, optimizer in optimizers.items():
            load_optimizer(optimizer, checkpoint, name)
        for name, generator in (generators or {}).items():
            generator.set_state(read_tensors(checkpoint, name)["state"])
        self.saved_step = saved["step"]
        self._cut_metrics(saved["step"])
        return saved["step"], saved["state"]

    def save(
        self,
        step: int,
        modules: Modules,
        optimizers: Optimizers,
        generators: Generators | None = None,
        **state: Any,
    ) -> None:
        """Keep all of it as the checkpoint after `step` steps, and drop the one before.

        Raises:
            CheckpointError: it could not be written; the one before is still there.
        """
        tensors = {**module_tensors(modules), **optimizer_tensors(optimizers)}
        for name, generator in (generators or {}).items():
            tensors[f"{name}/state"] = generator.get_state()
        before = self.latest()
        folder = self.folder / f"step-{step:06d}"
        write_checkpoint(folder, tensors, {"step": step, "state": state})
        self.saved_step = step
        if before is not None and before != folder:
            shutil.rmtree(before)
        for left in self.folder.glob(".step-*.tmp"):  # of a process that was killed
            shutil.rmtree(left, ignore_errors=True)

    def log(self, step: int, **metrics: float) -> None:
        """Add a line to metrics.jsonl: {"step": 1, "loss": 3.2}; steps count from 1."""
        with open(self.metrics_path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")

    def metrics(self) -> list[dict[str, float]]:
        """All lines logged so far."""
        return read_metrics(self.folder)

    def check_finite(self, step: int, **values: float) -> None:
        """Stop at once when a loss is no number.

        Raises:
            TrainingError: names the step, and the last good checkpoint.
        """
        for name, value in values.items():
            if not math.isfinite(value):
                kept = f"checkpoint {self.saved_step}" if self.saved_step else "nothing"
                raise TrainingError(
                    f"{self.name}: {name} is {value} at step {step}; kept: "
                    f"{kept}. Try a smaller learning rate; metrics.jsonl says where it "
                    "began."
                )

    def _cut_metrics(self, step: int) -> None:
        """Forget the lines of steps that will be done again."""
        kept = []
        if self.metrics_path.exists():
            for line in self.metrics_path.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line)["step"] <= step:
                        kept.append(line + "\n")
                except ValueError:  # the line that was being written when it was killed
                    break
        write_text(self.metrics_path, "".join(kept))


def progress(start: int, steps: int, name: str) -> Iterator[tuple[int, tqdm]]:
    """Each step still to do, counted from 1, and the live bar that counts them."""
    with tqdm(
        total=steps, initial=start, desc=name, unit="step", mininterval=0.5
    ) as bar:
        for step in range(start + 1, steps + 1):
            yield step, bar
            bar.update()


def read_metrics(folder: Path | str) -> list[dict[str, float]]:
    """The metrics of a run by its folder: one dict a step."""
    path = Path(folder) / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]

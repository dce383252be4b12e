"""A run: a folder with settings, metrics and checkpoints that can be resumed."""

import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from minipalm.clock import not_counted
from minipalm.data.files import write_text
from minipalm.model.place import own
from minipalm.parallel import barrier, check_same, is_first, summed
from minipalm.rlhf.invariants import InvariantError
from minipalm.train.checkpoint import (
    load_module,
    load_optimizer,
    module_tensors,
    optimizer_tensors,
    read_state,
    read_tensors,
    write_checkpoint,
    writing,
)

Modules = Mapping[str, nn.Module]
Optimizers = Mapping[str, torch.optim.Optimizer]
Generators = Mapping[str, torch.Generator]


class TrainingError(RuntimeError):
    """Training cannot go on: a loss is no number, or an invariant does not hold."""


class Run:
    """The folder of a training run.

    It holds config.json, metrics.jsonl (one line a step) and the newest checkpoint,
    step-000300/. Training that is cut short, in whatever way, goes on from there.

    Args:
        folder: made if missing.
        settings: whatever fixes the run's result; kept as config.json. A micro_batch
            among them may change: it only says what is in memory at once.

    Raises:
        ValueError: the folder holds a run with other settings.
    """

    def __init__(self, folder: Path | str, **settings: Any) -> None:
        self.folder = Path(folder)
        self.name = "/".join(self.folder.absolute().parts[-2:])  # "07_sft/policy"
        self.metrics_path = self.folder / "metrics.jsonl"
        path = self.folder / "config.json"
        text = json.dumps(settings, indent=1, default=str)
        check_same(str(path), text)
        if not path.exists() and is_first():
            with writing(path):
                write_text(path, text)
        barrier()
        if difference := first_difference(path, json.loads(text)):
            raise ValueError(
                f"{path}: is of a run with other settings: {difference}. Remove the "
                "run's folder to train anew, or choose another `out`."
            )

    def checkpoints(self) -> list[Path]:
        """The whole checkpoints, oldest first; there are two only for a moment."""
        steps = [p for p in self.folder.glob("step-*") if p.name[5:].isdigit()]
        return sorted(steps, key=lambda path: int(path.name[5:]))

    def resume(
        self,
        steps: int,
        modules: Modules,
        optimizers: Optimizers,
        generators: Generators | None = None,
    ) -> tuple[int, dict[str, Any]]:
        """Load the newest checkpoint into these; (0, {}) where there is none.

        Args:
            steps: of the whole run. Where it has ended, optimizers are left as they
                are: its last checkpoint has none.
            modules, optimizers, generators: by the names that `save` was given.

        Returns:
            the number of steps already done, and what `save` was given as state.

        Raises:
            ValueError: the stage is complete, and its checkpoints have been removed; or
                the run has ended, and had fewer steps.
        """
        checkpoints = self.checkpoints()
        # All have looked, and at the same, before anything is removed.
        check_same(self.name, str(checkpoints[-1:]))
        if not checkpoints:
            if (self.folder.parent / "done.json").exists() and self.metrics():
                raise ValueError(
                    f"{self.folder}: is of a complete stage, whose checkpoints are "
                    "gone. To train again, remove the stage's folder."
                )
            self._cut_metrics(0)
            return 0, {}
        with not_counted():
            return self._load(
                checkpoints[-1], steps, modules, optimizers, generators or {}
            )

    def _load(
        self,
        checkpoint: Path,
        steps: int,
        modules: Modules,
        optimizers: Optimizers,
        generators: Generators,
    ) -> tuple[int, dict[str, Any]]:
        saved = read_state(checkpoint)
        ended = saved.get("ended", False)  # an older version did not say
        if ended and saved["step"] < steps:
            raise ValueError(
                f"{checkpoint}: this run has ended, with step {saved['step']}, and "
                f"keeps weights only; it cannot go on to step {steps}. Remove the "
                "run's folder to train anew, or choose another `out`."
            )
        for name, module in modules.items():
            load_module(module, checkpoint, name)
        if not ended:
            for name, optimizer in optimizers.items():
                load_optimizer(optimizer, checkpoint, name)
        for name, generator in generators.items():
            set_state(generator, read_tensors(checkpoint, name)["state"])
        self._cut_metrics(saved["step"])
        self._drop_older()
        return saved["step"], saved["state"]

    def save(
        self,
        step: int,
        steps: int,
        modules: Modules,
        optimizers: Optimizers,
        generators: Generators | None = None,
        **state: Any,
    ) -> None:
        """Keep all as the checkpoint after `step` of `steps`, and drop the one before.

        After the last step optimizers are left out, two thirds of the bytes: nothing
        reads their memory any more.

        Raises:
            CheckpointError: it could not be written; the one before is still there.
            TrainingError: a weight is no finite number; the one before is still there.
        """
        ended, tensors = step == steps, module_tensors(modules)
        if not ended:
            tensors |= optimizer_tensors(optimizers)
        for name, generator in (generators or {}).items():
            tensors[f"{name}/state"] = generator.get_state()
        self._check_tensors(step, tensors)  # the loss was that of the step before
        folder = self.folder / f"step-{step:06d}"
        with not_counted():
            told = {"step": step, "ended": ended, "state": state}
            write_checkpoint(folder, tensors, told)
            self._drop_older()

    def log(self, step: int, **metrics: float) -> None:
        """Add a line to metrics.jsonl: {"step": 1, "loss": 3.2}; steps count from 1.

        Of several processes the first one writes it.
        """
        if not is_first():
            return
        with (
            writing(self.metrics_path),
            open(self.metrics_path, "a", encoding="utf-8") as file,
        ):
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
                raise self._diverged(f"{name} is {value} at step {step}")

    def check_weights(self, step: int, modules: Modules) -> None:
        """Stop when a step has left weights that are no numbers.

        Raises:
            TrainingError: names the step, and the last good checkpoint.
        """
        self._check_tensors(step, module_tensors(modules))

    @contextmanager
    def guarding(self, step: int) -> Iterator[None]:
        """An invariant that breaks in this block stops the run, and says where.

        Raises:
            TrainingError: names the step, what broke, and the last good checkpoint.
        """
        try:
            yield
        except InvariantError as error:
            raise TrainingError(
                f"{self.name}: step {step}: {error} ({self._kept()} is kept)"
            ) from error

    def _check_tensors(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        bad = [
            name for name, tensor in tensors.items() if not own(tensor).isfinite().all()
        ]
        if summed(len(bad)):  # also if it is another process's part
            name = (bad or ["a weight"])[0]
            raise self._diverged(f"{name} is no longer finite after step {step}")

    def _diverged(self, what: str) -> TrainingError:
        return TrainingError(
            f"{self.name}: {what}; {self._kept()} is kept. Most often the learning "
            "rate is too high: lower it in minipalm/config.py and choose another `out`."
        )

    def _kept(self) -> str:
        """The newest checkpoint's name."""
        return ([path.name for path in self.checkpoints()] or ["no checkpoint"])[-1]

    def forget(self) -> None:
        """Remove all checkpoints: what was learnt is kept elsewhere by now."""
        if is_first():
            for path in self.checkpoints():
                shutil.rmtree(path, ignore_errors=True)

    def _drop_older(self) -> None:
        if is_first():
            for path in self.checkpoints()[:-1]:
                shutil.rmtree(path, ignore_errors=True)

    def _cut_metrics(self, step: int) -> None:
        """Forget the lines of steps that will be done again."""
        if not is_first():
            return
        kept = []
        if self.metrics_path.exists():
            for line in self.metrics_path.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line)["step"] <= step:
                        kept.append(line + "\n")
                except ValueError:  # the line that was being written when it was killed
                    break
        with writing(self.metrics_path):
            write_text(self.metrics_path, "".join(kept))


def set_state(generator: torch.Generator, state: Tensor) -> None:
    """Go on where a generator was; after one of another device, from a seed of its own.

    The draws are others then, and as good.
    """
    if len(state) == len(generator.get_state()):
        generator.set_state(state)
        return
    print("the draws were another device's; they go on from another seed", flush=True)
    digest = hashlib.sha256(bytes(state.tolist())).digest()
    generator.manual_seed(int.from_bytes(digest[:7], "big"))


def first_difference(path: Path, wanted: Any) -> str:
    """Where the settings in a file differ: "optim.lr is 0.02, and 0.01 is asked for".

    Empty if they are the same.
    """
    try:
        found = lasting(json.loads(path.read_text(encoding="utf-8")))
    except ValueError:
        return "it is no JSON"
    name, wanted = "", lasting(wanted)
    while isinstance(found, dict) and isinstance(wanted, dict):
        keys = [key for key in wanted | found if found.get(key) != wanted.get(key)]
        if not keys:
            return ""
        name += f".{keys[0]}"
        found, wanted = found.get(keys[0]), wanted.get(keys[0])
    return f"{name[1:]} is {found}, and {wanted} is asked for"


def lasting(settings: Any) -> Any:
    """Settings without those that may change while a run goes on."""
    if not isinstance(settings, dict):
        return settings
    kept = {name: lasting(value) for name, value in settings.items()}
    kept.pop("micro_batch", None)
    return kept


def steps_left(start: int, steps: int, name: str) -> Iterator[tuple[int, tqdm]]:
    """Each step still to do, counted from 1, and the live bar that counts them."""
    if start >= steps:
        print(f"{name}: already trained; to train again, remove its folder")
    hidden: dict[str, Any] = {} if is_first() else {"disable": True}
    with tqdm(
        total=steps, initial=start, desc=name, unit="step", mininterval=0.5, **hidden
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

"""How long each phase of a step takes, how many tokens a second, how much memory."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from minipalm.config import MachineConfig
from minipalm.model.place import machine_of
from minipalm.parallel import ranks

_elsewhere = {"seconds": 0.0}  # spent on checkpoints, which are no step's work


@contextmanager
def not_counted() -> Iterator[None]:
    """What is done in this block, a checkpoint, is no step's work."""
    start = now()
    yield
    _elsewhere["seconds"] += now() - start


class Clock:
    """Measures a training loop, step by step.

    It stands still where a network is not placed on any machine in particular: the
    metrics of a small run hold what its seed fixes and nothing else, so that two runs
    can be compared letter by letter.

    Args:
        model: what is trained.
    """

    def __init__(self, model: Any) -> None:
        self.runs = ranks().world > 1 or machine_of(model) != MachineConfig()
        self.seconds: dict[str, float] = {}
        self.notes: dict[str, float] = {}
        self.begun, self.before = time.perf_counter(), _elsewhere["seconds"]
        if self.runs:
            peak_memory()  # what was done before is not counted

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What is done in this block counts as `name`; blocks of one name add up."""
        if not self.runs:
            yield
            return
        start = now()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + now() - start

    def note(self, **metrics: float) -> None:
        """Further metrics of this step."""
        self.notes |= metrics

    def lap(self, tokens: float) -> dict[str, float]:
        """The metrics of the step that ends here; the next begins.

        Args:
            tokens: of the whole batch, padding included.

        Returns:
            seconds of the step and of each phase ("seconds/rollout"),
            checkpoint_seconds: of checkpoints written or read since the last lap,
            tokens_per_second of all processes together, memory: GiB of the GPU at
            most, this step, ranks: how many processes there were.
        """
        if not self.runs:
            return {}
        apart = _elsewhere["seconds"] - self.before
        seconds = now() - self.begun - apart
        self.begun, self.before = now(), _elsewhere["seconds"]
        phases = {f"seconds/{name}": each for name, each in self.seconds.items()}
        notes, self.seconds, self.notes = self.notes, {}, {}
        rate = tokens / seconds
        return {
            **notes,
            "seconds": seconds,
            **phases,
            "checkpoint_seconds": apart,
            "tokens_per_second": rate,
            "memory": peak_memory(),
            "ranks": ranks().world,
        }


def now() -> float:
    """Seconds, when all that was asked of the GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_memory() -> float:
    """GiB of this process's GPU that were in use at most since the last call."""
    device = ranks().device
    if device.type != "cuda":
        return 0.0
    peak = torch.cuda.max_memory_allocated(device) / 2**30
    torch.cuda.reset_peak_memory_stats(device)
    return peak

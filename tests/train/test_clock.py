"""What a step is said to have taken, and what is none of its time."""

import pytest
from torch import nn

from minipalm import clock
from minipalm.clock import Clock, not_counted
from minipalm.config import MachineConfig


@pytest.fixture
def wait(monkeypatch):
    """wait(seconds): the time that the clock reads moves on."""
    time = {"now": 100.0}
    monkeypatch.setattr(clock, "now", lambda: time["now"])
    monkeypatch.setattr(clock.time, "perf_counter", lambda: time["now"])

    def wait(seconds):
        time["now"] += seconds

    return wait


@pytest.fixture
def model():
    model = nn.Linear(1, 1)
    model.machine = MachineConfig(decoder=True)  # or the clock would stand still
    return model


def test_checkpoints_are_told_apart_from_steps(wait, model):
    clock = Clock(model)
    with clock.phase("rollout"):
        wait(3)
    wait(1)
    first = clock.lap(40)
    with not_counted():
        wait(7)
    wait(2)
    second = clock.lap(40)
    wait(1)
    third = clock.lap(1)
    assert (first["seconds"], first["seconds/rollout"]) == (4, 3)
    assert first["tokens_per_second"] == 10
    assert [lap["checkpoint_seconds"] for lap in (first, second, third)] == [0, 7, 0]
    assert (second["seconds"], third["seconds"]) == (2, 1)
    assert "seconds/rollout" not in second


def test_a_small_run_logs_what_its_seed_fixes_and_nothing_else(wait):
    clock = Clock(nn.Linear(1, 1))
    with clock.phase("rollout"), not_counted():
        wait(1)
    assert clock.lap(1) == {}

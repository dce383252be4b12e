"""49: a run that is cut short, however, ends as one that was not, bit for bit."""

import json
import os
import random
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from minipalm.train import checkpoint
from minipalm.train.checkpoint import write_checkpoint
from tests.train import worlds
from tests.train.worlds import OPTIM, WORLDS, Stopped, left_by

EVERY_LOOP = pytest.mark.parametrize("world", WORLDS)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """uninterrupted(world) -> what a whole run left, and its networks."""
    kept = {}

    def run(world):
        if world not in kept:
            folder = tmp_path_factory.mktemp(world)
            kept[world] = WORLDS[world](folder), left_by(folder)
        return kept[world]

    return run


def equal_weights(modules, others):
    for name, module in modules.items():
        for key, tensor in module.state_dict().items():
            assert torch.equal(tensor, others[name].state_dict()[key]), (name, key)


# --- 49: cut short by an error ------------------------------------------------------


@EVERY_LOOP
@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5, 6])
def test_49_stopped_in_a_step_and_resumed_is_uninterrupted(
    world, stop, uninterrupted, tmp_path
):
    modules, files = uninterrupted(world)
    with pytest.raises(Stopped):
        WORLDS[world](tmp_path, stop=stop)
    # Other weights to begin with: all that counts must come from the checkpoint.
    init = 77 if stop > 2 else 0
    equal_weights(WORLDS[world](tmp_path, init=init), modules)
    assert left_by(tmp_path) == files


@EVERY_LOOP
def test_49_stopped_again_and_again(world, uninterrupted, tmp_path):
    for stop in (5, 3, 5, 6, 6):
        try:
            WORLDS[world](tmp_path, stop=stop, every=1)
        except Stopped:
            pass
    modules = WORLDS[world](tmp_path, every=1, init=77)
    equal_weights(modules, uninterrupted(world)[0])
    assert left_by(tmp_path) == uninterrupted(world)[1]


@EVERY_LOOP
def test_49_a_finished_run_is_loaded_and_nothing_is_done(
    world, uninterrupted, tmp_path, monkeypatch
):
    WORLDS[world](tmp_path)
    monkeypatch.setattr(torch.optim.AdamW, "step", None)
    equal_weights(WORLDS[world](tmp_path, init=77), uninterrupted(world)[0])
    assert left_by(tmp_path) == uninterrupted(world)[1]


@EVERY_LOOP
def test_49_the_checkpoint_holds_weights_adam_generators_and_beta(
    world, uninterrupted, tmp_path
):
    modules, ended = uninterrupted(world)
    with pytest.raises(Stopped):
        WORLDS[world](tmp_path, stop=6)
    files = left_by(tmp_path)
    assert sorted(files) == [
        "config.json",
        "metrics.jsonl",
        "step-000004/state.json",
        "step-000004/tensors.safetensors",
    ]
    found = load_file(tmp_path / "step-000004" / "tensors.safetensors")
    names = {name.partition("/")[0] for name in found}
    memory = [name for name in found if name.endswith("exp_avg_sq")]
    weights = sum(len(list(module.parameters())) for module in modules.values())
    assert len(memory) == weights
    (tmp_path / "t").write_bytes(ended["step-000006/tensors.safetensors"])
    kept = {name.partition("/")[0] for name in load_file(tmp_path / "t")}
    assert kept == {name for name in names if "optimizer" not in name}
    state = json.loads(files["step-000004/state.json"])
    if world == "ppo":
        assert names >= {"policy", "critic", "generator", "sampler"}
        assert names >= {"policy_optimizer", "critic_optimizer"}
        # β of the next step: the last that was logged, steered once more
        lines = [json.loads(line) for line in ended["metrics.jsonl"].splitlines()]
        steered = lines[3]["kl_coef"] * (
            1 + min(max(lines[3]["kl"] / 0.01 - 1, -0.2), 0.2) * 8 / 40
        )
        wanted = {"kl_coef": pytest.approx(steered)}
        assert state == {"step": 4, "ended": False, "state": wanted}
        assert len({line["kl_coef"] for line in lines}) == 6  # it moves at every step
    else:
        assert names == {"model", "optimizer"}
        assert state == {"step": 4, "ended": False, "state": {}}


def test_49_a_reward_that_fails_once(uninterrupted, tmp_path):
    """The step's random numbers were drawn already; they are drawn again."""
    calls = 0

    def failing(*answers):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise Stopped
        return worlds.share_of_fives(*answers)

    with pytest.raises(Stopped):
        worlds.ppo(tmp_path, reward=failing)
    worlds.ppo(tmp_path, reward=failing, init=77)
    assert left_by(tmp_path) == uninterrupted("ppo")[1]


@EVERY_LOOP
@pytest.mark.parametrize("call", [5, 6, 7, 13])
def test_49_an_optimizer_step_that_fails_once(
    world, call, uninterrupted, tmp_path, monkeypatch
):
    """In PPO this is between two minibatches: half of the update has been applied."""
    step, calls = torch.optim.AdamW.step, 0

    def failing(self):
        nonlocal calls
        calls += 1
        if calls == call:
            raise Stopped
        return step(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", failing)
    try:
        WORLDS[world](tmp_path)
    except Stopped:
        WORLDS[world](tmp_path)
    assert left_by(tmp_path) == uninterrupted(world)[1]


def test_49_torchs_own_generator_has_no_say(uninterrupted, tmp_path):
    for world in WORLDS:
        torch.manual_seed(random.randrange(2**31))
        with pytest.raises(Stopped):
            WORLDS[world](tmp_path / world, stop=3)
        torch.manual_seed(random.randrange(2**31))
        WORLDS[world](tmp_path / world)
        assert left_by(tmp_path / world) == uninterrupted(world)[1]


# --- 49: kill -9 ----------------------------------------------------------------------


@pytest.mark.parametrize("world", ["language_model", "ppo"])
def test_49_killed_at_every_single_file_operation(world, child, tmp_path):
    """Not at stages that we thought of: before each open, mkdir, rename and remove."""
    assert child(worlds.train, world, tmp_path / "whole") == 0
    whole = left_by(tmp_path / "whole")
    killed = 0
    while True:
        folder = tmp_path / f"{killed}"
        if child(worlds.train_and_die, world, folder, killed) == 0:
            break
        assert child(worlds.train, world, folder) == 0
        assert left_by(folder) == whole, f"killed before touch {killed}"
        killed += 1
    assert killed > 25  # two saves with about ten operations each


def die_in_save_file(world, folder, share):
    """Killed when a share of the tensors' second file has reached the disk."""
    worlds.quiet()
    real, calls = checkpoint.save_file, 0

    def save_file(tensors, path):
        nonlocal calls
        calls += 1
        real(tensors, path)
        if calls == 2:
            os.truncate(path, int(share * path.stat().st_size))
            worlds.die()

    checkpoint.save_file = save_file
    worlds.train(world, folder)


@pytest.mark.parametrize("share", [0, 0.5, 1])
def test_49_killed_while_the_tensors_are_written(share, child, tmp_path):
    assert child(worlds.train, "sft", tmp_path / "whole") == 0
    assert child(die_in_save_file, "sft", tmp_path / "cut", share) == -9
    assert child(worlds.train, "sft", tmp_path / "cut") == 0
    assert left_by(tmp_path / "cut") == left_by(tmp_path / "whole")


def write_big(folder):
    worlds.quiet()
    tensors = {f"model/{n}": torch.ones(1 << 20) for n in range(24)}  # 100 MB
    write_checkpoint(folder, tensors, {"step": 2})


def test_49_killed_while_a_big_file_grows(child, tmp_path):
    write_checkpoint(tmp_path / "step-000001", {"model/0": torch.ones(3)}, {"step": 1})
    process = child(write_big, tmp_path / "step-000002", wait=False)
    big = tmp_path / ".checkpoint.tmp" / checkpoint.TENSORS
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.is_alive():
        if big.exists() and big.stat().st_size > 0:
            break
    process.kill()
    process.join()
    assert process.exitcode == -9
    assert not (tmp_path / "step-000002").exists()
    assert checkpoint.read_state(tmp_path / "step-000001") == {"step": 1}
    write_checkpoint(tmp_path / "step-000002", {"model/0": torch.ones(3)}, {"step": 2})
    assert not big.parent.exists()


def train_long(folder):
    worlds.quiet()
    worlds.language_model(folder, every=1, config=replace(OPTIM, steps=200))


def test_49_killed_at_random_moments(child, tmp_path):
    assert child(train_long, tmp_path / "whole") == 0
    rng = random.Random(0)
    for kills in range(12):
        process = child(train_long, tmp_path / "cut", wait=False)
        enough = 3 * kills + rng.randrange(3)  # steps; so that each life gets further
        while process.is_alive() and newest(tmp_path / "cut") <= enough:
            time.sleep(rng.uniform(0, 0.02))
        process.kill()
        process.join()
        assert process.exitcode == -9, "it came to its end before it could be killed"
    assert child(train_long, tmp_path / "cut") == 0
    assert left_by(tmp_path / "cut") == left_by(tmp_path / "whole")


def newest(folder):
    return max((int(path.name[5:]) for path in folder.glob("step-*")), default=0)

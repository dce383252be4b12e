"""Checkpoints: what is written is read, whatever the disk does; see test_bad_input."""

import os
import subprocess
import weakref
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file
from torch import nn

from minipalm.model.palm import PaLM
from minipalm.train import checkpoint
from minipalm.train.checkpoint import (
    CheckpointError,
    load_module,
    load_optimizer,
    module_tensors,
    optimizer_tensors,
    read_state,
    read_tensors,
    write_checkpoint,
)
from minipalm.train.optim import adamw, set_lr
from minipalm.train.piecewise import NAMES
from minipalm.train.run import Run
from tests.train import worlds
from tests.train.worlds import NET, left_by


def stepped(model, steps=2):
    optimizer = adamw(model, weight_decay=0.1)
    set_lr(optimizer, 0.01)
    for _ in range(steps):
        model.logits(model.hidden(worlds.draw(2, 5))).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def save(folder, model, optimizer, **state):
    tensors = module_tensors({"m": model}) | optimizer_tensors({"o": optimizer})
    write_checkpoint(folder, tensors, state)


def test_what_is_written_is_read_bit_for_bit(tmp_path):
    model = PaLM(NET)
    optimizer = stepped(model)
    save(tmp_path / "a", model, optimizer, step=2, text="é", half=0.1 + 0.2)
    other = PaLM(NET)
    other_optimizer = adamw(other, weight_decay=0.1)
    load_module(other, tmp_path / "a", "m")
    load_optimizer(other_optimizer, tmp_path / "a", "o")
    assert read_state(tmp_path / "a") == {"step": 2, "text": "é", "half": 0.1 + 0.2}
    save(tmp_path / "b", other, other_optimizer, step=2, text="é", half=0.1 + 0.2)
    assert left_by(tmp_path / "a") == left_by(tmp_path / "b")
    assert torch.equal(
        stepped_again(model, optimizer), stepped_again(other, other_optimizer)
    )


def stepped_again(model, optimizer):
    set_lr(optimizer, 0.01)
    model.logits(model.hidden(worlds.draw(2, 5))).square().sum().backward()
    optimizer.step()
    return model.embedding.weight


def test_names_that_begin_alike_are_kept_apart(tmp_path):
    """beta-0 and beta-0.15 are two policies."""
    tensors = {"beta-0/w": torch.zeros(1), "beta-0.15/w": torch.ones(1)}
    write_checkpoint(tmp_path / "a", tensors, {})
    assert read_tensors(tmp_path / "a", "beta-0") == {"w": torch.zeros(1)}
    assert read_tensors(tmp_path / "a", "beta-0.15") == {"w": torch.ones(1)}


def test_weights_that_do_not_lie_in_order_are_written(tmp_path):
    module = nn.Linear(3, 2)
    module.weight.data = torch.arange(6.0).view(3, 2).T  # a transposed view
    write_checkpoint(tmp_path / "a", module_tensors({"m": module}), {})
    assert read_tensors(tmp_path / "a", "m")["weight"].tolist() == [
        [0, 2, 4],
        [1, 3, 5],
    ]


def test_a_new_one_takes_the_place_of_an_old_one(tmp_path):
    for n in (1, 2, 3):
        write_checkpoint(tmp_path / "a", {"m/w": torch.full((2,), n)}, {"n": n})
    assert read_state(tmp_path / "a") == {"n": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_a_killed_process_left_is_cleared(tmp_path):
    for name in (".checkpoint.tmp", ".a.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_text("x")
    write_checkpoint(tmp_path / "a", {"m/w": torch.ones(2)}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_the_one_set_aside_is_read_while_there_is_no_other(tmp_path):
    """As after a kill -9 between the two renames of a replacement."""
    write_checkpoint(tmp_path / "a", {"m/w": torch.ones(2)}, {"n": 1})
    (tmp_path / "a").rename(tmp_path / ".a.old")
    assert read_state(tmp_path / "a") == {"n": 1}
    assert read_tensors(tmp_path / "a", "m")["w"].tolist() == [1, 1]
    write_checkpoint(tmp_path / "a", {"m/w": torch.zeros(2)}, {"n": 2})
    assert read_state(tmp_path / "a") == {"n": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_file_is_the_library_s_own(tmp_path):
    tensors = {
        "m/é": torch.randn(3, 5),
        "m/b": torch.randn(2, 2).bfloat16(),
        "o/0.step": torch.tensor(7.0),
        "generator/state": torch.arange(9, dtype=torch.uint8),
        "n/count": torch.tensor([1, 2, 3]),
        "n/none": torch.zeros(0, 4),
        "n/some": torch.tensor([True, False, True]),
        "m/a": nn.Parameter(torch.randn(4)),
    }
    checkpoint.save_file(tensors, tmp_path / "ours")
    safetensors.torch.save_file(tensors, tmp_path / "theirs")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    tensors = {str(kind): torch.arange(5).to(kind) for kind in NAMES}
    assert {torch.int16, torch.int8, torch.uint16, torch.float16} < NAMES.keys()
    checkpoint.save_file(tensors, tmp_path / "ours")
    found = load_file(tmp_path / "ours")
    assert found.keys() == tensors.keys()
    for name, x in tensors.items():
        assert torch.equal(found[name].view(torch.uint8), x.view(torch.uint8))
    assert all(found[name].dtype == x.dtype for name, x in tensors.items())


def test_a_type_that_is_not_kept_is_named(tmp_path):
    tensors = {"m/z": torch.zeros(2, dtype=torch.complex64)}
    with pytest.raises(CheckpointError) as caught:
        write_checkpoint(tmp_path / "a", tensors, {})
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'a'}: could not be written (m/z: ")
    assert "torch.complex64 is not among the types" in message
    assert not any(tmp_path.iterdir())


def test_a_file_is_written_with_one_tensor_in_memory_at_a_time(tmp_path, monkeypatch):
    """As of a GPU, each is copied; at most two of 16 are there at once."""
    alive = weakref.WeakSet()
    most = 0

    def copied(x):
        nonlocal most
        copy = x.clone()
        alive.add(copy)
        most = max(most, len(alive))
        return copy

    monkeypatch.setattr(torch.Tensor, "cpu", copied)
    tensors = {f"m/{n}": torch.full((1000,), float(n)) for n in range(16)}
    write_checkpoint(tmp_path / "a", tensors, {})
    assert 1 <= most <= 2
    assert read_tensors(tmp_path / "a", "m")["7"].unique().tolist() == [7]


@pytest.mark.parametrize("fails", ["save_file", "fsync", "rename", "interrupt"])
def test_nothing_is_left_of_an_attempt_that_failed(fails, tmp_path, monkeypatch):
    write_checkpoint(tmp_path / "a", {"m/w": torch.ones(2)}, {"n": 1})
    before = left_by(tmp_path)

    def broken(*_):
        if fails == "interrupt":
            raise KeyboardInterrupt
        raise OSError(5, "Input/output error")

    target = {"save_file": checkpoint, "fsync": os, "rename": checkpoint.Path}
    name = fails if fails in target else "save_file"
    monkeypatch.setattr(target.get(fails, checkpoint), name, broken)
    wanted = KeyboardInterrupt if fails == "interrupt" else CheckpointError
    with pytest.raises(wanted):
        write_checkpoint(tmp_path / "a", {"m/w": torch.zeros(2)}, {"n": 2})
    assert left_by(tmp_path) == before


# --- a full disk --------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A real file system with room for one checkpoint of 800 kB, not for two."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", str(place)]
    try:
        done = subprocess.run(command, capture_output=True)
    except OSError:
        pytest.skip("there is no mount")
    if done.returncode:
        pytest.skip("mounting a small disk needs root")
    handle = os.open(place, os.O_RDONLY)
    # Unmounted at once: only the handle holds it, so it goes however the test ends.
    subprocess.run(["umount", "-l", str(place)], check=True)
    yield Path(f"/proc/self/fd/{handle}")
    os.close(handle)


def big(value):
    return nn.ParameterList([torch.full((200_000,), float(value))])


def says_how_to_mend(error, path):
    message = str(error.value)
    assert message.startswith(f"{path}: could not be written (")
    assert "make room on the disk and run again to resume" in message
    assert len(message.splitlines()) <= 2
    return message


def test_a_full_disk_keeps_the_checkpoint_before(small_disk):
    run = Run(small_disk / "run")
    run.save(1, 9, {"m": big(1)}, {})
    before = left_by(small_disk)
    with pytest.raises(CheckpointError) as error:
        run.save(2, 9, {"m": big(2)}, {})
    message = says_how_to_mend(error, small_disk / "run" / "step-000002")
    assert "No space left on device" in message
    assert left_by(small_disk) == before
    loaded = big(0)
    assert run.resume(9, {"m": loaded}, {}) == (1, {})
    assert loaded[0].unique().tolist() == [1]


def test_a_full_disk_keeps_the_result_before(small_disk):
    write_checkpoint(small_disk / "result", module_tensors({"m": big(1)}), {"n": 1})
    before = left_by(small_disk)
    with pytest.raises(CheckpointError):
        write_checkpoint(small_disk / "result", module_tensors({"m": big(2)}), {"n": 2})
    assert left_by(small_disk) == before


def test_a_training_that_fills_the_disk_goes_on_when_there_is_room(
    small_disk, tmp_path
):
    worlds.ppo(tmp_path / "whole")
    whole = left_by(tmp_path / "whole")
    with pytest.raises(worlds.Stopped):
        worlds.ppo(tmp_path / "cut off", stop=3)
    first = left_by(tmp_path / "cut off")["step-000002/tensors.safetensors"]
    room = 1.5 * len(first) + 4 * 4096  # 4 files
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1200 * 1024 - int(room)))
    with pytest.raises(CheckpointError) as error:
        worlds.ppo(small_disk / "run")
    says_how_to_mend(error, small_disk / "run" / "step-000004")
    assert not list(small_disk.rglob("*.tmp"))
    ballast.unlink()
    worlds.ppo(small_disk / "run", init=77)  # its own weights do not matter
    assert left_by(small_disk / "run") == whole


def test_a_metrics_line_for_which_there_is_no_room_is_an_error_of_one_line(small_disk):
    run = Run(small_disk / "run")
    run.log(1, loss=1.0)
    with pytest.raises(OSError), (small_disk / "ballast").open("wb") as ballast:
        while True:
            ballast.write(bytes(4096))
            ballast.flush()
    with pytest.raises(CheckpointError) as error:
        for step in range(2, 1000):
            run.log(step, loss=1.0)
    says_how_to_mend(error, small_disk / "run" / "metrics.jsonl")
    with pytest.raises(CheckpointError) as error:
        Run(small_disk / "other", seed=0)
    says_how_to_mend(error, small_disk / "other" / "config.json")


def save_with_little_room(folder, answer):
    """As on a disk with a quota: no file may become larger than 100 kB."""
    import resource

    worlds.quiet()
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        Run(folder).save(2, 9, {"m": big(2)}, {})
    except CheckpointError as error:
        answer.write_text(str(error))


def test_a_limit_on_files_is_a_full_disk(child, tmp_path):
    folder, answer = tmp_path / "run", tmp_path / "answer"
    Run(folder).save(1, 9, {"m": big(1)}, {})
    before = left_by(folder)
    assert child(save_with_little_room, folder, answer) == 0
    message = answer.read_text()
    assert message.startswith(f"{folder / 'step-000002'}: could not be written (")
    assert "File too large" in message and len(message.splitlines()) == 1
    assert left_by(folder) == before

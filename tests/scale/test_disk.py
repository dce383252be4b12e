"""The disk that a run needs: said before, and what the notebooks then write."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from minipalm.config import FULL, get_preset
from minipalm.course import ROOT, full
from minipalm.course.full import check_disk
from minipalm.scale.disk import Loop, rooms, worst_moment

# The stages as in batch, with a note of all tensors' bytes after each checkpoint.
DRIVER = """
import json, os, sys
from dataclasses import replace
from pathlib import Path
import torch
from bench.stages import run_cells
from minipalm import config
from minipalm.course.run import drop_checkpoints
from minipalm.train import run, stage
from minipalm.train.progress import STAGES

torch.set_num_threads(1)
out, lora, every = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
machine = config.MachineConfig(
    compute="bfloat16" if lora else "float32",
    weights="bfloat16" if lora else "float32",
    lora_rank=lora,
    decoder=bool(lora),
)
preset = replace(
    config.SMOKE,
    machine=machine,
    checkpoint_every=every,
    ppo_checkpoint_every=max(every // 10, 1),
)
config.PRESETS["smoke"] = preset
write, seen = run.write_checkpoint, []

def size():
    total = 0  # without the states of random generators, 5 kB each
    for path in out.rglob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, one in header.items():
            if not name.endswith("/state"):
                total += one["data_offsets"][1] - one["data_offsets"][0]
    return total

def noted(folder, tensors, state):
    write(folder, tensors, state)
    seen.append(size())

run.write_checkpoint = stage.write_checkpoint = noted
found = {}
for name in STAGES:
    seen.clear()
    run_cells(name, "smoke", out)
    drop_checkpoints(out / name)
    found[name] = max(seen, default=size()), size()
print(json.dumps(found))
"""


@pytest.mark.parametrize("lora, every", [(0, 2), (4, 100)])
def test_stages_fill_the_disk_as_planned(lora, every, tmp_path):
    command = [sys.executable, "-c", DRIVER, tmp_path / "run", str(lora), str(every)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert list(found) == [room.stage for room in rooms(get_preset("smoke"))]
    preset = get_preset("smoke")
    machine = replace(
        preset.machine,
        compute="bfloat16" if lora else "float32",
        weights="bfloat16" if lora else "float32",
        lora_rank=lora,
    )
    often = {"checkpoint_every": every, "ppo_checkpoint_every": max(every // 10, 1)}
    planned = rooms(replace(preset, machine=machine, **often))
    for room in planned:
        assert (room.fullest, room.left) == pytest.approx(found[room.stage], rel=0.001)
    assert planned[3].fullest > 1.2 * planned[3].left  # or nothing would be told


def test_two_checkpoints_meet_only_where_two_are_written():
    once, twice, often = (Loop(30, saved, 10) for saved in (1, 2, 5))
    other = Loop(9, 2, 60)
    assert worst_moment([once]) == 10 + 10  # weights only, beside its result
    assert worst_moment([twice]) == 30 + 10  # the last one beside the first
    assert worst_moment([often]) == 30 + 30
    assert worst_moment([once, other]) == 10 + 3 + 10 + 60
    assert worst_moment([Loop(9, 2, 3), often]) == 3 + 60
    assert worst_moment([]) == 0


# --- before a run -----------------------------------------------------------------


@pytest.fixture
def disk(monkeypatch):
    """disk(gb): from now on so much is free, wherever one looks."""

    def with_free(gb):
        usage = SimpleNamespace(free=int(gb * 1e9))
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)

    return with_free


STAGES = [room.stage for room in rooms(FULL)]


def test_a_run_without_room_is_refused_at_once(disk, tmp_path):
    most = max(rooms(FULL), key=lambda room: room.fullest)
    disk(most.fullest / 1e9 + 0.001)
    check_disk(FULL, tmp_path / "new", STAGES)
    disk(most.fullest / 1e9 - 1)
    with pytest.raises(ValueError, match=rf"{most.stage}.*new has 0 GB.* GB are free"):
        check_disk(FULL, tmp_path / "new", STAGES)


def test_what_the_run_has_is_its_own_and_complete_stages_need_no_more(disk, tmp_path):
    fullest = {room.stage: room.fullest for room in rooms(FULL)}
    disk(1)
    weights = tmp_path / "07_sft" / "policy" / "step-000100" / "tensors.safetensors"
    weights.parent.mkdir(parents=True)
    with weights.open("wb") as file:  # a hole, as large as what is missing
        file.truncate(int(fullest["07_sft"] - 1e9 + 1))
    check_disk(FULL, tmp_path, ["06_palm", "07_sft"])
    with pytest.raises(ValueError, match="11_ppo"):
        check_disk(FULL, tmp_path, STAGES[:4])
    weights.unlink()  # with its stage, as it ends
    for stage in STAGES[:4]:
        (tmp_path / stage).mkdir(exist_ok=True)
        (tmp_path / stage / "done.json").write_text("{}")
    check_disk(FULL, tmp_path, STAGES[:4])
    check_disk(FULL, tmp_path, ["of", "somebody", "else"])


def test_the_command_refuses_before_it_begins(tmp_path, monkeypatch, capsys):
    usage = SimpleNamespace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    out = tmp_path / "run"
    assert full.main(["--scale", "smoke", "--out", str(out)]) == 2
    assert "GB are free there" in capsys.readouterr().err
    assert not list(out.rglob("*.ipynb"))

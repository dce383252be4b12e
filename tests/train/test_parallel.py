"""Several processes as one: the numbers, the weights and the checkpoints of one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minipalm import parallel
from minipalm.config import MachineConfig
from minipalm.model.palm import PaLM
from minipalm.parallel import Ranks, gather_rows, ranks, row_by_row, share, summed
from minipalm.train.checkpoint import CheckpointError, load_module
from tests.train import worlds
from tests.train.worlds import NET

pytestmark = pytest.mark.skipif(os.name == "nt", reason="torchrun is not for Windows")
SCRIPT = Path(__file__).with_name("two_ranks.py")
TIMES = ("seconds", "checkpoint_", "tokens_per_second", "memory", "ranks", "sampler_")


def torchrun(number, *arguments):
    """Run the script in so many processes; what it says when it fails."""
    launch = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={number}",
    ]
    command = [sys.executable, *(launch if number > 1 else []), SCRIPT, *arguments]
    said = subprocess.run(
        [str(one) for one in command],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert said.returncode == 0, said.stderr[-3000:]


@pytest.fixture(scope="module")
def ranks_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def told(ranks_folder):
    """What one process and what two have to tell; each takes over the other's runs."""
    folder = ranks_folder
    torchrun(1, folder / "one", folder / "none")
    torchrun(2, folder / "two", folder / "one" / "left")
    torchrun(1, folder / "back", folder / "two" / "left")
    return {
        name: json.loads((folder / name / "told.json").read_text())
        for name in ("one", "two", "back")
    }


def numbers(x):
    if isinstance(x, dict):
        return [one for key in sorted(x) for one in numbers(x[key])]
    return [one for part in x for one in numbers(part)] if isinstance(x, list) else [x]


def learnt(world):
    """Weights, and the metrics that are not of the clock."""
    lines = [
        {k: v for k, v in line.items() if not k.startswith(TIMES)}
        for line in world["metrics"]
    ]
    return world["weights"], lines


WORLDS = ("language_model", "sft", "reward_model", "ppo", *worlds.METHODS)


@pytest.mark.parametrize("world", WORLDS)
def test_two_processes_learn_what_one_does(told, world):
    one, two = (learnt(told[n]["whole"][world]) for n in ("one", "two"))
    assert len(one[1]) == 4
    for a, b in zip(one, two):  # sums of two halves round otherwise than one sum
        assert numbers(b) == pytest.approx(numbers(a), rel=2e-5, abs=2e-6)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("number", ["one", "two"])
def test_a_run_that_is_cut_short_ends_the_same_bit_for_bit(told, number, world):
    whole, resumed = (learnt(told[number][n][world]) for n in ("whole", "resumed"))
    assert resumed == whole


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("number", ["two", "back"])
def test_another_number_of_processes_goes_on(told, number, world):
    """`two` resumes a file of one process, `back` the files of two."""
    whole, taken = (learnt(told[number][n][world]) for n in ("whole", "taken_over"))
    for a, b in zip(whole, taken):
        assert numbers(b) == pytest.approx(numbers(a), rel=2e-5, abs=2e-6)


def test_passes_do_not_depend_on_the_number_of_processes(told):
    one, two = told["one"]["passes"], told["two"]["passes"]
    for name in ("generate", "decoder"):
        assert two[name][:2] == one[name][:2]  # the same tokens
        assert numbers(two[name][2]) == pytest.approx(numbers(one[name][2]), abs=1e-5)
    for name in ("states", "loss"):
        assert numbers(two[name]) == pytest.approx(numbers(one[name]), abs=1e-6)


def test_sharded_bfloat16_has_float32_gradients_that_are_summed(told):
    one, two = told["one"]["passes"], told["two"]["passes"]
    assert two["half"] == pytest.approx(one["half"], rel=1e-3)
    assert one["grad"][0] == two["grad"][0] == "torch.float32"
    a, b = (torch.tensor(numbers(x["grad"][1])) for x in (one, two))
    assert (a - b).norm() < 1e-2 * a.norm()


def test_a_sharded_checkpoint_that_is_not_whole_is_refused(told, ranks_folder):
    [folder] = (ranks_folder / "two/begun/ppo").glob("step-*")
    files = sorted(folder.glob("shard-*"))
    assert len(files) > 2 and {name.name[6:11] for name in files} == {"00001", "00002"}
    network = PaLM(NET)
    load_module(network, folder, "policy")
    for path in files:
        whole = path.read_bytes()
        for broken in (None, whole[: len(whole) // 2], whole + b"x"):
            path.unlink()
            if broken is not None:
                path.write_bytes(broken)
            with pytest.raises(CheckpointError, match=f"{path.name}.*not whole"):
                load_module(network, folder, "policy")
            path.write_bytes(whole)
    for junk in (b"\xff" * 64,):  # right in size, and no safetensors file
        whole = files[0].read_bytes()
        files[0].write_bytes(junk + whole[len(junk) :])
        with pytest.raises(CheckpointError, match="damaged"):
            load_module(network, folder, "policy")
        files[0].write_bytes(whole)


def test_what_one_process_cannot_write_or_read_is_one_sentence_on_all(
    told, ranks_folder
):
    for name in ("one", "two"):
        folder = ranks_folder / name / "failures"
        written = told[name]["failures"]["written"]
        assert written.startswith(f"{folder / 'a'}: could not be written (")
        assert "File too large" in written and "make room" in written
        assert len(written) - len(str(folder)) < 250 and "\n" not in written
        assert told[name]["failures"]["kept"] == [1, ["a"]]
    read = told["two"]["failures"]["read"]
    assert "cannot be read (Input/output error). Delete" in read and "\n" not in read


def test_a_weight_that_is_no_number_stops_all_processes(told):
    assert told["one"]["passes"]["not finite"] and told["two"]["passes"]["not finite"]


def test_only_the_clock_of_several_processes_runs(told):
    assert not any(key.startswith(TIMES[:3]) for key in told["one"]["whole"]["sft"])
    phases = {"rollout", "logprobs", "reference", "values", "reward", "update"}
    for line in told["two"]["whole"]["ppo"]["metrics"]:
        each = [line[f"seconds/{phase}"] for phase in phases]
        assert 0 < sum(each) < line["seconds"]
        assert line["tokens_per_second"] > 0 and line["sampler_gap"] < 1e-5


@pytest.mark.parametrize("world", ["sft", "ppo"])
def test_a_run_of_adapters_goes_on_bit_for_bit(tmp_path, world):
    run, how = (
        worlds.WORLDS[world],
        {"placed": MachineConfig(lora_rank=2, decoder=True)},
    )
    whole = run(tmp_path / "whole", **how)
    with pytest.raises(worlds.Stopped):
        run(tmp_path / "cut", stop=3, **how)
    again = run(tmp_path / "cut", **how)
    for name, module in whole.items():
        other = again[name].state_dict()
        assert all(torch.equal(x, other[k]) for k, x in module.state_dict().items())
    [kept] = (tmp_path / "whole").glob("step-*/tensors.safetensors")
    kept = load_file(kept).keys()
    policy = "policy" if world == "ppo" else "model"
    assert any(f"{policy}/blocks.0.lora_qkv.a" == key for key in kept)
    assert not any(key.startswith(f"{policy}/embedding") for key in kept)  # frozen


# --- without torchrun ----------------------------------------------------------------


def test_one_process_shares_with_nobody():
    x = torch.randn(5, 2)
    assert ranks()[:2] == (0, 1)
    assert share(x) is x and gather_rows(x) is x and summed(x) is x and summed(2) == 2
    asked = []

    def compute(rows):
        asked.append(rows.tolist())
        return x[rows]

    assert torch.equal(row_by_row(compute, 5, 2), x)
    assert asked == [[0, 1], [2, 3], [4]]
    assert torch.equal(row_by_row(compute, 5), x) and asked[3:] == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_shares_are_the_batch_cut_in_order(monkeypatch, world):
    parts = []
    for rank in range(world):
        mine = Ranks(rank, world, torch.device("cpu"))
        monkeypatch.setattr(parallel, "ranks", lambda mine=mine: mine)
        parts += [share(torch.arange(6))]
    assert torch.equal(torch.cat(parts), torch.arange(6))
    assert {len(part) for part in parts} == {6 // world}


def test_rows_that_cannot_be_shared_are_refused_with_their_number(monkeypatch):
    mine = Ranks(0, 4, torch.device("cpu"))
    monkeypatch.setattr(parallel, "ranks", lambda: mine)
    with pytest.raises(ValueError, match="6 rows .* 4 processes.*multiples of 4"):
        share(torch.arange(6))

"""A run that takes its pretraining from another one, which stays as it is."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minipalm.config import get_preset
from minipalm.course import ROOT
from minipalm.course.adopt import adopt
from minipalm.course.inputs import ADOPTED, all_inputs
from minipalm.data.lexicon import VOCABULARY
from minipalm.data.tokenizer import BytePairTokenizer, WordTokenizer
from minipalm.model.palm import PaLM
from minipalm.train.networks import load_policy, load_trunk, tokenizer_of
from minipalm.train.stage import StageError, finish_stage, stage_summary

SMOKE = get_preset("smoke")
WORDS = WordTokenizer(VOCABULARY)


def pretrained(out, seed=0, tokenizer=WORDS, scale="toy", dtype=None, **shape):
    """A run whose 06_palm is complete, with networks of chance."""
    generator = torch.Generator().manual_seed(seed)
    size = {"vocab_size": tokenizer.vocab_size}
    networks = {
        "policy": PaLM(replace(SMOKE.policy, **size, **shape), generator),
        "trunk": PaLM(replace(SMOKE.reward_trunk, **size), generator),
    }
    networks = {name: network.to(dtype) for name, network in networks.items()}
    tokenizer.save(out / "06_palm" / "tokenizer.json")
    finish_stage(out, "06_palm", networks, tokenizer, scale=scale, seed=5, loss=2.0)
    return out


def no_link(*_):
    raise OSError("another disk")


def contents(folder):
    return {
        path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def theirs(tmp_path):
    return pretrained(tmp_path / "theirs")


# --- what is taken --------------------------------------------------------------------


def test_networks_and_tokenizer_are_the_other_s_and_lie_on_the_disk_once(
    theirs, tmp_path, capsys
):
    before, mine = contents(theirs), tmp_path / "mine"
    adopt(theirs, mine, "smoke", 1)
    assert f"06_palm: taken from {theirs}/06_palm, scale toy" in capsys.readouterr().out
    tokenizer = tokenizer_of(mine)
    assert tokenizer.fingerprint == WORDS.fingerprint
    for load in (load_policy, load_trunk):
        one, other = (load(o, "06_palm", SMOKE, tokenizer) for o in (theirs, mine))
        for name, weight in one.state_dict().items():
            assert torch.equal(weight, other.state_dict()[name])
    weights = "06_palm/result/tensors.safetensors"
    assert (mine / weights).samefile(theirs / weights)
    done = stage_summary(mine, "06_palm")
    assert (done["scale"], done["seed"], done["loss"]) == ("smoke", 1, 2.0)
    assert done["adopted"]["run"] == str(theirs) and done["adopted"]["scale"] == "toy"
    assert contents(theirs) == before
    shutil.rmtree(mine)
    assert contents(theirs) == before


def test_without_links_the_files_are_copied(theirs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "link", no_link)
    adopt(theirs, tmp_path / "mine", "smoke", 0)
    assert "06_palm: copying" in capsys.readouterr().out
    weights = "06_palm/result/tensors.safetensors"
    assert not (tmp_path / "mine" / weights).samefile(theirs / weights)
    load_policy(tmp_path / "mine", "06_palm", SMOKE, WORDS)


def test_whoever_is_stopped_midway_leaves_nothing(theirs, tmp_path, monkeypatch):
    def full(*_):
        raise OSError("No space left on device")

    mine = tmp_path / "mine"
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", full)
        patch.setattr(shutil, "copyfile", full)
        with pytest.raises(ValueError, match="could not be taken over .No space left"):
            adopt(theirs, mine, "smoke", 0)
    assert contents(mine) == {}
    adopt(theirs, mine, "smoke", 0)


def test_what_a_power_cut_could_take_is_written_before_the_name_that_counts(
    theirs, tmp_path, monkeypatch
):
    mine, safe = tmp_path / "mine", set()
    fsync, rename = os.fsync, Path.rename

    def on_the_disk(file):
        safe.add(os.fstat(file).st_ino)
        fsync(file)

    def look(path, to):
        files = [each for each in path.rglob("*") if each.is_file()]
        assert len(files) == 5 and {each.stat().st_ino for each in files} <= safe
        return rename(path, to)

    monkeypatch.setattr(os, "link", no_link)
    monkeypatch.setattr(os, "fsync", on_the_disk)
    monkeypatch.setattr(Path, "rename", look)
    adopt(theirs, mine, "smoke", 0)
    assert (mine / "06_palm" / "done.json").is_file()


def test_given_again_it_goes_on_also_if_the_other_run_is_gone(theirs, tmp_path):
    mine, before = tmp_path / "mine", contents(theirs)
    adopt(theirs, mine, "smoke", 0)
    there = contents(mine)
    adopt(theirs, mine, "smoke", 0)
    shutil.copytree(theirs, tmp_path / "copy")
    adopt(tmp_path / "copy", mine, "smoke", 0)
    shutil.rmtree(theirs)
    adopt(theirs, mine, "smoke", 0)
    assert contents(mine) == there and contents(tmp_path / "copy") == before
    adopt(mine, tmp_path / "next", "smoke", 0)  # from hand to hand


# --- what is lost ---------------------------------------------------------------------


def inputs(out, source=None):
    asked = {"out": out, "data": None, "preferences": None, "until": "06_palm"}
    notebooks = ROOT / "solutions"
    return all_inputs(Namespace(**asked, notebooks=notebooks, pretrained=source))


@pytest.mark.parametrize("lost", ["", "done.json"])
def test_what_was_taken_and_is_lost_is_not_trained_here_unasked(theirs, tmp_path, lost):
    mine = tmp_path / "mine"
    adopt(theirs, mine, "smoke", 0)
    before = contents(mine)
    assert inputs(mine) == {"06_palm": {}}
    path = mine / "06_palm" / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ValueError, match=f"its pretraining came from {theirs}:") as no:
        inputs(mine)
    assert "--pretrained" in str(no.value) and str(mine / ADOPTED) in str(no.value)
    assert inputs(mine, theirs) == {"06_palm": {}}
    adopt(theirs, mine, "smoke", 0)
    assert contents(mine) == before
    shutil.rmtree(mine / "06_palm")
    (mine / ADOPTED).unlink()
    assert "text" in inputs(mine)["06_palm"]


def test_a_training_of_one_s_own_goes_on_whatever_an_old_note_says(theirs, tmp_path):
    """As where it came back, since a command that took another one was refused."""
    mine = tmp_path / "mine"
    adopt(theirs, mine, "smoke", 0)
    (mine / "06_palm" / "done.json").unlink()
    (mine / "06_palm" / "stage.json").write_text('{"scale": "smoke", "seed": 0}')
    assert "text" in inputs(mine)["06_palm"]


def test_a_run_that_took_it_before_there_was_a_note_gets_one(theirs, tmp_path):
    mine = tmp_path / "mine"
    adopt(theirs, mine, "smoke", 0)
    before = contents(mine)
    (mine / ADOPTED).unlink()
    adopt(theirs, mine, "smoke", 0)
    assert contents(mine) == before


# --- what is worth a word -------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "dtype", "said"),
    [
        ("toy", None, []),
        ("smoke:3", None, ["06_palm: it was trained for 3 steps only"]),
        ("toy", torch.bfloat16, ["06_palm: its weights are rounded to bfloat16"]),
    ],
)
def test_a_lesser_pretraining_is_taken_and_named(tmp_path, capsys, scale, dtype, said):
    theirs = pretrained(tmp_path / "theirs", scale=scale, dtype=dtype)
    for source, mine in ((theirs, "mine"), (tmp_path / "mine", "next")):
        adopt(source, tmp_path / mine, "smoke", 0)  # also from hand to hand
        _, *told = capsys.readouterr().out.splitlines()
        assert len(told) == len(said)
        assert all(map(str.startswith, told, said))


# --- what is refused ------------------------------------------------------------------


def test_another_pretraining_than_the_one_taken_is_refused(theirs, tmp_path):
    mine = tmp_path / "mine"
    adopt(theirs, mine, "smoke", 0)
    before = contents(mine)
    other = pretrained(tmp_path / "other", seed=1)
    for source in (other, pretrained(theirs, seed=2)):
        with pytest.raises(ValueError, match=f"from {theirs}, and .* is another one"):
            adopt(source, mine, "smoke", 0)
    assert contents(mine) == before


@pytest.mark.parametrize("own", ["stage.json", "done.json", "policy/config.json"])
def test_a_pretraining_of_one_s_own_is_not_replaced(theirs, tmp_path, own):
    path = tmp_path / "mine" / "06_palm" / own
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    with pytest.raises(ValueError, match="06_palm is a pretraining of this run's own"):
        adopt(theirs, tmp_path / "mine", "smoke", 0)
    assert path.exists()


def test_what_data_checks_have_left_is_no_pretraining(theirs, tmp_path):
    (tmp_path / "mine" / "06_palm" / "tokenizer").mkdir(parents=True)
    adopt(theirs, tmp_path / "mine", "smoke", 0)
    assert not (tmp_path / "mine" / "06_palm" / "tokenizer").exists()


def test_a_run_that_has_not_come_so_far_is_refused(theirs, tmp_path):
    (theirs / "06_palm" / "done.json").unlink()
    for source in (theirs, tmp_path / "nowhere"):
        with pytest.raises(StageError, match="06_palm: expected the result of 06_palm"):
            adopt(source, tmp_path / "mine", "smoke", 0)
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize("with_config", [True, False])
def test_what_does_not_fit_is_named(tmp_path, with_config):
    theirs = pretrained(tmp_path / "theirs", dim=64)
    message = r"policy/blocks.0.norm.weight has shape \(64,\), and must have \(48,\)"
    if with_config:
        (theirs / "06_palm" / "policy").mkdir()
        told = {"model": {"dim": 64, "depth": 2, "embed_std": 7}}
        (theirs / "06_palm/policy/config.json").write_text(json.dumps(told))
        message = "does not fit smoke: policy.dim is 64, and must be 48$"
    with pytest.raises(ValueError, match=message):
        adopt(theirs, tmp_path / "mine", "smoke", 0)
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (BytePairTokenizer([]), "'bpe' with 259 ids, .* 'word' with at most 144"),
        (WordTokenizer(map(str, range(200))), "'word' with 203 ids, and here it must"),
    ],
)
def test_a_vocabulary_that_does_not_fit_is_named(tmp_path, tokenizer, message):
    theirs = pretrained(tmp_path / "theirs", tokenizer=tokenizer)
    with pytest.raises(ValueError, match=message):
        adopt(theirs, tmp_path / "mine", "smoke", 0)


# --- the real thing -------------------------------------------------------------------

# 06 in float32, as `full` trains it; 07 with adapters on bfloat16, as `full-lora` does.
DRIVER = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
from bench.stages import run_cells
from minipalm import config
from minipalm.course.adopt import adopt

torch.set_num_threads(1)
theirs, mine = Path(sys.argv[1]), Path(sys.argv[2])
machine = config.MachineConfig(
    compute="bfloat16", weights="bfloat16", lora_rank=4, decoder=True
)
config.PRESETS["lora"] = replace(config.SMOKE, machine=machine)
run_cells("06_palm", "smoke", theirs)
adopt(theirs, mine, "lora", 0)
run_cells("07_sft", "lora", mine)
"""


def test_adapters_in_bfloat16_stand_on_a_float32_pretraining(tmp_path):
    theirs, mine = tmp_path / "theirs", tmp_path / "mine"
    command = [sys.executable, "-c", DRIVER, theirs, mine]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tokenizer = tokenizer_of(mine)
    start = load_policy(theirs, "06_palm", SMOKE, tokenizer).state_dict()
    end = load_policy(mine, "07_sft", SMOKE, tokenizer).state_dict()
    adapted = 0
    for name, weight in start.items():
        assert (weight.dtype, end[name].dtype) == (torch.float32, torch.bfloat16)
        adapted += not torch.equal(weight.bfloat16(), end[name])
    assert adapted == 2 * SMOKE.policy.depth  # q, k, v and the way out of each block


def test_the_command_goes_on_from_another_run_s_pretraining(tmp_path):
    """Of two ranks, whose weights lie in parts; for one rank, with another seed."""

    def full(name, *options):
        command = ["-m", "minipalm.course.full", "--scale", "smoke"]
        command += ["--out", tmp_path / name, *options]
        done = subprocess.run(
            [sys.executable, *map(str, command)],
            cwd=ROOT, capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    code, _, err = full("theirs", "--cpus", 2, "--until", "06_palm")
    assert code == 0, err
    theirs = tmp_path / "theirs"
    assert list(theirs.glob("06_palm/result/shard-*.safetensors"))
    before = contents(theirs)
    data = tmp_path / "data"  # without a text: nothing is pretrained
    shutil.copytree(ROOT / "data", data, ignore=shutil.ignore_patterns("text*", "re*"))
    mine = "mine", "--seed", 1, "--cpus", 1, "--until", "07_sft", "--data", data
    code, out, err = full(*mine, "--pretrained", theirs)
    assert code == 0, err
    assert f"06_palm: taken from {theirs}/06_palm" in out and "06_palm: complete" in out
    for options in ((), ("--pretrained", theirs)):
        code, out, err = full(*mine, *options)
        assert code == 0, err
        assert "taken" not in out and out.count("complete") == 2
    assert contents(theirs) == before

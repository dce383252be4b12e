"""Stages that are made again are removed when nothing can be refused any more."""

import json
import shutil

import pytest

from minipalm.course import ROOT, full, renew
from minipalm.course.renew import put_back, set_aside

STAGES = ("06_palm", "07_sft")


@pytest.fixture
def out(tmp_path):
    for stage in (*STAGES, "08_reward_model"):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "done.json").write_text(stage)
    return tmp_path


def names(out):
    return sorted(path.name for path in out.iterdir())


def whole(out):
    return {path.parent.name: path.read_text() for path in out.glob("[!.]*/done.json")}


def test_they_are_back_unless_they_may_go(out):
    before = whole(out)
    with set_aside(out, STAGES):
        assert "06_palm" not in names(out)
        (out / "06_palm").mkdir()  # what is looked at leaves a tokenizer there
    assert whole(out) == before and len(names(out)) == 3
    with pytest.raises(ValueError), set_aside(out, STAGES):
        raise ValueError
    assert whole(out) == before and len(names(out)) == 3
    with set_aside(out, [*STAGES, "11_ppo"]) as remove:
        (out / "06_palm").mkdir()
        remove()
    assert names(out) == ["06_palm", "08_reward_model"] and len(whole(out)) == 1


def test_a_command_that_is_killed_is_undone_or_ended_by_the_next(out, monkeypatch):
    before = whole(out)
    with monkeypatch.context() as killed:
        killed.setattr(renew, "put_back", lambda out: None)
        with set_aside(out, STAGES):
            (out / "07_sft").mkdir()
    assert len(whole(out)) < 3 < len(names(out))
    put_back(out)
    assert whole(out) == before and len(names(out)) == 3

    def stopped(path, **how):
        raise SystemExit

    with monkeypatch.context() as killed:
        killed.setattr(renew, "put_back", lambda out: None)
        killed.setattr(shutil, "rmtree", stopped)
        with pytest.raises(SystemExit), set_aside(out, STAGES) as remove:
            remove()
    put_back(out)
    assert names(out) == ["08_reward_model"]


def test_renewing_removes_nothing_where_the_new_files_are_refused(tmp_path, capsys):
    """Neither for a wrong record, nor for a pretraining that is not there."""
    out, data = tmp_path / "out", tmp_path / "data"
    shutil.copytree(ROOT / "data", data, ignore=shutil.ignore_patterns("results"))
    record = {"scale": "smoke", "seed": 0, "run": "x", "inputs": {"text": "old"}}
    for stage in STAGES:
        (out / stage).mkdir(parents=True)
        (out / stage / "stage.json").write_text(json.dumps(record))
        (out / stage / "done.json").write_text('{"scale": "smoke", "seed": 0}')
    before = whole(out)
    fixed = ["--scale", "smoke", "--out", str(out), "--data", str(data), "--renew"]
    assert full.main([*fixed[:-1]]) == 2
    assert "--renew" in capsys.readouterr().err
    assert full.main([*fixed, "--pretrained", str(tmp_path / "none")]) == 2
    assert "06_palm" in capsys.readouterr().err and whole(out) == before
    with (data / "prompts.jsonl").open("a") as file:
        file.write('{"prompt": "tell a happy tale about the submarine :"}\n')
    assert full.main([*fixed, "--until", "08_reward_model"]) == 2
    assert whole(out) == before and not list(out.glob(".*.aside"))

"""What a lesson of the pipeline takes from earlier runs, and what it never empties."""

import json

import pytest

from minipalm.course.classroom import LENDER, borrow, start_afresh


@pytest.fixture(autouse=True)
def clone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(folder, by_run=False, **more):
    """A complete stage; by_run: as `./course run` leaves it."""
    (folder / "result").mkdir(parents=True)
    (folder / "result" / "weights").write_text("trained")
    (folder / "done.json").write_text(json.dumps({"scale": "toy"} | more))
    (folder / f"{folder.name}.ipynb").write_text("{}")
    if by_run:
        (folder / "stage.json").write_text("{}")
    return folder


def names(folder):
    return sorted(one.name for one in folder.iterdir())


def test_a_learners_stage_begins_anew_but_a_notebook_being_run_stays(clone):
    stage = make(clone / "runs" / "mine" / "07_sft")
    start_afresh("runs/mine", "07_sft", "toy")
    assert names(stage) == ["07_sft.ipynb"]


@pytest.mark.parametrize("out", ["runs/mine", "runs/toy"])
def test_what_course_run_has_made_is_never_emptied(clone, capsys, out):
    stage = make(clone / out / "07_sft", by_run=True)
    before = names(stage)
    start_afresh(out, "07_sft", "toy")
    assert names(stage) == before
    said = capsys.readouterr().out
    assert ("change `out`" in said) == (out == "runs/mine")


def test_a_missing_stage_is_copied_and_the_copy_may_be_trained_anew(clone, capsys):
    make(clone / LENDER / "06_palm", by_run=True)
    start_afresh("runs/mine", "07_sft", "toy")
    copy = clone / "runs" / "mine" / "06_palm"
    assert (copy / "result" / "weights").read_text() == "trained"
    assert "06_palm: copied from" in capsys.readouterr().out
    start_afresh("runs/mine", "06_palm", "toy")
    assert not (copy / "done.json").exists()
    assert (clone / LENDER / "06_palm" / "done.json").exists()


def test_nothing_is_borrowed_of_another_scale_or_over_ones_own(clone, capsys):
    make(clone / LENDER / "06_palm", by_run=True)
    borrow("runs/mine", ("06_palm",), "smoke")
    assert not (clone / "runs" / "mine").exists()
    mine = make(clone / "runs" / "mine" / "06_palm", scale="toy")
    (mine / "result" / "weights").write_text("mine")
    borrow("runs/mine", ("06_palm",), "toy")
    assert (mine / "result" / "weights").read_text() == "mine"
    assert "06_palm: from runs/mine" in capsys.readouterr().out

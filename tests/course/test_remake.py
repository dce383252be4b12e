"""Each shipped result has a command that makes it."""

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from minipalm.course import ROOT, remake
from minipalm.course.remake import FOLDER, MAKERS


def test_every_file_that_has_a_maker_is_shipped():
    assert all((FOLDER / maker.file).is_file() for maker in MAKERS.values())


@pytest.mark.parametrize("name", MAKERS)
def test_a_maker_writes_the_file_that_it_is_listed_with(name):
    module = importlib.import_module(MAKERS[name].module)
    assert module.RESULTS == FOLDER / MAKERS[name].file
    assert callable(module.main)
    json.loads(module.RESULTS.read_text("utf-8"))


@pytest.fixture
def ran(monkeypatch, tmp_path):
    """The modules that were asked for; nothing is run, and nothing of ours removed."""
    commands = []

    def run(command, cwd):
        assert cwd == ROOT
        commands.append(command[-1])
        return SimpleNamespace(returncode=3 if "methods" in command[-1] else 0)

    monkeypatch.setattr(remake.subprocess, "run", run)
    monkeypatch.setattr(remake, "FOLDER", tmp_path)
    return commands


def test_without_a_name_it_lists_what_there_is(ran, capsys):
    assert remake.main([]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in MAKERS) and not ran


def test_it_makes_what_is_named_in_order(ran, capsys):
    assert remake.main(["bugs", "overoptimisation"]) == 0
    assert ran == [MAKERS[name].module for name in ("bugs", "overoptimisation")]


def test_a_maker_that_fails_is_heard_of(ran, capsys):
    assert remake.main(["methods", "bugs"]) == 3
    assert len(ran) == 2


def test_again_removes_what_was_there(ran, tmp_path, capsys):
    files = [Path(tmp_path, MAKERS[name].file) for name in ("bugs", "methods")]
    for path in files:
        path.write_text("{}")
    remake.main(["bugs", "--again"])
    assert [path.exists() for path in files] == [False, True]


def test_an_unknown_name_is_answered_with_those_that_there_are(ran, capsys):
    assert remake.main(["bug"]) == 2
    said = capsys.readouterr().err
    assert "'bug'" in said and "overoptimisation" in said and not ran

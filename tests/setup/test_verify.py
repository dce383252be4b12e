"""./course test: every step runs, and one failure is enough to fail."""

import subprocess

import pytest

from minipalm.course import verify


@pytest.mark.parametrize("broken", [None, "ruff", "mypy", "codespell_lib", "pytest"])
def test_all_steps_run_and_any_failure_counts(monkeypatch, capsys, broken):
    ran = []

    def run(command, cwd):
        ran.append(command[2])
        return subprocess.CompletedProcess(command, int(command[2] == broken))

    monkeypatch.setattr(verify.subprocess, "run", run)
    assert verify.main([]) == int(broken is not None)
    assert ran == ["ruff", "ruff", "mypy", "codespell_lib", "pytest"]
    text = capsys.readouterr().out
    assert (
        text.count("failed,")
        == {None: 0, "ruff": 2, "mypy": 1, "codespell_lib": 1, "pytest": 0}[broken]
    )

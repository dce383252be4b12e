"""./course, the program that needs nothing but Python: what it decides, not pip."""

import importlib.util
import os
import subprocess
import sys
from importlib.machinery import SourceFileLoader

import pytest

from minipalm.course import ROOT


@pytest.fixture
def course(tmp_path, monkeypatch):
    """The program as a module, in a clone of its own with a space in its path."""
    loader = SourceFileLoader("course_program", str(ROOT / "course"))
    module = importlib.util.module_from_spec(
        importlib.util.spec_from_loader("course_program", loader)
    )
    loader.exec_module(module)
    clone = tmp_path / "my clone"
    clone.mkdir()
    for name in ("pyproject.toml", "constraints.txt"):
        (clone / name).write_text((ROOT / name).read_text())
    monkeypatch.setattr(module, "ROOT", clone)
    monkeypatch.setattr(module, "VENV", clone / ".venv")
    monkeypatch.setattr(module, "PYTHON", clone / ".venv" / "python")
    monkeypatch.setattr(module, "STAMP", clone / ".venv" / "installed")
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    return module


def fake_install(course, monkeypatch, fails_at=None):
    """Let install() make files instead of calling pip; returns the commands it ran."""
    commands = []

    def run(command, cwd, env, stdout, stderr):
        commands.append(command)
        stdout.write(f"chatter of {command[0]}\n")
        course.VENV.mkdir(exist_ok=True)
        course.PYTHON.write_text("")
        failed = fails_at is not None and fails_at in command
        return subprocess.CompletedProcess(command, int(failed))

    monkeypatch.setattr(course.subprocess, "run", run)
    return commands


def test_help_lists_every_verb_and_an_unknown_one_gets_the_list(course, capsys):
    assert course.main([]) == course.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(
        verb in text for verb in "run lab test lessons seeds bench clean".split()
    )
    assert course.main(["rnu"]) == 2
    error = capsys.readouterr().err
    assert "no verb 'rnu'" in error and "seeds" in error


def test_it_starts_without_any_package_and_from_any_folder(tmp_path):
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(ROOT / "course"), "help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "./course VERB" in done.stdout


def test_every_verb_names_a_program_that_is_there(course):
    for verb, (command, _) in course.VERBS.items():
        if command and verb != "bench":
            assert importlib.util.find_spec(command[1]), verb


def test_an_install_happens_once(course, monkeypatch, capsys):
    commands = fake_install(course, monkeypatch)
    assert not course.installed()
    course.install()
    assert course.installed()
    assert [c for c in commands if "-e" in c][0][-2:] == [
        "-e",
        f".[{course.EXTRAS}]",
    ]
    assert "chatter" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "old", "new", "still"),
    [
        ("constraints.txt", "tqdm==", "tqdm==9.", False),
        ("pyproject.toml", "einops>=", "einops>=9.", False),
        ("pyproject.toml", "line-length = 88", "line-length = 89", True),
    ],
)
def test_it_is_renewed_when_what_it_installs_changes(
    course, monkeypatch, file, old, new, still
):
    fake_install(course, monkeypatch)
    course.install()
    path = course.ROOT / file
    path.write_text(path.read_text().replace(old, new, 1))
    assert course.installed() == still


def test_it_is_renewed_when_the_clone_or_python_has_moved(course, monkeypatch):
    fake_install(course, monkeypatch)
    course.install()
    with monkeypatch.context() as other:
        other.setattr(course.sys, "version", "3.99")
        assert not course.installed()
    moved = course.ROOT.rename(course.ROOT.with_name("moved"))
    for name in ("VENV", "PYTHON", "STAMP"):
        place = moved / getattr(course, name).relative_to(course.ROOT)
        monkeypatch.setattr(course, name, place)
    monkeypatch.setattr(course, "ROOT", moved)
    assert course.PYTHON.exists() and not course.installed()


def test_a_failed_install_says_why_and_is_never_taken_as_finished(course, monkeypatch):
    fake_install(course, monkeypatch, fails_at="install")
    with pytest.raises(SystemExit) as stop:
        course.install()
    assert "chatter of" in stop.value.code
    assert "run the same command again" in stop.value.code
    assert course.VENV.exists() and not course.installed()


def test_uv_is_used_where_it_is_and_pip_where_uv_fails(course, monkeypatch):
    monkeypatch.setattr(course.shutil, "which", lambda name: "/bin/uv")
    commands = fake_install(course, monkeypatch)
    course.install()
    assert {command[0] for command in commands} == {"/bin/uv"}
    commands = fake_install(course, monkeypatch, fails_at="/bin/uv")
    course.install()
    assert [command[0] == "/bin/uv" for command in commands].count(True) == 1
    assert course.installed()


def test_wheels_for_pip_are_wheels_for_uv(course, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setenv("PIP_FIND_LINKS", "/a /b")
    monkeypatch.delenv("UV_FIND_LINKS", raising=False)
    monkeypatch.setattr(
        course.subprocess,
        "run",
        lambda command, env, **_: (
            seen.append(env) or subprocess.CompletedProcess(command, 0)
        ),
    )
    assert course.attempt([["x"]], tmp_path / "log")
    assert seen[0]["UV_FIND_LINKS"] == "/a,/b"


def test_nothing_of_the_users_python_leaks_in(course, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("PYTHONHOME", "/elsewhere")
    env = course.environment()
    assert "/elsewhere" not in env["PYTHONPATH"] and "PYTHONHOME" not in env
    assert env["PYTHONNOUSERSITE"] == "1"
    assert env["PATH"].startswith(str(course.PYTHON.parent))


@pytest.mark.parametrize(
    ("verb", "users", "threads"),
    [("test", None, "1"), ("test", "3", "3"), ("run", None, None)],
)
def test_one_thread_unless_the_user_or_the_scale_says_otherwise(
    course, monkeypatch, verb, users, threads
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if users:
        monkeypatch.setenv("OMP_NUM_THREADS", users)
    monkeypatch.setattr(course, "installed", lambda: True)
    seen = []
    monkeypatch.setattr(course.os, "execve", lambda *call: seen.append(call))
    course.main([verb, "-x"])
    _, command, env = seen[0]
    assert command == [str(course.PYTHON), *course.VERBS[verb][0], "-x"]
    assert env.get("OMP_NUM_THREADS") == threads


def test_clean_says_what_it_removes(course, capsys):
    (course.ROOT / "runs" / "toy").mkdir(parents=True)
    course.VENV.mkdir()
    assert course.main(["clean"]) == 0
    assert f"removed {course.ROOT / 'runs'}" in capsys.readouterr().out
    assert course.VENV.exists() and not (course.ROOT / "runs").exists()
    assert course.main(["clean", "--all"]) == 0
    text = capsys.readouterr().out
    assert f"nothing at {course.ROOT / 'runs'}" in text
    assert f"removed {course.VENV}" in text and not course.VENV.exists()
    assert course.main(["clean", "--everything"]) == 2


def test_the_continuous_integration_runs_the_same_command():
    script = ROOT / ".ci" / "run"
    assert 'exec "$python" course test' in script.read_text()
    assert os.access(script, os.X_OK) and os.access(ROOT / "course", os.X_OK)


def test_the_continuous_integration_skips_nothing(course):
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    said = next(n for n, line in enumerate(lines) if line.startswith("export CI=1"))
    assert said < next(n for n, line in enumerate(lines) if "course test" in line)
    assert course.EXTRAS == ("course,ui,eval" if os.environ.get("CI") else "course")


def test_without_a_browser_the_continuous_integration_is_red():
    """The browser tests, where playwright is and Chromium is not."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    env = {**os.environ, "PATH": "/nowhere", "PYTHONPATH": str(ROOT)}
    path = ROOT / "tests" / "ui" / "test_browser.py"
    for ci, status in (("1", 2), ("", 5)):  # an error; nothing collected
        done = subprocess.run(
            [*command, str(path)],
            cwd=ROOT,
            env={**env, "CI": ci},
            capture_output=True,
            text=True,
        )
        assert done.returncode == status, done.stdout

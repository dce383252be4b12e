"""The notebooks run from top to bottom, as nbval sees them, at smoke scale."""

import os
import re
import subprocess
import sys

import nbformat
import pytest

from minipalm.course import ROOT
from minipalm.course.exercise import of_lesson
from minipalm.course.source import source_of
from minipalm.spmd import known_parameters

SOLUTIONS = sorted((ROOT / "solutions").glob("*.ipynb"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def small_copy(notebook, folder, place="copies"):
    """A copy that runs at smoke scale into folder and finds the data from there."""
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook

    values = known_parameters(notebook)
    values |= {"scale": "smoke", "out": str(folder / "runs")}
    if "whole" in values:
        values["whole"] = str(folder / "whole")  # what `./course run` has made
    for name, value in values.items():
        if isinstance(value, str) and (ROOT / value).is_file():
            values[name] = str(ROOT / value)
    copy = folder / place / notebook.name
    copy.parent.mkdir(exist_ok=True)
    book = load_notebook_node(str(notebook))
    book = parameterize_notebook(book, values, language="python")
    nbformat.write(book, copy)
    return copy


def nbval(copies, folder):
    """Run notebooks, in order, as tests. Returns status and report."""
    command = [sys.executable, "-m", "pytest", "-q", f"--rootdir={folder}"]
    # without a timeout of its own nbval waits 2,000 s for a dead kernel
    command += ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout", "240"]
    command += [str(copy) for copy in copies]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=folder, env=env, stdout=subprocess.PIPE, text=True
    )
    return done.returncode, re.sub(r"\x1b\[[\d;]*m", "", done.stdout)  # no colours


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder in which the solutions have run, and what nbval said of them."""
    folder = tmp_path_factory.mktemp("notebooks")
    copies = [small_copy(notebook, folder) for notebook in SOLUTIONS]
    return folder, *nbval(copies, folder)


@pytest.mark.timeout(1800)
def test_every_cell_of_every_solution_runs_and_every_verdict_is_ok(runs):
    _, status, report = runs
    assert status == 0, report[:6000]  # the first failure explains the others


@pytest.mark.timeout(1800)
def test_an_untouched_student_notebook_runs_and_only_its_exercises_fail(runs):
    folder, *_ = runs
    copies = [small_copy(notebook, folder, "students") for notebook in NOTEBOOKS]
    _, report = nbval(copies, folder)
    failed = re.findall(r"^FAILED .*?(\d\d)_\w+\.ipynb::Cell \d+ - (.*)$", report, re.M)
    expected = sorted(
        (one.lesson, f"{one.id} ")
        for notebook in NOTEBOOKS
        for one in of_lesson(notebook.stem)
    )
    found = sorted((lesson, f"{line.split(' ')[0]} ") for lesson, line in failed)
    assert found == expected, report[:6000]
    verdicts = re.findall(r"^(\d+\.\d+) [\w.]+: (\w+)", report, re.M)
    assert {status for _, status in verdicts} == {"todo"}, report[:6000]


@pytest.mark.timeout(600)
def test_in_a_half_solved_notebook_just_the_other_half_fails(runs):
    folder, *_ = runs
    original = next(path for path in NOTEBOOKS if path.stem.startswith("10"))
    copy = small_copy(original, folder, "half")
    book = nbformat.read(copy, 4)
    first, second, *rest = of_lesson("10")
    for cell in book.cells:
        if "exercise" in cell.metadata.get("tags", []):
            if cell.metadata.exercise == first.id:
                cell.source = source_of(first.answer)
            if cell.metadata.exercise == second.id:
                cell.source = f"def {second.name}(*args, **kwargs):\n    return 3"
        if cell.metadata.get("exercise") == second.id and cell.outputs:
            cell.outputs[0].text = "what the learner has seen"  # and saved
    nbformat.write(book, copy)
    _, report = nbval([copy], folder)
    shown = re.findall(r"^(\d+\.\d+ [\w.]+: [a-z ]+)", report, re.M)
    assert first.id not in " ".join(shown), report
    assert f"{second.id} {second.title}: not yet" in shown, report
    assert len(shown) == 1 + len(rest), report
    assert "Traceback" not in report


def test_notebooks_run_in_order_at_smoke_scale_and_a_broken_cell_is_shown(
    write_notebook, tmp_path
):
    path = "import pathlib\nfile = pathlib.Path(out) / 'scale'"
    first = write_notebook("1", path, "file.parent.mkdir()", "file.write_text(scale)")
    second = write_notebook("2", path, "assert file.read_text() == 'smoke'")
    broken = write_notebook("3", "assert False, 'this is why'")
    copies = [small_copy(notebook, tmp_path) for notebook in (first, second, broken)]
    status, report = nbval(copies[:2], tmp_path)
    assert status == 0, report
    status, report = nbval(copies[2:], tmp_path)
    assert status == 1 and "AssertionError: this is why" in report

"""The solutions run from top to bottom, as nbval sees them, at smoke scale."""

import os
import re
import subprocess
import sys

import nbformat
import pytest

from minipalm.course import ROOT
from minipalm.spmd import known_parameters

SOLUTIONS = sorted((ROOT / "solutions").glob("*.ipynb"))


def small_copy(notebook, folder):
    """A copy that runs at smoke scale into folder and finds the data from there."""
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook

    values = known_parameters(notebook)
    values |= {"scale": "smoke", "out": str(folder / "runs")}
    for name, value in values.items():
        if isinstance(value, str) and (ROOT / value).is_file():
            values[name] = str(ROOT / value)
    copy = folder / "copies" / notebook.name
    copy.parent.mkdir(exist_ok=True)
    book = load_notebook_node(str(notebook))
    book = parameterize_notebook(book, values, language="python")
    nbformat.write(book, copy)
    return copy


def nbval(notebooks, folder):
    """Run copies of the notebooks, in order, as tests. Returns status and report."""
    copies = [str(small_copy(notebook, folder)) for notebook in notebooks]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        f"--rootdir={folder}",
        "--nbval-lax",
    ]
    # without a timeout of its own nbval waits 2,000 s for a dead kernel
    command += ["--nbval-current-env", "--nbval-cell-timeout", "120", *copies]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=folder, env=env, stdout=subprocess.PIPE, text=True
    )
    return done.returncode, re.sub(r"\x1b\[[\d;]*m", "", done.stdout)  # no colours


@pytest.mark.timeout(900)
def test_every_cell_of_every_solution_runs(tmp_path):
    if not SOLUTIONS:
        pytest.skip("solutions/ holds no notebook yet")
    status, report = nbval(SOLUTIONS, tmp_path)
    assert status == 0, report[:6000]  # the first failure explains the others


def test_notebooks_run_in_order_at_smoke_scale_and_a_broken_cell_is_shown(
    write_notebook, tmp_path
):
    path = "import pathlib\nfile = pathlib.Path(out) / 'scale'"
    first = write_notebook("1", path, "file.parent.mkdir()", "file.write_text(scale)")
    second = write_notebook("2", path, "assert file.read_text() == 'smoke'")
    broken = write_notebook("3", "assert False, 'this is why'")
    status, report = nbval([first, second], tmp_path)
    assert status == 0, report
    status, report = nbval([broken], tmp_path)
    assert status == 1 and "AssertionError: this is why" in report

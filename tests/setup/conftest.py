"""Tiny notebooks to run, and a Python process to run them in."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest

from minipalm.course import ROOT

PARAMETERS = 'scale = "toy"\nseed = 0\nout = "unset"'


@pytest.fixture
def write_notebook(tmp_path: Path) -> Callable[..., Path]:
    """write_notebook(name, cell, cell, ..., parameters=text) -> its path.

    A cell is its code, or (code, tag).
    """

    def write(name: str, *cells, parameters: str = PARAMETERS) -> Path:
        v4 = nbformat.v4
        book = v4.new_notebook(
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}}
        )
        for cell in [(parameters, "parameters"), *cells]:
            source, tag = (cell, None) if isinstance(cell, str) else cell
            metadata = {"tags": [tag]} if tag else {}
            book.cells.append(v4.new_code_cell(source, metadata=metadata))
        path = tmp_path / f"{name}.ipynb"
        nbformat.write(book, path)
        return path

    return write


def start(*args: object, **env: str) -> subprocess.Popen:
    """Start Python with these arguments, its output in pipes."""
    return subprocess.Popen(
        [sys.executable, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **env},
    )


@pytest.fixture
def python():
    """python(*args, **environment) -> a started process; it ends with the test."""
    started = []

    def begin(*args: object, **env: str) -> subprocess.Popen:
        started.append(start(*args, **env))
        return started[-1]

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()

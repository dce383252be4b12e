"""Run the solutions, and keep in them what their cells print and draw."""

import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from minipalm.course import ROOT
from minipalm.data.files import write_text
from minipalm.spmd import known_parameters

STORED = ("text/plain", "text/html", "text/markdown", "image/png", "image/svg+xml")
LARGEST = 80_000  # characters of one output: 60 kB of a picture, stored as base64


def storable(cell: NotebookNode) -> tuple[list[NotebookNode], list[str]]:
    """A cell's outputs worth committing, and a line for each one too large for that.

    What went to stderr is left out: progress bars and warnings differ at every run.
    """
    keep, large = [], []
    for output in cell.outputs:
        if output.output_type == "stream":
            parts = {} if output.name == "stderr" else {"text": output.text}
        else:
            parts = {k: v for k, v in output.get("data", {}).items() if k in STORED}
            output.data, output.metadata = parts, {}
        size = max((len(part) for part in parts.values()), default=0)
        if size > LARGEST:
            large.append(f"{size // 1000} kB, at most {LARGEST // 1000} are kept")
        elif parts:
            keep.append(output)
    return keep, large


def without_docstrings(source: str) -> str:
    lines = source.splitlines()
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, kinds) and ast.get_docstring(node, clean=False) is not None:
            first = node.body[0]
            for number in range(first.lineno - 1, first.end_lineno or first.lineno):
                lines[number] = ""
    return "\n".join(line for line in lines if line.strip())


def definitions(notebook: NotebookNode) -> str:
    """A hash of the code that a solution takes from the package, but for docstrings."""
    code = [
        without_docstrings(cell.source)
        for cell in notebook.cells
        if cell.cell_type == "code" and "symbols" in cell.metadata
    ]
    return hashlib.sha256("\n\n".join(code).encode()).hexdigest()[:16]


def outdated(notebook: NotebookNode) -> bool:
    """Whether a solution has cells that have changed since it was run.

    A cell's outputs are kept as long as its own code stays the same: so it may show
    some of other definitions, or have lost its own. False where the run has not noted
    its definitions (see `store`).
    """
    noted = notebook.metadata.get("minipalm", {}).get("definitions")
    if noted is None:
        return False
    not_run = any(
        cell.cell_type == "code" and cell.execution_count is None
        for cell in notebook.cells
        if "symbols" not in cell.metadata  # of definitions docstrings may change
    )
    return not_run or noted != definitions(notebook)


def store(executed: Path, solution: Path) -> list[str]:
    """Copy the outputs of an executed notebook into its solution, cell by cell.

    Notes what definitions it has run with (see `outdated`). Returns a line for each
    output that was too large to keep.
    """
    done = nbformat.read(executed, 4)
    ran = {cell.id: cell for cell in done.cells}
    notebook, lines, count = nbformat.read(solution, 4), [], 0
    for cell in notebook.cells:
        if cell.cell_type == "code":
            count += 1
            cell.outputs, large = storable(ran[cell.id])
            cell.execution_count = count  # papermill counted its own cell, too
            lines += [f"{solution.name}, code cell [{count}]: {each}" for each in large]
    notebook.metadata["minipalm"] = {"definitions": definitions(done)}
    text = nbformat.writes(notebook) + "\n"
    solution.write_text(text, "utf-8", newline="\n")
    return lines


def cpu_of_children() -> float:
    """CPU-seconds of the processes that have ended, and of theirs."""
    times = os.times()
    return times.children_user + times.children_system


def note_time(lesson: str, cpu_seconds: float) -> None:
    """Write down how long a lesson computes, and how fast this machine is."""
    from minipalm.course.doctor import seconds_of_work

    path = ROOT / "data" / "results" / "lessons.json"
    noted = json.loads(path.read_text("utf-8")) if path.exists() else {"lessons": {}}
    noted["lessons"][lesson] = round(cpu_seconds, 1)
    noted["lessons"] = dict(sorted(noted["lessons"].items()))
    noted["step_seconds"] = round(seconds_of_work(), 4)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(noted, indent=1) + "\n")


def refresh(solutions: list[Path]) -> int:
    """Execute notebooks in order at toy scale and store what they show.

    Their stages start afresh in runs/lessons; what stages before them need is taken
    from there. Returns 0, or 1 if a cell failed or an output was too large.
    """
    out, status = Path("runs/lessons"), 0
    given = {"scale": "toy", "seed": "0"} | dict.fromkeys(
        ("out", "whole"), out.as_posix()
    )
    for solution in solutions:
        print(f"running {solution.name}", flush=True)
        stage = out / solution.stem
        shutil.rmtree(ROOT / stage, ignore_errors=True)
        command = [sys.executable, "-m", "minipalm.spmd", "--classroom"]
        for name in known_parameters(solution):
            if name in given:
                command += ["-p", name, given[name]]
        command += [str(solution), str(stage / solution.name)]
        before = cpu_of_children()
        if subprocess.run(command, cwd=ROOT).returncode:
            return 1
        note_time(solution.stem, cpu_of_children() - before)
        for line in store(ROOT / stage / solution.name, solution):
            print(f"not kept: {line}", file=sys.stderr)
            status = 1
    return status

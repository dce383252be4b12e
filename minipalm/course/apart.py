"""A submission's verdicts, from a process of its own (see `sandbox`).

That process is this file run as a program. It judges one exercise after the other and
prints what it has to say under a token that the learner's code has not been told:

    {"open": [...]}           it has begun; what stays open on this machine
    {"exercise": "10.1", ...} a verdict
    {"fault": "..."}          the lesson's own code does not run
"""

import ast
import dataclasses
import json
import os
import secrets
import sys
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat

from minipalm.course import ROOT
from minipalm.course.exercise import Exercise, exercises, of_lesson
from minipalm.course.guard import TimeUp, guarded, restore_libraries, within
from minipalm.course.judge import Verdict, judge, words
from minipalm.course.submission import Submission
from minipalm.sandbox import Finished, Limits, close_doors, run_isolated

LIMITS = Limits(seconds=150, cpu_seconds=120, memory_mb=3072)
TO_DEFINE = 10.0  # seconds that an exercise's cell may take to be run, unjudged


class JudgingError(RuntimeError):
    """Nothing can be judged, through no fault of the learner's, and why."""


@dataclass
class Judged:
    """By the ids of exercises; and what `close_doors` has left open."""

    verdicts: dict[str, Verdict] = field(default_factory=dict)
    doors: tuple[str, ...] = ()


# --- from outside -------------------------------------------------------------------


def judge_submission(submission: Submission, limits: Limits = LIMITS) -> Judged:
    """A verdict on each exercise of the lesson, in order. Never raises for its code.

    Where an exercise ends its process, the others are judged in a new one. Raises
    JudgingError if it is not the learner's code that fails.
    """
    result = {
        one: Verdict("not yet", "its cell is missing") for one in submission.missing
    }
    doors: tuple[str, ...] = ()
    left = dict(submission.cells)
    while left:
        judged, reason = judge_apart(submission.lesson, left, limits)
        result |= judged.verdicts
        doors = judged.doors
        left = {one: cell for one, cell in left.items() if one not in result}
        if left:  # the first of these has ended it
            guilty = next(iter(left))
            result[guilty] = Verdict("not yet", reason)
            del left[guilty]
    order = [one.id for one in of_lesson(submission.lesson)]
    placed = {one: place(result[one], one in submission.misplaced) for one in order}
    return Judged(placed, doors)


def place(verdict: Verdict, misplaced: bool) -> Verdict:
    """With a word on where code belongs, if that is what is wrong."""
    if misplaced and verdict.status != "ok":
        said = "its answer stands in the cell of the check: write it into the one above"
        return Verdict("not yet", said)
    if "raises NameError" in verdict.message:
        said = "; what it uses has to be defined in the exercise's own cell"
        return dataclasses.replace(verdict, message=verdict.message + said)
    return verdict


def judge_apart(
    lesson: str, cells: dict[str, str], limits: Limits
) -> tuple[Judged, str]:
    """Verdicts from one process, and why it ended if some are missing."""
    token = secrets.token_hex(16)
    task = {"lesson": lesson, "cells": cells, "limits": vars(limits), "token": token}
    done = run_task(json.dumps(task), limits)
    judged, begun = Judged(), False
    for line in done.stdout.splitlines():
        if not line.startswith(token):
            continue
        one = json.loads(line.removeprefix(token))
        if "fault" in one:
            raise JudgingError(f"the code of lesson {lesson} fails: {one['fault']}")
        if "open" in one:
            judged.doors, begun = tuple(one["open"]), True
        else:
            exercise = one.pop("exercise")
            judged.verdicts[exercise] = Verdict(**one)
    if not begun:
        last = (done.stderr.strip().splitlines() or [done.reason])[-1]
        raise JudgingError(f"judging could not begin: {last}")
    return judged, done.reason or "it ended its process"


def run_task(task: str, limits: Limits) -> Finished:
    with tempfile.TemporaryDirectory() as folder:
        env = {
            "PATH": os.environ.get("PATH", ""),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "HOME": folder,
            "TORCHINDUCTOR_CACHE_DIR": folder,
            "MPLCONFIGDIR": folder,
        }
        if "SYSTEMROOT" in os.environ:  # Windows starts nothing without it
            env["SYSTEMROOT"] = os.environ["SYSTEMROOT"]
        command = [sys.executable, "-m", "minipalm.course.apart"]
        return run_isolated(command, task, limits, Path(folder), env)


# --- in that process ----------------------------------------------------------------


class ShellError(RuntimeError):
    """A program was to be run, or something installed."""


class Shell:
    """In the place of IPython's: magics do nothing, programs are not run."""

    def run_line_magic(self, name: str, line: str, *_: Any) -> None:
        if name in ("pip", "conda", "mamba", "uv", "sx", "system"):
            self.system(f"{name} {line}")

    def system(self, command: str) -> None:
        raise ShellError(
            f"`{command[:60]}` is not run: an exercise's cell holds Python, and all "
            "that the lessons need is installed; leave that line out"
        )

    getoutput = system


class Snapshot:
    """What judges, as it was before any learner's code ran."""

    def __init__(self) -> None:
        self.modules: list[tuple[ModuleType, dict[str, Any]]] = [
            (module, dict(vars(module)))
            for name, module in [*sys.modules.items()]
            if name == "__main__" or name.startswith("minipalm.course")
        ]

    def restore(self) -> str:
        """Undo replacements; gives the name of the first one, or ""."""
        replaced = []
        for module, before in self.modules:
            for key, value in before.items():
                if not key.startswith("__") and vars(module).get(key) is not value:
                    setattr(module, key, value)
                    replaced.append(f"{module.__name__}.{key}")
        return next(iter(replaced), "")


def steps(lesson: str) -> Iterator[tuple[str, str]]:
    """What the lesson gives, in order: ("", source), or (id of an exercise, "")."""
    book = nbformat.read(ROOT / "solutions" / f"{lesson}.ipynb", 4)
    for cell in book.cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type != "code" or "check" in tags:
            continue
        if "exercise" in tags:
            yield cell.metadata["exercise"], ""
            continue
        body = ast.parse(cell.source).body
        if "define" in tags or all(
            isinstance(node, ast.Import | ast.ImportFrom) for node in body
        ):
            yield "", cell.source


def judge_cell(
    exercise: Exercise, source: str, scope: dict[str, Any], before: Snapshot
) -> Verdict:
    """Run a learner's cell in a scope of its own, and judge what it defines."""
    file, error = f"<exercise {exercise.id}>", None
    with guarded():
        try:
            code = compile(source, file, "exec")
            within(TO_DEFINE, lambda: exec(code, scope))
        except BaseException as raised:  # whatever a learner writes
            error = raised
    if forged := before.restore():
        return Verdict("not yet", f"its cell replaces {forged}, which judges it")
    if isinstance(error, TimeUp):
        return Verdict("not yet", "its cell does not come to an end")
    if isinstance(error, ShellError):
        return Verdict("not yet", str(error))
    candidate = scope.get(exercise.name)
    if candidate is None or candidate is exercise.answer:
        if error is not None:
            return Verdict("not yet", told_of_cell(error, file))
        return Verdict("not yet", f"its cell does not define {exercise.name}")
    verdict = judge(exercise, candidate)
    if forged := before.restore():
        return Verdict("not yet", f"it replaces {forged}, which judges it")
    return verdict


def told_of_cell(error: BaseException, file: str) -> str:
    """An error of a cell that ran, or could not, in one line with the line's number."""
    if isinstance(error, SyntaxError) and error.filename == file:
        line, said = error.lineno, error.msg  # else the file's name is in what it says
    else:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == file]
        line, said = (lines[-1] if lines else None), words(error)
    where = f" in line {line} of the cell" if line else ""
    return f"it raises {type(error).__name__}{where}: {said}"


def main() -> int:
    """Read a task from stdin; print a line for each verdict as soon as there is one."""
    task = json.loads(sys.stdin.read())
    token, output = task.pop("token"), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def say(line: dict[str, Any]) -> None:
        os.write(output, f"{token}{json.dumps(line)}\n".encode())

    scope: dict[str, Any] = {"__name__": "__main__", "get_ipython": Shell}
    plan = list(steps(task["lesson"]))
    try:
        for exercise_id, source in plan:
            if not exercise_id and source.startswith(("import", "from")):
                exec(source, scope)  # what they load may not be had behind closed doors
    except Exception as error:
        say({"fault": f"{type(error).__name__}: {words(error)}"})
        return 1
    import torch

    torch.optim.AdamW([torch.zeros(1, requires_grad=True)], fused=True)  # its imports
    say({"open": close_doors(Limits(**task["limits"]))})
    return judge_plan(plan, task["cells"], scope, say)


def judge_plan(
    plan: list[tuple[str, str]], cells: dict[str, str], scope: dict[str, Any], say: Any
) -> int:
    """Go through a lesson; right answers are passed on, the package's for the others.

    Whatever else a learner's cell defines stays in a copy of the scope.
    """
    by_id = {one.id: one for one in exercises().values()}
    before = Snapshot()
    for exercise_id, source in plan:
        if not exercise_id:
            try:
                exec(source, scope)
            except Exception as error:
                say({"fault": f"{type(error).__name__}: {words(error)}"})
                return 1
            continue
        exercise, mine = by_id[exercise_id], dict(scope)
        right = False
        if exercise_id in cells:
            verdict = judge_cell(exercise, cells[exercise_id], mine, before)
            say({"exercise": exercise_id, **vars(verdict)})
            right = verdict.status == "ok"
            restore_libraries()
        own = mine.get(exercise.name)
        scope[exercise.name] = own if right and own is not None else exercise.answer
    return 0


if __name__ == "__main__":
    sys.exit(main())

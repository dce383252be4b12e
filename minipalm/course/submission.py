"""A learner's notebook: its exercise cells, put into a fresh one and judged there.

What the learner has done to any other cell has no effect: imports, definitions and
checks are those of the lesson. The code runs in a process of its own (see `sandbox`),
which judges one exercise after the other and prints its verdicts under a token that the
learner's code has not been told.
"""

import ast
import json
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat

from minipalm.course import ROOT
from minipalm.course.exercise import Exercise, exercises, of_lesson
from minipalm.course.judge import Verdict, judge, told
from minipalm.sandbox import Limits, close_doors, run_isolated

LIMITS = Limits(seconds=150, cpu_seconds=120, memory_mb=3072)
TO_DEFINE = 10.0  # seconds that an exercise's cell may take to be run, unjudged
TOO_LARGE = 20_000_000  # bytes of a notebook: one with outputs has a few hundred kB


class SubmissionError(ValueError):
    """There is nothing to judge, and why."""


@dataclass(frozen=True)
class Submission:
    """What a notebook says.

    Attributes:
        lesson: of the course, such as 10_gae.
        cells: id of an exercise -> the source of its cell.
        missing: ids of the lesson's exercises that the notebook does not hold.
    """

    lesson: str
    cells: dict[str, str]
    missing: list[str] = field(default_factory=list)


# --- read ---------------------------------------------------------------------------


def read_submission(path: Path) -> Submission:
    """The exercise cells of a notebook, told by their metadata or by what they define.

    Raises SubmissionError if it is no notebook or has no exercise of the course.
    """
    found: dict[str, str] = {}
    for cell in code_cells(path):
        metadata = cell.get("metadata", {})
        tags = metadata.get("tags", []) if isinstance(metadata, dict) else []
        if "check" in tags:
            continue
        names = defined_names(str(cell.source))
        known = [exercises()[name] for name in names if name in exercises()]
        tagged = metadata.get("exercise") if "exercise" in tags else None
        if not known and isinstance(tagged, str):  # broken, so that nothing is defined
            if tagged not in found:
                found[tagged] = cell.source
        for one in known:
            if tagged in (one.id, None) or one.id not in found:
                found[one.id] = cell.source
    by_id = {one.id: one for one in exercises().values()}
    lessons = [by_id[one].lesson for one in found if one in by_id]
    if not lessons:
        raise SubmissionError("it holds no exercise of the course")
    number = max(set(lessons), key=lessons.count)
    mine = [one.id for one in of_lesson(number)]
    return Submission(
        lesson_named(number),
        {one: found[one] for one in mine if one in found},
        [one for one in mine if one not in found],
    )


def code_cells(path: Path) -> list[Any]:
    """Raises SubmissionError, with the reason in plain words."""
    try:
        if path.stat().st_size > TOO_LARGE:
            raise SubmissionError(f"it is larger than {TOO_LARGE // 10**6} MB")
        book = nbformat.read(path, as_version=4)
        return [cell for cell in book.cells if cell.cell_type == "code"]
    except OSError as error:
        raise SubmissionError(f"it cannot be read: {error.strerror}") from error
    except SubmissionError:
        raise
    except Exception as error:  # whatever JSON, Unicode and nbformat raise
        raise SubmissionError("it is not a Jupyter notebook") from error


def defined_names(source: str) -> list[str]:
    """What a cell defines at its top level; nothing if it is not Python."""
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    names = []
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign) and "check(" not in ast.unparse(node.value):
            names += [one.id for one in node.targets if isinstance(one, ast.Name)]
    return names


def lesson_named(number: str) -> str:
    """07 -> 07_sft."""
    return next(path.stem for path in (ROOT / "solutions").glob(f"{number}_*.ipynb"))


# --- judge --------------------------------------------------------------------------


def verdicts(submission: Submission, limits: Limits = LIMITS) -> dict[str, Verdict]:
    """A verdict on each exercise of the lesson, in order. Never raises for its code.

    Where an exercise ends its process, the others are judged in a new one.
    """
    result = {
        one: Verdict("not yet", "its cell is missing") for one in submission.missing
    }
    left = dict(submission.cells)
    while left:
        judged, reason = judge_apart(submission.lesson, left, limits)
        result |= judged
        left = {one: cell for one, cell in left.items() if one not in judged}
        if left:  # the first of these has ended it
            guilty = next(iter(left))
            result[guilty] = Verdict("not yet", reason)
            del left[guilty]
    order = [one.id for one in of_lesson(submission.lesson)]
    return {one: result[one] for one in order}


def judge_apart(
    lesson: str, cells: dict[str, str], limits: Limits
) -> tuple[dict[str, Verdict], str]:
    """Verdicts from a process of its own, and why it ended if some are missing."""
    token = secrets.token_hex(16)
    task = json.dumps({"lesson": lesson, "cells": cells, "token": token})
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
        done = run_isolated(
            [sys.executable, "-m", "minipalm.course.submission"],
            task,
            limits,
            Path(folder),
            env,
        )
    judged = {}
    for line in done.stdout.splitlines():
        if line.startswith(token):
            one = json.loads(line.removeprefix(token))
            name = one.pop("exercise")
            judged[name] = Verdict(**one)
    if not judged and "close_doors" not in done.stderr and done.status == 1:
        last = (done.stderr.strip().splitlines() or ["?"])[-1]
        return judged, f"its process could not begin: {last}"
    return judged, done.reason or "it ended its process"


# --- in that process ----------------------------------------------------------------


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


def judge_cell(exercise: Exercise, source: str, scope: dict[str, Any]) -> Verdict:
    """Run a learner's cell in the notebook's scope, and judge what it defines."""
    from minipalm.course.guard import TimeUp, guarded, within

    error: BaseException | None = None
    with guarded():
        try:
            code = compile(source, f"<exercise {exercise.id}>", "exec")
            within(TO_DEFINE, lambda: exec(code, scope))
        except BaseException as raised:  # whatever a learner writes
            error = raised
    if isinstance(error, TimeUp):
        return Verdict("not yet", "its cell does not come to an end")
    candidate = scope.get(exercise.name)
    if candidate is None or candidate is exercise.answer:
        if error is not None:
            return Verdict("not yet", told(error, lambda: None))
        return Verdict("not yet", f"its cell does not define {exercise.name}")
    return judge(exercise, candidate)


def main() -> int:
    """Read a task from stdin; print a line for each verdict as soon as there is one."""
    task = json.loads(sys.stdin.read())
    token, cells = task.pop("token"), task["cells"]
    by_id = {one.id: one for one in exercises().values()}
    scope: dict[str, Any] = {"__name__": "__main__"}
    plan = list(steps(task["lesson"]))
    for exercise_id, source in plan:
        if not exercise_id and source.startswith(("import", "from")):
            exec(source, scope)  # what they load may not be had behind closed doors
    import torch

    torch.optim.AdamW([torch.zeros(1, requires_grad=True)], fused=True)  # its imports
    print_line = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    close_doors(LIMITS)
    for exercise_id, source in plan:
        if not exercise_id:
            exec(source, scope)
            continue
        exercise = by_id[exercise_id]
        if exercise_id in cells:
            verdict = judge_cell(exercise, cells[exercise_id], scope)
            line = {"exercise": exercise_id, **vars(verdict)}
            os.write(print_line, f"{token}{json.dumps(line)}\n".encode())
            if verdict.status == "ok":
                continue
        scope[exercise.name] = exercise.answer
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Makes nbval a grader: a pytest plugin that minipalm's install registers.

    .venv/bin/python -m pytest --nbval-lax notebooks/10_gae.ipynb

fails exactly at the exercises that are unsolved or wrong. nbval compares what a cell
prints with what the notebook has stored; a learner's notebook has stored what the
learner has seen, "not yet" included. So the verdict that is expected is put in its
place, and a failure shows what the check has printed, not the machinery. An exercise
whose check cell is gone fails as well.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from minipalm.course.exercise import Exercise

TIMEOUT = 240.0  # seconds a cell; nbval's own default lets a dead kernel wait 2,000
CHECK_CALL = re.compile(r"^\s*(\w+)\s*=\s*check\(\s*\1\s*\)\s*$", re.MULTILINE)
COLOURS = re.compile(r"\x1b\[[\d;]*m")


class MissingCheck(pytest.Item):
    """Fails in place of a check cell that is not there."""

    exercise: "Exercise"

    def runtest(self) -> None:
        pytest.fail(
            f"{self.exercise.id} {self.exercise.title}: its check cell is gone: put "
            f"`{self.exercise.name} = check({self.exercise.name})` into a code cell "
            "below your answer",
            pytrace=False,
        )

    def reportinfo(self) -> tuple[Path, None, str]:
        return self.path, None, self.name


def tags(cell: Any) -> list[str]:
    """A cell's tags; none where a tool has left null or something else."""
    found = cell.metadata.get("tags")
    return found if isinstance(found, list) else []


def checked_exercise(cell: Any) -> "Exercise | None":
    """The exercise that a code cell checks, by its metadata or else by its call."""
    from minipalm.course.exercise import exercises

    call = CHECK_CALL.search(cell.source)
    if "check" in tags(cell):
        for one in exercises().values():
            if one.id == cell.metadata.get("exercise"):
                return one
    return exercises().get(call[1]) if call else None


def expected_exercises(notebook: Any, path: Path) -> "Iterator[Exercise]":
    """Those of the lessons that a notebook's metadata, headers or name speak of."""
    from minipalm.course.exercise import exercises, of_lesson

    ids = set()
    for cell in notebook.cells:
        ids.add(cell.metadata.get("exercise"))
        if cell.cell_type == "markdown":
            ids |= set(re.findall(r"^### Exercise (\d+\.\d+)", cell.source, re.M))
    lessons = {one.lesson for one in exercises().values() if one.id in ids}
    ours = any("minipalm" in cell.source for cell in notebook.cells)
    if ours and re.match(r"\d\d_", path.name):
        lessons.add(path.name[:2])
    for lesson in sorted(lessons):
        yield from of_lesson(lesson)


def expect_verdict(item: Any, exercise: "Exercise") -> None:
    """Let nbval run this check, whatever the cell says, and want its `ok`."""
    from nbformat.v4 import new_output

    from minipalm.course.build import expected_line

    text, name = expected_line(exercise), exercise.name
    item.checks, cell = exercise, item.cell
    cell.outputs = [new_output("stream", name="stdout", text=text)]
    cell.execution_count = 1
    cell.source = f"from minipalm.course.check import check\n{name} = check({name})"
    item.options.update(check=True, check_exception=False, skip=False)


def pytest_configure(config: pytest.Config) -> None:
    if getattr(config.option, "nbval_cell_timeout", None) == 2000:
        config.option.nbval_cell_timeout = TIMEOUT


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Any:
    """Set what each check of a notebook must print, and miss those that are gone."""
    outcome = yield
    report = outcome.get_result()
    notebook = getattr(collector, "nb", None)  # of nbval's collector only
    if notebook is None or not report.passed:
        return
    found = set()
    for item in report.result:
        cell = getattr(item, "cell", None)
        exercise = checked_exercise(cell) if cell is not None else None
        if exercise is not None:
            found.add(exercise.name)
            expect_verdict(item, exercise)
    for exercise in expected_exercises(notebook, collector.path):
        if exercise.name not in found:
            missing: Any = MissingCheck.from_parent(collector, name=exercise.id)
            missing.exercise = exercise
            report.result.append(missing)


def shown(item: Any) -> str:
    """What a learner reads of a cell that failed; empty if nbval says it as well."""
    printed = getattr(item, "test_outputs", None) or []
    text = "".join(one.get("text", "") for one in printed).strip()
    exercise = getattr(item, "checks", None)
    error = next((one for one in printed if one.output_type == "error"), None)
    if error is None:
        return text if exercise is not None else ""
    said = f"{error.ename}: {error.evalue}"
    if exercise is not None:  # the check itself never raises
        return f"{exercise.id} {exercise.title}: not yet: its cell has failed ({said})"
    if "exercise" in tags(item.cell):
        place = COLOURS.sub("", "\n".join(error.traceback))
        return f"{item.cell.metadata.get('exercise')}: {said}\n\n{place}"
    return ""


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Any:
    outcome = yield
    report = outcome.get_result()
    if report.failed and hasattr(item, "cell") and (text := shown(item)):
        report.longrepr = text

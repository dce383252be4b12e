"""Makes nbval a grader: a pytest plugin that minipalm's install registers.

    pytest --nbval-lax notebooks/10_gae.ipynb

fails exactly at the exercises that are unsolved or wrong. nbval compares what a cell
prints with what the notebook has stored; a learner's notebook has stored what the
learner has seen, "not yet" included. So the verdict that is expected is put in its
place, and a failure shows what the check has printed, not the machinery.
"""

from typing import Any

import pytest


def is_check(item: Any) -> bool:
    cell = getattr(item, "cell", None)
    return cell is not None and "check" in cell.metadata.get("tags", [])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    checks = [item for item in items if is_check(item)]
    if not checks:
        return
    from nbformat.v4 import new_output

    from minipalm.course.build import expected_line
    from minipalm.course.exercise import exercises

    by_id = {one.id: one for one in exercises().values()}
    for item in checks:
        cell: Any = item.cell  # type: ignore[attr-defined]
        exercise = by_id[cell.metadata["exercise"]]
        text = expected_line(exercise)
        cell.outputs = [new_output("stream", name="stdout", text=text)]
        cell.execution_count = 1
        cell.source = f"{exercise.name} = check({exercise.name})"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Any:
    outcome = yield
    report = outcome.get_result()
    if report.failed and is_check(item):
        printed = getattr(item, "test_outputs", None) or []
        text = "".join(one.get("text", "") for one in printed).strip()
        if text:
            report.longrepr = text

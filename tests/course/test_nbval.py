"""nbval as a grader: notebooks that learners, or their tools, have bent."""

import os
import re
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from minipalm.course import ROOT
from minipalm.course.build import CHECK_TAGS, expected_line
from minipalm.course.exercise import exercises, of_lesson
from minipalm.course.source import source_of

LESSON = list(of_lesson("00"))  # the shortest
FIRST = LESSON[0]
WRONG = f"def {FIRST.name}(*args, **kwargs):\n    return 3"
SETUP = "import torch\nimport torch.nn.functional as F\nfrom torch import Tensor\n"
SETUP += "from jaxtyping import Bool, Float, Int\n"
SETUP += "from minipalm.course.check import check"


def cells(answer):
    """A lesson of one exercise: what it needs, the answer, the check."""
    meta = {"exercise": FIRST.id, "tags": ["exercise"]}
    check = {"exercise": FIRST.id, "tags": list(CHECK_TAGS)}
    seen = new_output("stream", name="stdout", text="what the learner has seen")
    return [
        new_code_cell(SETUP),
        new_code_cell(answer, metadata=meta),
        new_code_cell(
            f"{FIRST.name} = check({FIRST.name})",
            metadata=check,
            outputs=[seen],
            execution_count=3,
        ),
    ]


def without_tags(made):
    for cell in made:
        cell.metadata.pop("tags", None)
    return made


def null_tags(made):
    for cell in made:
        cell.metadata["tags"] = None
    return made


def without_metadata(made):
    for cell in made:
        cell.metadata.clear()
    return made


def check_forged(made):
    made[0].source += f"\ndef check(x):\n    print({expected_line(FIRST)!r}, end='')"
    return made


def check_skipped(made):
    made[2].source = "# NBVAL_SKIP\n" + made[2].source
    return made


def check_deleted(made):
    return made[:2]


def check_in_markdown(made):
    return [*made[:2], new_markdown_cell(made[2].source, metadata=made[2].metadata)]


def check_emptied(made):
    made[2].source, made[2].metadata = "", {}
    return made


def foreign():
    """Checks that are none of the course's."""
    made = [new_code_cell(f"{n} + {n}") for n in range(3)]
    made[0].metadata = {"tags": ["check"]}
    made[1].metadata = {"exercise": "99.9", "tags": ["check"]}
    made[2].metadata = {"tags": None}
    return made


STILL_WRONG = without_tags, null_tags, without_metadata, check_forged, check_skipped
UNCHECKED = check_deleted, check_in_markdown, check_emptied


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """What nbval says of them all: (case -> what failed there, the whole report)."""
    folder = tmp_path_factory.mktemp("graded")
    right = source_of(FIRST.answer)
    cases = {
        "right": cells(right),
        "wrong": cells(WRONG),
        "syntax": cells(f"def {FIRST.name}(x)\n    return x"),
        "foreign": foreign(),
        **{bend.__name__: bend(cells(WRONG)) for bend in STILL_WRONG},
        **{bend.__name__: bend(cells(right)) for bend in UNCHECKED},
    }
    for case, made in cases.items():
        book = new_notebook()
        book.cells = made  # nbformat itself would refuse some of them
        name = "10_of_another_course" if case == "foreign" else "00_start"
        (folder / case).mkdir()
        nbformat.write(book, folder / case / f"{name}.ipynb")
    command = [sys.executable, "-m", "pytest", "-q", f"--rootdir={folder}"]
    command += ["-p", "no:cacheprovider", "--nbval-lax", "--nbval-current-env"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    env["COLUMNS"] = "1000"  # else the lines at the end are cut
    done = subprocess.run(
        [*command, *cases], cwd=folder, env=env, capture_output=True, text=True
    )
    report = re.sub(r"\x1b\[[\d;]*m", "", done.stdout + done.stderr)
    assert done.returncode == 1 and "INTERNALERROR" not in report, report
    lines = re.findall(r"^FAILED (\w+)/\w+\.ipynb::(.*)$", report, re.M)
    return {c: [text for case, text in lines if case == c] for c in cases}, report


def test_a_right_answer_passes_and_a_wrong_one_is_shown_as_the_check_says_it(graded):
    assert len(LESSON) == 1  # else the lesson's others would be missing here
    failed, report = graded
    assert failed["right"] == [], report
    (only,) = failed["wrong"]
    assert only.startswith(f"Cell 2 - {FIRST.id} {FIRST.title}: not yet"), report


@pytest.mark.parametrize("case", [bend.__name__ for bend in STILL_WRONG])
def test_a_wrong_answer_fails_although_the_check_cell_was_bent(graded, case):
    failed, report = graded
    (only,) = failed[case]
    assert only.startswith(f"Cell 2 - {FIRST.id} {FIRST.title}: not yet"), report


@pytest.mark.parametrize("case", [bend.__name__ for bend in UNCHECKED])
def test_an_exercise_without_its_check_fails_by_name(graded, case):
    failed, report = graded
    (only,) = failed[case]
    assert f"{FIRST.id} {FIRST.title}: its check cell is gone" in only, report


def test_a_check_of_someone_elses_is_left_alone(graded):
    failed, report = graded
    assert failed["foreign"] == [], report


def test_a_syntax_error_is_said_first(graded):
    failed, report = graded
    first, second = failed["syntax"]
    assert first.startswith(f"Cell 1 - {FIRST.id}: SyntaxError: expected ':'"), report
    said = f"Cell 2 - {FIRST.id} {FIRST.title}: not yet: its cell has failed"
    assert second.startswith(said), report
    assert "Notebook cell execution failed" not in report


def test_every_exercise_of_the_lesson_is_expected():
    from minipalm.course.nbval import expected_exercises

    one = next(iter(of_lesson("10")))
    by_metadata = new_notebook(cells=[new_code_cell("", metadata={"exercise": one.id})])
    by_header = new_notebook(cells=[new_markdown_cell(f"### Exercise {one.id} · x")])
    by_name = new_notebook(cells=[new_code_cell("import minipalm")])
    for book, name in ((by_metadata, "a"), (by_header, "b"), (by_name, "10_gae")):
        expected = list(expected_exercises(book, ROOT / f"{name}.ipynb"))
        assert expected == list(of_lesson("10"))
    assert not list(expected_exercises(by_name, ROOT / "mine.ipynb"))
    assert len(exercises()) > len(expected)


def test_a_dead_kernel_is_given_up_after_minutes():
    from minipalm.course.nbval import TIMEOUT, pytest_configure

    class Config:
        class option:
            nbval_cell_timeout = 2000.0

    pytest_configure(Config)
    assert Config.option.nbval_cell_timeout == TIMEOUT < 300
    Config.option.nbval_cell_timeout = 7
    pytest_configure(Config)
    assert Config.option.nbval_cell_timeout == 7

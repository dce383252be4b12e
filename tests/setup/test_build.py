"""./course lessons: lessons and package in, notebooks out."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import nbformat
import pytest

from minipalm.course import ROOT, outputs
from minipalm.course.build import build, build_all, differences, write
from minipalm.course.documents import documents
from minipalm.course.exercise import exercises
from minipalm.course.source import stub, symbol_source

LESSON = """\
# %% [markdown]
# # Turning
# Which number does the next cell print?

# %% tags=["parameters"]
scale = "toy"

# %% tags=["define"]
from minipalm.turn import Turn, turn

# %%
print(turn(3))

# %%
print(turn(3))

# %% tags=["define"]
from minipalm.turn import half
"""
PACKAGE = '''\
"""A module to define from."""

import functools

# not part of turn


@functools.cache  # part of turn
def turn(x: int) -> int:
    """Minus x."""
    # why: a comment inside stays

    return -x


class Turn:
    """A class."""

    angle = 1.5


def half(x: float) -> float:
    return x / 2
'''


@pytest.fixture
def course(tmp_path):
    """A clone with one lesson and one module: (lessons, solutions, root)."""
    for folder in ("lessons", "solutions", "minipalm"):
        (tmp_path / folder).mkdir()
    (tmp_path / "lessons" / "02_turn.py").write_text(LESSON)
    (tmp_path / "lessons" / "helper.py").write_text("not a lesson")
    (tmp_path / "minipalm" / "turn.py").write_text(PACKAGE)
    return tmp_path / "lessons", tmp_path / "solutions", tmp_path


def cells(text):
    return nbformat.reads(text, 4).cells


def test_a_define_cell_becomes_the_exact_source_of_what_it_names(course):
    lessons, _, root = course
    defined = cells(build(lessons / "02_turn.py", root))[2]
    turn = PACKAGE[PACKAGE.index("@functools") : PACKAGE.index("\n\n\nclass")]
    body = PACKAGE[PACKAGE.index("class Turn") : PACKAGE.index("\n\n\ndef half")]
    assert defined.source == f"{body}\n\n\n{turn}"
    assert defined.metadata == {
        "tags": ["define"],
        "symbols": ["minipalm.turn.Turn", "minipalm.turn.turn"],
    }


def test_the_source_is_what_inspect_would_give():
    import inspect

    from minipalm.config import PaLMConfig, get_preset

    for thing in (PaLMConfig, get_preset):
        source = symbol_source(ROOT, "minipalm.config", thing.__name__)
        assert source == inspect.getsource(thing).rstrip("\n")


def test_a_build_gives_the_same_bytes_again_and_holds_nothing_else(course):
    lessons, solutions, root = course
    first = build_all(lessons, solutions, root)
    write(first, solutions)
    assert list(first) == ["02_turn.ipynb"]
    assert build_all(lessons, solutions, root) == first
    assert differences(first, solutions) == []
    book = json.loads(first["02_turn.ipynb"])
    assert set(book["metadata"]) == {"kernelspec", "language_info"}
    assert all(set(c["metadata"]) <= {"tags", "symbols"} for c in book["cells"])
    ids = [cell["id"] for cell in book["cells"]]
    assert len(set(ids)) == len(ids)  # equal cells, too


def test_a_cell_keeps_its_id_when_others_or_the_package_change(course):
    lessons, _, root = course
    before = [cell.id for cell in cells(build(lessons / "02_turn.py", root))]
    (lessons / "02_turn.py").write_text("# %%\nx = 0\n\n" + LESSON)
    (root / "minipalm" / "turn.py").write_text(PACKAGE.replace("-x", "0 - x"))
    after = [cell.id for cell in cells(build(lessons / "02_turn.py", root))]
    assert after[1:] == before


def test_outputs_stay_while_the_code_stays(course):
    lessons, solutions, root = course
    lesson, solution = lessons / "02_turn.py", solutions / "02_turn.ipynb"
    book = nbformat.reads(build(lesson, root), 4)
    for count, cell in enumerate((c for c in book.cells if c.cell_type == "code"), 1):
        cell.execution_count = count
        cell.outputs = [nbformat.v4.new_output("stream", text=f"{count}\n")]
    solution.write_text(nbformat.writes(book))
    (root / "minipalm" / "turn.py").write_text(PACKAGE.replace("-x", "0 - x"))
    rebuilt = [c for c in cells(build(lesson, root, solution)) if "outputs" in c]
    assert [len(cell.outputs) for cell in rebuilt] == [1, 0, 1, 1, 1]
    assert rebuilt[1].execution_count is None


def test_stale_missing_and_orphan_notebooks_are_named(course):
    lessons, solutions, root = course
    built = build_all(lessons, solutions, root)
    assert differences(built, solutions) == ["02_turn.ipynb is missing"]
    write(built, solutions)
    (solutions / "03_gone.ipynb").write_text(built["02_turn.ipynb"])
    (lessons / "02_turn.py").write_text(LESSON.replace("turn(3)", "turn(4)"))
    assert differences(build_all(lessons, solutions, root), solutions) == [
        "03_gone.ipynb has no lesson",
        "02_turn.ipynb is not what its lesson and the package say",
    ]


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("from minipalm.turn import gone", "defines no function or class gone"),
        ("from minipalm.away import turn", "minipalm.away is not a file"),
        ("x = 1", "holds only `from minipalm... import name`, got: x = 1"),
    ],
)
def test_a_definition_that_cannot_be_found_names_lesson_and_cell(course, cell, message):
    lessons, _, root = course
    (lessons / "02_turn.py").write_text(f'# %% tags=["define"]\n{cell}\n')
    with pytest.raises(ValueError, match=r"02_turn\.py, cell 1: ") as error:
        build(lessons / "02_turn.py", root)
    assert message in str(error.value)


def test_what_cells_show_is_stored_without_bars_and_without_giants(course, tmp_path):
    lessons, solutions, root = course
    solution = solutions / "02_turn.ipynb"
    solution.write_text(build(lessons / "02_turn.py", root))
    book, new = nbformat.read(solution, 4), nbformat.v4.new_output
    book.cells.insert(0, nbformat.v4.new_code_cell("injected"))
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    code[1].outputs = [
        new("stream", name="stderr", text="100%"),
        new("stream", name="stdout", text="loss 1.5\n"),
        new("display_data", data={"image/png": "A" * 90_000}),
        new("display_data", data={"image/png": "AAAA", "text/plain": "<Figure>"}),
        new("display_data", data={"application/vnd.jupyter.widget-view+json": {}}),
    ]
    nbformat.write(book, tmp_path / "executed.ipynb")
    lines = outputs.store(tmp_path / "executed.ipynb", solution)
    assert lines == ["02_turn.ipynb, code cell [1]: 90 kB, at most 80 are kept"]
    stored = [c for c in nbformat.read(solution, 4).cells if c.cell_type == "code"]
    assert [o.output_type for o in stored[0].outputs] == ["stream", "display_data"]
    assert [cell.execution_count for cell in stored] == [1, 2, 3, 4, 5]
    assert differences(build_all(lessons, solutions, root), solutions) == []


def test_solutions_are_run_in_order_and_keep_what_they_show(
    write_notebook, tmp_path, monkeypatch, capfd
):
    # stale: what an earlier run left must not be there when the stage runs again
    (tmp_path / "runs" / "lessons" / "1").mkdir(parents=True)
    (tmp_path / "runs" / "lessons" / "1" / "note").write_text("stale")
    path = "import pathlib\nnote = pathlib.Path(out, '1', 'note')"
    first = write_notebook("1", path, "note.open('x').write(scale)")
    teach = ("print(note.read_text(), out)", "classroom")
    second = write_notebook("2", path, teach, "import sys; print(1, file=sys.stderr)")
    monkeypatch.setattr(outputs, "ROOT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert outputs.refresh([first, second]) == 0, capfd.readouterr().err
    stored = [cell.outputs for cell in nbformat.read(second, 4).cells]
    assert [len(outs) for outs in stored] == [0, 0, 1, 0]
    assert stored[2][0].text == "toy runs/lessons\n"


@pytest.mark.parametrize("folder", ["solutions", "notebooks"])
def test_the_committed_notebooks_are_what_lessons_and_package_say(folder):
    student = folder == "notebooks"
    built = build_all(ROOT / "lessons", ROOT / folder, student=student)
    assert differences(built, ROOT / folder) == []


def test_the_committed_documents_are_what_lessons_and_exercises_say():
    for path, text in documents().items():
        assert path.read_text("utf-8") == text, path


# --- the student's notebook -----------------------------------------------------------

EXERCISED = """\
# %% [markdown]
# # Halves

# %% tags=["parameters"]
scale = "toy"
out = "runs/toy"

# %% tags=["exercise"]
from minipalm.turn import half

# %%
print(half(3.0))
"""


@pytest.fixture
def exercised(course):
    lessons, solutions, root = course

    def half(x):
        return x / 2

    exercise = replace(exercises()["whiten"], answer=half, id="02.1", equivalent={})
    lesson = lessons / "02_turn.py"
    lesson.write_text(EXERCISED)

    def built(student):
        return build(lesson, root, known={"half": exercise}, student=student)

    return lesson, exercise, built


def test_an_exercise_becomes_header_stub_and_check(exercised):
    _, exercise, built = exercised
    head, cell, check = cells(built(student=True))[2:5]
    assert cell.source == "def half(x: float) -> float:\n    raise NotImplementedError"
    assert head.source.startswith("### Exercise 02.1 · `half`")
    assert head.source.count("<details>") == 4 and exercise.hints[1] in head.source
    assert check.source == "half = check(half)"
    assert check.outputs[0].text == "02.1 half: ok\n" and check.execution_count
    assert "nbval-check-output" in check.metadata.tags


def test_a_students_notebook_has_no_other_output_and_a_folder_of_its_own(exercised):
    _, _, built = exercised
    code = [c for c in cells(built(student=True)) if c.cell_type == "code"]
    assert 'out = "runs/mine"' in code[0].source
    assert [len(cell.outputs) for cell in code] == [0, 0, 1, 0]


def test_a_solution_has_the_answer_and_the_same_ids(exercised):
    _, _, built = exercised
    student, solution = cells(built(student=True)), cells(built(student=False))
    assert "return x / 2" in solution[3].source
    assert solution[4].outputs == []
    assert [cell.id for cell in student] == [cell.id for cell in solution]


def test_a_cell_that_names_no_exercise_is_an_error(exercised):
    lesson, _, built = exercised
    lesson.write_text(EXERCISED.replace("import half", "import turn"))
    with pytest.raises(ValueError, match="cell 3: not one exercise of the course"):
        built(student=True)


def test_a_stub_of_a_class_keeps_the_rest():
    source = 'class A:\n    """A."""\n\n    @property\n    def b(self):\n'
    source += (
        '        """Two."""\n        return 2\n\n    def c(self):\n        return 3'
    )
    assert stub(source, "b") == (
        'class A:\n    """A."""\n\n    def b(self):\n        """Two."""\n'
        "        raise NotImplementedError\n\n    def c(self):\n        return 3"
    )


def test_a_stub_does_not_keep_a_comment_that_gives_the_answer_away():
    source = "def f(x):\n    # half of it\n    return x / 2"
    assert stub(source) == "def f(x):\n    raise NotImplementedError"


def test_every_name_that_a_notebook_uses_is_defined_and_every_import_used(tmp_path):
    """A definition brings the package's text but not the imports of its module."""
    write(build_all(ROOT / "lessons", tmp_path), tmp_path)
    lint = ["ruff", "check", "--isolated", "--select=F401,F811,F821"]
    done = subprocess.run(
        [sys.executable, "-m", *lint, "--output-format=concise", str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    found = [
        line.removeprefix(f"{tmp_path}/")
        for line in done.stdout.splitlines()
        if ".ipynb:" in line and not re.search(r"F821 Undefined name `[A-Z]`$", line)
    ]  # a single capital is a letter of a shape
    assert not found, "\n".join(found)

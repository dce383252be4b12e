"""What a solution shows belongs to the definitions that it shows, or it says so."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from minipalm.course import ROOT
from minipalm.course.build import build
from minipalm.course.build import main as lessons_program
from minipalm.course.outputs import definitions, outdated, store, without_docstrings

LESSON = """\
# %% tags=["define"]
from minipalm.turn import turn

# %%
print(turn(3))
"""


def package(body, says="Minus x."):
    return f'def turn(x):\n    """{says}"""\n    return {body}\n'


@pytest.fixture
def course(tmp_path):
    (tmp_path / "minipalm").mkdir()
    (tmp_path / "minipalm" / "turn.py").write_text(package("-x"))
    lesson = tmp_path / "01_turn.py"
    lesson.write_text(LESSON)
    return lesson


def built(lesson, solution):
    """The solution, built anew over itself."""
    text = build(lesson, lesson.parent, solution, known={})
    solution.write_text(text)
    return nbformat.reads(text, 4)


def test_outputs_of_older_definitions_are_noticed_until_the_next_run(course, tmp_path):
    solution, module = tmp_path / "01_turn.ipynb", tmp_path / "minipalm" / "turn.py"
    assert not outdated(built(course, solution))  # no run has noted anything
    store(solution, solution)
    assert not outdated(built(course, solution))
    module.write_text(package("-x", says="The same, said better."))
    assert not outdated(built(course, solution))
    module.write_text(package("-2 * x"))
    assert outdated(built(course, solution))
    store(solution, solution)
    assert not outdated(built(course, solution))
    course.write_text(LESSON.replace("turn(3)", "turn(4)"))
    assert outdated(built(course, solution))  # a cell that nobody has run
    store(solution, solution)
    assert not outdated(built(course, solution))


def test_only_docstrings_are_left_out():
    source = (
        'class A:\n    """Of A."""\n\n    def f(self):\n        """Of\n        f."""\n'
    )
    source += '        s = """kept"""\n        return s'
    assert without_docstrings(source) == (
        'class A:\n    def f(self):\n        s = """kept"""\n        return s'
    )


def test_cells_that_define_nothing_of_the_package_do_not_count():
    meta = {"symbols": ["minipalm.turn.turn"]}
    one = [new_code_cell(package("-x"), metadata=meta)]
    more = [*one, new_code_cell("turn(3)")]
    assert definitions(new_notebook(cells=one)) == definitions(new_notebook(cells=more))


@pytest.mark.parametrize(
    "solution", sorted((ROOT / "solutions").glob("*.ipynb")), ids=lambda path: path.stem
)
def test_a_committed_solution_has_been_run_as_it_is(solution):
    assert not outdated(nbformat.read(solution, 4)), (
        f"run it again: ./course lessons --run {solution.stem}"
    )


def test_check_and_run_together_are_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        lessons_program(["--check", "--run"])
    assert stop.value.code == 2 and "give one of them" in capsys.readouterr().err

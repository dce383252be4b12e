"""A learner's notebook: which of its cells answers which exercise.

What the learner has done to any other cell has no effect: imports, definitions and
checks are those of the lesson (see `apart`, which judges).
"""

import ast
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat

from minipalm.course import ROOT
from minipalm.course.exercise import exercises, of_lesson

TOO_LARGE = 20_000_000  # bytes of a notebook: one with outputs has a few hundred kB
TOO_LONG = 100_000  # letters of a cell; IPython reads those with magics many times


class SubmissionError(ValueError):
    """There is nothing to judge, and why."""


@dataclass(frozen=True)
class Submission:
    """What a notebook says.

    Attributes:
        lesson: of the course, such as 10_gae.
        cells: id of an exercise -> the source of its cell, as plain Python.
        missing: ids of the lesson's exercises that the notebook does not hold.
        misplaced: ids of those whose name a check's cell defines.
    """

    lesson: str
    cells: dict[str, str]
    missing: list[str] = field(default_factory=list)
    misplaced: frozenset[str] = frozenset()


@dataclass
class Found:
    """What the cells read so far say; each by the ids of exercises."""

    tagged: dict[str, str] = field(default_factory=dict)  # in the cell made for it
    elsewhere: dict[str, str] = field(default_factory=dict)
    misplaced: set[str] = field(default_factory=set)
    seen: dict[str, None] = field(default_factory=dict)  # in the order of the cells

    def answer(self, id_: str) -> str | None:
        """The cell made for it; another one where that is a stub or defines nothing."""
        mine, other = self.tagged.get(id_), self.elsewhere.get(id_)
        if mine is None or other is None:
            return other if mine is None else mine
        return mine if id_ in defined_ids(mine) and not is_stub(mine) else other


# --- read ---------------------------------------------------------------------------


def read_submission(path: Path) -> Submission:
    """The exercise cells of a notebook, told by their metadata or by what they define.

    It is taken as of the lesson that most of them are of, or the first of these. Raises
    SubmissionError if it is no notebook or has no exercise of the course.
    """
    found = Found()
    for cell in code_cells(path):
        sort_in(cell, found)
    by_id = {one.id: one for one in exercises().values()}
    lessons = [by_id[one].lesson for one in found.seen]
    if not lessons:
        raise SubmissionError("it holds no exercise of the course")
    number = max(dict.fromkeys(lessons), key=lessons.count)
    answers = {one.id: found.answer(one.id) for one in of_lesson(number)}
    return Submission(
        lesson_named(number),
        {id_: source for id_, source in answers.items() if source is not None},
        [id_ for id_, source in answers.items() if source is None],
        frozenset(found.misplaced & {*answers}),
    )


def sort_in(cell: Any, found: Found) -> None:
    """Put a cell where it belongs; the last for an exercise counts, unless a stub."""
    source, (tags, marked) = plain_python(str(cell.source)), marks(cell)
    ids = defined_ids(source)
    if "check" in tags:
        found.misplaced |= {*ids}
        return
    own = marked if "exercise" in tags else ""
    if own and (own not in found.tagged or (own in ids and not is_stub(source))):
        found.tagged[own] = source
    for id_ in ids:
        if id_ != own and (id_ not in found.elsewhere or not is_stub(source)):
            found.elsewhere[id_] = source
    found.seen |= dict.fromkeys([own, *ids] if own else ids)


def marks(cell: Any) -> tuple[list[Any], str]:
    """A cell's tags, and the id of the exercise it is marked with; "" if of none."""
    metadata = cell.get("metadata")
    if not isinstance(metadata, dict):
        return [], ""
    tags, marked = metadata.get("tags"), metadata.get("exercise")
    known = isinstance(marked, str) and marked in {e.id for e in exercises().values()}
    return tags if isinstance(tags, list) else [], str(marked) if known else ""


def code_cells(path: Path) -> list[Any]:
    """Raises SubmissionError, with the reason in plain words."""
    try:
        if not path.is_file():  # a pipe or a device might never end
            raise SubmissionError("it is not a file")
        with path.open("rb") as file:
            data = file.read(TOO_LARGE + 1)
        if len(data) > TOO_LARGE:
            raise SubmissionError(f"it is larger than {TOO_LARGE // 10**6} MB")
        book = nbformat.reads(data.decode("utf-8-sig"), as_version=4)
        return [cell for cell in book.cells if cell.cell_type == "code"]
    except OSError as error:
        raise SubmissionError(f"it cannot be read: {error.strerror}") from error
    except SubmissionError:
        raise
    except Exception as error:  # whatever JSON, Unicode and nbformat raise
        raise SubmissionError("it is not a Jupyter notebook") from error


# --- a cell -------------------------------------------------------------------------


def plain_python(source: str) -> str:
    """A cell without IPython's own syntax, its lines where they were.

    A first line such as `%%time` is left out; `%magic` and `!program` become calls of
    `get_ipython()`, which `apart` provides.
    """
    if parsed(source) is not None or len(source) > TOO_LONG:
        return source
    from IPython.core.inputtransformer2 import TransformerManager

    lines = source.split("\n")
    first = next((i for i, line in enumerate(lines) if line.strip()), 0)
    if lines[first].startswith("%%"):
        lines[first] = ""
    head = 0
    while head < len(lines) and not lines[head].strip():  # IPython would leave them out
        head += 1
    try:
        body = TransformerManager().transform_cell("\n".join(lines[head:]))
    except Exception:  # it is neither Python nor IPython: compiling it will say why
        return "\n".join(lines)
    return "\n" * head + body


def parsed(source: str) -> ast.Module | None:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def defined_names(source: str) -> list[str]:
    """What a cell defines at its top level; nothing if it is not Python."""
    names = []
    tree = parsed(source)
    for node in tree.body if tree else []:
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign) and "check(" not in ast.unparse(node.value):
            names += [one.id for one in node.targets if isinstance(one, ast.Name)]
    return names


def defined_ids(source: str) -> list[str]:
    """The ids of the exercises whose names a cell defines."""
    known = exercises()
    return [known[name].id for name in defined_names(source) if name in known]


def is_stub(source: str) -> bool:
    return "raise NotImplementedError" in source


def lesson_named(number: str) -> str:
    """07 -> 07_sft."""
    return next(path.stem for path in (ROOT / "solutions").glob(f"{number}_*.ipynb"))

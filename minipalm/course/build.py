"""Build solutions/ and notebooks/ from lessons/*.py, the package and its exercises.

    ./course lessons                 build both
    ./course lessons --check         say what a build would change, and change nothing
    ./course lessons --run           build, run the solutions in order at toy scale,
                                     and keep what the cells printed and drew
    ./course lessons --run 11_ppo    the same for some of them

A lesson is a notebook in jupytext's percent format. A cell tagged `define` holds only
imports from the package,

    # %% tags=["define"]
    from minipalm.rlhf.gae import gae

and becomes the source of what it names, so that lesson and package are one text. A cell
tagged `exercise` names one thing that the learner writes. Around it stand, built from
`exercises/`, its header with hints and the cell that checks it; in notebooks/ the cell
holds signature, docstring and `raise NotImplementedError`, and the check cell the
verdict that nbval expects. The same lesson always gives the same bytes; what a cell of
a solution printed is kept as long as its code stays the same.
"""

import argparse
import ast
import hashlib
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output

from minipalm.course import ROOT, outputs
from minipalm.course.documents import documents
from minipalm.course.exercise import Exercise, exercises
from minipalm.course.source import stub, symbol_source
from minipalm.data.files import write_text

CHECK_TAGS = ["check", "classroom", "nbval-check-output"]  # the last one is nbval's
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def named_symbols(cell: str) -> list[tuple[str, str]]:
    """(module, name) for each name that the imports of a `define` cell list."""
    symbols = []
    for line in ast.parse(cell).body:
        if not isinstance(line, ast.ImportFrom) or not line.module:
            raise ValueError(
                "a `define` cell holds only `from minipalm... import name`, "
                f"got: {ast.unparse(line)}"
            )
        symbols += [(line.module, alias.name) for alias in line.names]
    return symbols


def cell_id(source: str, taken: set[str]) -> str:
    """Eight hex digits that depend on the cell's own text only, unless it is a twin."""
    digits = hashlib.sha256(source.encode()).hexdigest()[:8]
    while digits in taken:
        digits = hashlib.sha256(digits.encode()).hexdigest()[:8]
    taken.add(digits)
    return digits


def header(exercise: Exercise) -> str:
    """What stands above an exercise: what it is, why, hints to unfold, a bonus."""
    dots = ["●" * n + "○" * (5 - n) for n in (exercise.difficulty, exercise.importance)]
    folded = [(f"Hint {n}", hint) for n, hint in enumerate(exercise.hints, 1)]
    folded.append(("Bonus", exercise.bonus))
    return "\n\n".join(
        [
            f"### Exercise {exercise.id} · `{exercise.title}`",
            f"difficulty {dots[0]} · importance {dots[1]} · {exercise.minutes} minutes"
            + " · at home" * exercise.at_home,
            exercise.why,
            *(
                f"<details><summary>{name}</summary>\n\n{text}\n\n</details>"
                for name, text in folded
            ),
        ]
    )


def expected_line(exercise: Exercise) -> str:
    """The verdict on a right answer."""
    return f"{exercise.id} {exercise.title}: ok\n"


Keyed = tuple[str, NotebookNode]  # what the cell's id depends on, and the cell


def exercise_cells(exercise: Exercise, source: str, symbol: str) -> list[Keyed]:
    """Header, the cell to write in, and the check."""
    tags = {"exercise": ["exercise"], "check": CHECK_TAGS}
    meta = {
        name: {"exercise": exercise.id, "tags": each} for name, each in tags.items()
    }
    check = f"{exercise.name} = check({exercise.name})"
    meta["exercise"]["symbols"] = [symbol]
    return [
        (f"header {exercise.id}", new_markdown_cell(header(exercise))),
        (f"exercise {exercise.id}", new_code_cell(source, metadata=meta["exercise"])),
        (f"check {exercise.id}", new_code_cell(check, metadata=meta["check"])),
    ]


def built_cells(
    cell: NotebookNode, root: Path, known: Mapping[str, Exercise], student: bool
) -> list[Keyed]:
    """What a cell of a lesson becomes in a notebook."""
    tags, key = cell.metadata.get("tags", []), cell.cell_type + cell.source
    cell.metadata = {"tags": tags} if tags else {}
    if "define" in tags or "exercise" in tags:
        symbols = named_symbols(cell.source)
        sources = [symbol_source(root, *symbol) for symbol in symbols]
        if "exercise" in tags:
            if len(symbols) != 1 or symbols[0][1] not in known:
                raise ValueError(f"not one exercise of the course: {cell.source}")
            exercise = known[symbols[0][1]]
            text = stub(sources[0], exercise.hole) if student else sources[0]
            return exercise_cells(exercise, text, ".".join(symbols[0]))
        cell.metadata["symbols"] = [".".join(symbol) for symbol in symbols]
        cell.source = "\n\n\n".join(sources)
    elif "parameters" in tags and student:  # what `./course run` has made stays whole
        cell.source = re.sub(
            r'^out = ".*"', 'out = "runs/mine"', cell.source, flags=re.M
        )
    return [(key, cell)]


def build(
    lesson: Path,
    root: Path = ROOT,
    before: Path | None = None,
    known: Mapping[str, Exercise] | None = None,
    student: bool = False,
) -> str:
    """The notebook of a lesson, as text; outputs come from `before` where code agrees.

    A student's has none, but the verdicts that are expected.
    Raises ValueError, naming lesson and cell, for a definition that cannot be found.
    """
    notebook = jupytext.read(lesson, fmt="py:percent")
    old = nbformat.read(before, 4) if before and before.exists() else None
    kept = {one.id: one for one in old.cells if one.cell_type == "code"} if old else {}
    known = exercises() if known is None else known
    cells: list[Keyed] = []
    for number, cell in enumerate(notebook.cells, start=1):
        try:
            cells += built_cells(cell, root, known, student)
        except (ValueError, SyntaxError) as error:
            raise ValueError(f"{lesson}, cell {number}: {error}") from error
    taken: set[str] = set()
    count = 0
    by_id = {exercise.id: exercise for exercise in known.values()}
    for key, cell in cells:
        cell.id = cell_id(key, taken)
        if cell.cell_type != "code":
            continue
        count += 1
        cell.outputs, cell.execution_count = [], None
        if student and "check" in cell.metadata.get("tags", []):
            line = expected_line(by_id[cell.metadata["exercise"]])
            cell.outputs = [new_output("stream", name="stdout", text=line)]
            cell.execution_count = count  # nbval compares only cells that have run
        same = kept.get(cell.id)
        if not student and same and same.source == cell.source:
            cell.outputs, cell.execution_count = same.outputs, same.execution_count
    notebook.cells, notebook.metadata = [cell for _, cell in cells], dict(METADATA)
    if old and not student and "minipalm" in old.metadata:  # of its last run
        notebook.metadata["minipalm"] = old.metadata["minipalm"]
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    notebook = nbformat.from_dict(notebook)
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


def build_all(
    lessons: Path, solutions: Path, root: Path = ROOT, student: bool = False
) -> dict[str, str]:
    """The text of every notebook that a folder should hold, by file name."""
    return {
        f"{path.stem}.ipynb": build(
            path, root, solutions / f"{path.stem}.ipynb", student=student
        )
        for path in sorted(lessons.glob("[0-9][0-9]_*.py"))
    }


def differences(built: dict[str, str], solutions: Path) -> list[str]:
    """One line for each notebook that is missing, stale, or has lost its lesson."""
    there = {path.name: path for path in sorted(solutions.glob("*.ipynb"))}
    lines = [f"{name} is missing" for name in built if name not in there]
    lines += [f"{name} has no lesson" for name in there if name not in built]
    lines += [
        f"{name} is not what its lesson and the package say"
        for name, text in built.items()
        if name in there and there[name].read_text("utf-8") != text
    ]
    return lines


def write(built: dict[str, str], solutions: Path) -> None:
    solutions.mkdir(exist_ok=True)
    for name, text in built.items():
        path = solutions / name
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8", newline="\n")
            print(f"built {path}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="./course lessons",
        description="Build solutions/ and notebooks/ from lessons/.",
    )
    parser.add_argument("--check", action="store_true", help="change nothing")
    parser.add_argument(
        "--run",
        nargs="*",
        metavar="NAME",
        help="run them, or the named ones, and keep what they show",
    )
    args = parser.parse_args(argv)
    if args.check and args.run is not None:
        parser.error("--check changes nothing, and --run does: give one of them")
    folders = {"solutions": False, "notebooks": True}  # whether for a student
    try:
        built = {
            name: build_all(ROOT / "lessons", ROOT / name, student=student)
            for name, student in folders.items()
        }
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    names = args.run or [Path(name).stem for name in built["solutions"]]
    if unknown := [name for name in names if f"{name}.ipynb" not in built["solutions"]]:
        there = ", ".join(built["solutions"])
        print(f"lessons/ has no {unknown[0]}; it has {there}", file=sys.stderr)
        return 2
    wrong = []
    for folder, texts in built.items():
        if not args.check:
            write(texts, ROOT / folder)
        wrong += [f"{folder}/{line}" for line in differences(texts, ROOT / folder)]
    status = 0
    if args.run is not None and not wrong:  # given without names, it is []
        status = outputs.refresh([ROOT / "solutions" / f"{one}.ipynb" for one in names])
    for path, text in documents().items():
        if path.exists() and path.read_text("utf-8") == text:
            continue
        if args.check:
            wrong.append(f"{path.relative_to(ROOT)} is not what the lessons say")
        else:
            write_text(path, text)
            print(f"wrote {path}")
    for name in built["solutions"]:
        path = ROOT / "solutions" / name
        if path.exists() and outputs.outdated(nbformat.read(path, 4)):
            print(f"{name} has changed since it was run: run it again (--run)")
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else status


if __name__ == "__main__":
    sys.exit(main())

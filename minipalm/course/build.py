"""Build solutions/*.ipynb from lessons/*.py and the package.

    ./course lessons                 build
    ./course lessons --check         say what a build would change, and change nothing
    ./course lessons --run           build, run them in order at toy scale, and keep
                                     what the cells printed and drew
    ./course lessons --run 11_ppo    the same for some of them

A lesson is a notebook in jupytext's percent format. A cell tagged `define` holds only
imports from the package,

    # %% tags=["define"]
    from minipalm.rlhf.gae import gae

and becomes the source of what it names, so that lesson and package are one text. The
same lesson always gives the same bytes; what a cell printed is kept as long as its code
stays the same.
"""

import argparse
import ast
import hashlib
import sys
from pathlib import Path

import jupytext
import nbformat

from minipalm.course import ROOT, outputs

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def symbol_source(root: Path, module: str, name: str) -> str:
    """The text of a top-level function or class of a module, decorators included.

    The file is read, not imported: building needs no torch.
    """
    path = root.joinpath(*module.split(".")).with_suffix(".py")
    if not path.exists():
        raise ValueError(f"{module} is not a file of the package: looked for {path}")
    text = path.read_text("utf-8")
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            return "\n".join(text.splitlines()[first - 1 : node.end_lineno])
    raise ValueError(f"{module} defines no function or class {name}")


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


def build(lesson: Path, root: Path = ROOT, before: Path | None = None) -> str:
    """The notebook of a lesson, as text; outputs come from `before` where code agrees.

    Raises ValueError, naming lesson and cell, for a definition that cannot be found.
    """
    notebook = jupytext.read(lesson, fmt="py:percent")
    old = nbformat.read(before, 4).cells if before and before.exists() else []
    kept = {cell.id: cell for cell in old if cell.cell_type == "code"}
    taken: set[str] = set()
    for number, cell in enumerate(notebook.cells, start=1):
        cell.id = cell_id(cell.cell_type + cell.source, taken)
        cell.metadata = {k: v for k, v in cell.metadata.items() if k == "tags"}
        if cell.cell_type != "code":
            continue
        if "define" in cell.metadata.get("tags", []):
            try:
                symbols = named_symbols(cell.source)
                sources = [symbol_source(root, *symbol) for symbol in symbols]
            except (ValueError, SyntaxError) as error:
                raise ValueError(f"{lesson}, cell {number}: {error}") from error
            cell.metadata["symbols"] = [".".join(symbol) for symbol in symbols]
            cell.source = "\n\n\n".join(sources)
        same = kept.get(cell.id)
        if same and same.source == cell.source:
            cell.outputs, cell.execution_count = same.outputs, same.execution_count
    notebook.metadata = METADATA
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    notebook = nbformat.from_dict(notebook)
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


def build_all(lessons: Path, solutions: Path, root: Path = ROOT) -> dict[str, str]:
    """The text of every notebook that solutions should hold, by file name."""
    return {
        f"{path.stem}.ipynb": build(path, root, solutions / f"{path.stem}.ipynb")
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
        prog="./course lessons", description="Build solutions/ from lessons/."
    )
    parser.add_argument("--check", action="store_true", help="change nothing")
    parser.add_argument(
        "--run",
        nargs="*",
        metavar="NAME",
        help="run them, or the named ones, and keep what they show",
    )
    args = parser.parse_args(argv)
    solutions = ROOT / "solutions"
    try:
        built = build_all(ROOT / "lessons", solutions)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    names = args.run or [Path(name).stem for name in built]
    if unknown := [name for name in names if f"{name}.ipynb" not in built]:
        print(
            f"lessons/ has no {unknown[0]}; it has {', '.join(built)}", file=sys.stderr
        )
        return 2
    if not args.check:
        write(built, solutions)
    wrong = differences(built, solutions)
    for line in wrong:
        print(f"solutions/{line}", file=sys.stderr)
    if wrong:
        return 1
    if args.run is None:  # given without names, it is []
        return 0
    return outputs.refresh([solutions / f"{name}.ipynb" for name in names])


if __name__ == "__main__":
    sys.exit(main())

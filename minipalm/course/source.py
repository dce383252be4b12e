"""The source of the package: read it, cut a hole for a learner, change a line of it."""

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

Change = tuple[str, str]  # (what stands in the source exactly once, what shall)


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


def source_of(answer: Callable[..., Any]) -> str:
    """The text of a packaged function or class."""
    path = inspect.getsourcefile(sys.modules[answer.__module__])
    assert path is not None
    folder = Path(path).parent
    return symbol_source(folder, answer.__module__.split(".")[-1], answer.__name__)


def hole_of(source: str, hole: str | None) -> ast.FunctionDef:
    """What the learner writes: the function itself, or the method `hole` of a class."""
    node = ast.parse(source).body[0]
    if isinstance(node, ast.ClassDef):
        for part in node.body:
            if isinstance(part, ast.FunctionDef) and part.name == hole:
                return part
        raise ValueError(f"class {node.name} has no method {hole}")
    assert isinstance(node, ast.FunctionDef)
    return node


def stub(source: str, hole: str | None = None) -> str:
    """The same with the hole cut: signature, docstring, `raise NotImplementedError`.

    The function's decorators go, too: they are a part of the answer.
    """
    lines, node = source.splitlines(), hole_of(source, hole)
    assert node.end_lineno is not None
    first = node.body[0]
    documented = ast.get_docstring(node) is not None
    keep_to = first.end_lineno if documented else first.lineno - 1
    assert keep_to is not None
    indent = " " * (node.col_offset + 4)
    # a comment between the signature and the first statement may give the answer away
    while not documented and lines[keep_to - 1].strip().startswith("#"):
        keep_to -= 1
    begin = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    return "\n".join(
        [
            *lines[: begin - 1],
            *lines[node.lineno - 1 : keep_to],
            f"{indent}raise NotImplementedError",
            *lines[node.end_lineno :],
        ]
    )


def change(source: str, changes: tuple[Change, ...]) -> str:
    """The source with each change made.

    Raises ValueError if what a change replaces does not stand there exactly once.
    """
    for old, new in changes:
        if source.count(old) != 1:
            raise ValueError(f"{old!r} stands {source.count(old)} times in\n{source}")
        source = source.replace(old, new)
    return source


def compile_beside(source: str, answer: Callable[..., Any]) -> Callable[..., Any]:
    """What a changed source defines, seeing all that the packaged answer sees."""
    names = dict(vars(sys.modules[answer.__module__]))
    exec(compile(textwrap.dedent(source), f"<{answer.__name__}>", "exec"), names)
    return names[answer.__name__]

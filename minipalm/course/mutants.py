"""Small changes of a right answer that a check must notice.

    python -m minipalm.course.mutants 10.1      the mutants of an exercise that live

Each mutant changes one node of the answer's syntax tree: an operator, a constant, a
bound of a slice, a comparison, the order of two arguments; or it leaves out a call such
as `.detach()`, a decorator, a statement. A mutant that lives is a hole in the check, or
equivalent to the answer: then the exercise says why.
"""

import ast
import copy
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

from minipalm.course.exercise import Candidate, Exercise, exercises
from minipalm.course.judge import compare, expected_of, observe
from minipalm.course.source import compile_beside, hole_of, source_of

SECONDS = 2.0  # for a mutant whose loop never ends


class Mutant(NamedTuple):
    name: str  # "a + b → a - b", with #2 behind the second of its kind
    source: str  # of the whole function or class


Edit = tuple[ast.AST, ast.AST]  # a node of the tree, and what stands in its place

OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.GtE),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
NAMES = {
    "min": "max",
    "minimum": "maximum",
    "amin": "amax",
    "argmin": "argmax",
    "sum": "mean",
    "all": "any",
    "cos": "sin",
    "exp": "expm1",
    "log_softmax": "softmax",
    "cumsum": "cumprod",
    "zeros": "ones",
    "zeros_like": "ones_like",
    "floor": "ceil",
    "triu": "tril",
}
NAMES |= {new: old for old, new in NAMES.items()}
STRINGS = {"sum": "mean", "mean": "sum", "none": "mean", "last": "mean"}
DROPPED = {  # methods that give something of the same kind as what they are called on
    "detach",
    "clamp",
    "float",
    "long",
    "bool",
    "abs",
    "exp",
    "expm1",
    "sqrt",
    "log",
    "flip",
    "clone",
    "contiguous",
    "cumsum",
    "softmax",
    "log_softmax",
    "requires_grad_",
    "masked_fill",
    "lower",
    "zero_grad",
    "backward",
    "step",
}


def edits(node: ast.AST) -> Iterator[ast.AST]:
    """What could stand in the place of a node."""
    match node:
        case ast.BinOp(left, op, right) if type(op) in OPERATORS:
            yield ast.BinOp(left, OPERATORS[type(op)](), right)
            if type(op) in (ast.Sub, ast.Div):
                yield ast.BinOp(right, op, left)
        case ast.UnaryOp(_, operand):
            yield operand
        case ast.Compare(left, [op], [right]):
            for other in COMPARISONS.get(type(op), ()):
                yield ast.Compare(left, [other()], [right])
        case ast.BoolOp(op, values):
            yield ast.BoolOp(ast.And() if isinstance(op, ast.Or) else ast.Or(), values)
        case ast.Constant(bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(int() as value):
            yield ast.Constant(value + 1)
            yield ast.Constant(value - 1)
        case ast.Constant(float() as value):
            yield ast.Constant(value * 2 + 0.5)
        case ast.Constant(str() as value) if value in STRINGS:
            yield ast.Constant(STRINGS[value])
        case ast.Slice(lower, upper, step):
            if lower is not None:
                yield ast.Slice(None, upper, step)
            if upper is not None:
                yield ast.Slice(lower, None, step)
        case ast.IfExp(test, body, orelse):
            yield ast.IfExp(test, orelse, body)
        case ast.Attribute(value, attr, context) if attr in NAMES:
            yield ast.Attribute(value, NAMES[attr], context)
        case ast.Name(name, context) if name in ("min", "max", "sum", "any", "all"):
            yield ast.Name(NAMES[name] if name != "sum" else "max", context)
        case ast.Call():
            yield from call_edits(node)


def call_edits(node: ast.Call) -> Iterator[ast.AST]:
    """Calls with arguments swapped, or left out, or that give their receiver back."""
    if isinstance(node.func, ast.Attribute) and node.func.attr in DROPPED:
        yield node.func.value
    if len(node.args) > 1 and not isinstance(node.args[0], ast.Starred):
        first, second, *rest = node.args
        yield ast.Call(node.func, [second, first, *rest], node.keywords)
    if ast.unparse(node.func).endswith("where") and len(node.args) == 3:
        yield node.args[1]
        yield ast.Call(
            node.func, [node.args[0], node.args[2], node.args[1]], node.keywords
        )
    for i, keyword in enumerate(node.keywords):
        if keyword.arg not in ("device", "dtype", "indexing", None):
            others = node.keywords[:i] + node.keywords[i + 1 :]
            yield ast.Call(node.func, node.args, others)


def statement_edits(body: list[ast.stmt], at: int) -> Iterator[list[ast.stmt]]:
    """What could stand in the place of a statement."""
    statement = body[at]
    match statement:
        case ast.With(_, inner):
            yield inner  # without `torch.no_grad()`
        case ast.If(test, inner, orelse):
            yield [ast.If(ast.UnaryOp(ast.Not(), test), inner, orelse)]
        case ast.Assign() | ast.AugAssign() | ast.Expr():
            yield [ast.Pass()]
        case ast.Break() | ast.Continue():
            yield [ast.Pass()]
    if isinstance(statement, ast.AugAssign) and type(statement.op) in OPERATORS:
        other = OPERATORS[type(statement.op)]()
        yield [ast.AugAssign(statement.target, other, statement.value)]


def is_prose(node: ast.AST) -> bool:
    """Docstrings, messages of errors, and types change nothing that is computed."""
    text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return text or isinstance(node, ast.Raise)


def mutants(exercise: Exercise) -> list[Mutant]:
    """All mutants of an exercise's answer, named by what was changed."""
    source = source_of(exercise.answer)
    tree = ast.parse(source)
    hole = hole_of(source, exercise.hole)
    at = [i for i, n in enumerate(ast.walk(tree)) if same_place(n, hole)][0]
    found: list[Mutant] = []
    count: Counter[str] = Counter()

    def keep(change: Callable[[ast.FunctionDef], tuple[str, str]]) -> None:
        copied = copy.deepcopy(tree)
        inside = list(ast.walk(copied))[at]
        assert isinstance(inside, ast.FunctionDef)
        old, new = change(inside)
        name = f"{old} → {new}"
        count[name] += 1
        name += f" #{count[name]}" if count[name] > 1 else ""
        found.append(Mutant(name, ast.unparse(ast.fix_missing_locations(copied))))

    for path in places(hole):
        node = follow(hole, path)
        if isinstance(node, list):
            for i, statement in enumerate(node):
                if is_prose(statement):
                    continue
                for new in statement_edits(node, i):

                    def swap(
                        root: ast.FunctionDef, path: Path = path, i: int = i,
                        new: list[ast.stmt] = new,
                    ) -> tuple[str, str]:  # fmt: skip
                        body = follow(root, path)
                        assert isinstance(body, list)
                        old = ast.unparse(body[i]).splitlines()[0]
                        body[i : i + 1] = copy.deepcopy(new)
                        return old, ast.unparse(new[0]).splitlines()[0]

                    keep(swap)
            continue
        for other in edits(node):

            def put(
                root: ast.FunctionDef, path: Path = path, other: ast.AST = other
            ) -> tuple[str, str]:
                around = legible(root, path)
                old = ast.unparse(follow(root, around))  # type: ignore[arg-type]
                replace(root, path, copy.deepcopy(other))
                new = follow(root, around)
                return old, ast.unparse(new)  # type: ignore[arg-type]

            keep(put)
    for i in range(len(hole.decorator_list)):

        def drop(root: ast.FunctionDef, i: int = i) -> tuple[str, str]:
            return f"@{ast.unparse(root.decorator_list.pop(i))}", "nothing"

        keep(drop)
    return found


Path = tuple[str | int, ...]  # fields and indices from a node to one inside it


def places(root: ast.FunctionDef) -> list[Path]:
    """Ways to all nodes whose change may change what is computed, and to all bodies."""
    ways: list[Path] = []

    def visit(node: ast.AST, path: Path) -> None:
        if is_prose(node):
            return
        ways.append(path)
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "type_params"):
                continue
            if isinstance(value, ast.AST):
                visit(value, (*path, name))
            elif isinstance(value, list):
                if value and isinstance(value[0], ast.stmt):
                    ways.append((*path, name))
                for i, each in enumerate(value):
                    if isinstance(each, ast.AST):
                        visit(each, (*path, name, i))

    visit(root, ())
    return ways


def legible(root: ast.AST, path: Path) -> Path:
    """The way to the smallest expression around a node that tells where it stands."""
    while len(path) > 1:
        node = follow(root, path)
        if isinstance(node, ast.AST) and len(ast.unparse(node)) >= 12:
            break
        shorter = path[:-1]
        if isinstance(follow(root, shorter), list):
            shorter = path[:-2]
        if not isinstance(follow(root, shorter), ast.expr):
            break
        path = shorter
    return path


def follow(root: ast.AST, path: Path) -> ast.AST | list[ast.stmt]:
    node: ast.AST | list[ast.stmt] = root
    for step in path:
        node = node[step] if isinstance(step, int) else getattr(node, step)  # type: ignore[index]
    return node


def replace(root: ast.AST, path: Path, new: ast.AST) -> None:
    parent, last = follow(root, path[:-1]), path[-1]
    if isinstance(last, int):
        parent[last] = new  # type: ignore[index,call-overload]
    else:
        setattr(parent, last, new)


def same_place(one: ast.AST, other: ast.FunctionDef) -> bool:
    return (
        isinstance(one, ast.FunctionDef)
        and one.name == other.name
        and one.lineno == other.lineno
    )


def noticed(exercise: Exercise, candidate: Candidate, seeds: tuple[int, ...]) -> bool:
    """Whether some case tells the candidate from the answer."""
    for seed in seeds:
        for case, expected in expected_of(exercise.id, seed):
            got = observe(exercise, candidate, case, SECONDS)
            if compare(expected, got, exercise.tolerance):
                return True
    return False


def alive(
    exercise: Exercise, seeds: tuple[int, ...] = (0,)
) -> tuple[list[Mutant], int]:
    """The mutants that the check lets pass, and how many there are in all."""
    living, every = [], mutants(exercise)
    for mutant in every:
        try:
            candidate = compile_beside(mutant.source, exercise.answer)
        except Exception:  # broken before it is called: a learner's cell fails, too
            continue
        if not noticed(exercise, candidate, seeds):
            living.append(mutant)
    return living, len(every)


def main(argv: list[str]) -> int:
    status = 0
    for exercise in exercises().values():
        if not any(exercise.id.startswith(part) for part in argv or [""]):
            continue
        living, number = alive(exercise)
        unexplained = [m for m in living if m.name not in exercise.equivalent]
        print(f"{exercise.id} {exercise.title}: {number} mutants, {len(living)} live")
        for mutant in unexplained:
            print(f"    {mutant.name}")
        names = {mutant.name for mutant in living}
        for name in exercise.equivalent:
            if name not in names:
                print(f"    explained, but does not live: {name}")
                status = 1
        status |= bool(unexplained)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

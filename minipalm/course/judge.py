"""Is an answer right, and if not, which mistake is it?"""

import copy
import dataclasses
import inspect
import math
import numbers
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

from minipalm.course.exercise import Candidate, Case, Exercise, call, exercises
from minipalm.course.guard import TimeUp, guarded, restore_libraries, within

SECONDS = 8.0  # for all that a check asks of a learner's code; a right one needs < 1
ANOTHER = 1_000  # from a seed to the one that it is judged by as well


@dataclass(frozen=True)
class Verdict:
    """What a learner is told: status is ok, todo or not yet."""

    status: str
    message: str = ""
    trap: int | None = None  # the number of the trap that it fell into


@dataclass
class Outcome:
    """What a call led to: a value or an error, gradients, and changed arguments."""

    value: Any = None
    error: BaseException | None = None
    gradients: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    changed: str = ""  # the first argument that is not what it was
    replaced: str = ""  # the first library function that was replaced


# --- one call ---------------------------------------------------------------------


def leaves(value: Any, path: str) -> list[tuple[str, Tensor]]:
    """The tensors in an argument, or in the result, with the way to each."""
    if isinstance(value, Tensor):
        return [(path, value)]
    if isinstance(value, nn.Module):
        named = [*value.named_parameters(), *value.named_buffers()]
        return [(f"{path}.{name}", tensor) for name, tensor in named]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = vars(value)
    if isinstance(value, Mapping):
        return [
            pair
            for key, each in value.items()
            for pair in leaves(each, f"{path}[{key!r}]")
        ]
    if isinstance(value, list | tuple):
        return [
            pair
            for i, each in enumerate(value)
            for pair in leaves(each, f"{path}[{i}]")
        ]
    return []


def backward(value: Any, inputs: list[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """The gradient of a weighted sum of the result, for each input that wants one."""
    wanted = [(name, one) for name, one in inputs if one.requires_grad]
    outputs = [one for _, one in leaves(value, "") if one.requires_grad]
    if not wanted or not outputs:
        return {}
    total = torch.zeros((), dtype=torch.float64)
    for one in outputs:  # unequal weights: a sum of equal ones could cancel
        weights = torch.linspace(1.0, 2.0, one.numel()).view(one.shape)
        total = total + (one * weights).sum().double()
    grads = torch.autograd.grad(total, [one for _, one in wanted], allow_unused=True)
    return {
        name: torch.zeros_like(one) if grad is None else grad
        for (name, one), grad in zip(wanted, grads)
    }


def observe(
    exercise: Exercise, candidate: Candidate, case: Case, seconds: float = 60.0
) -> Outcome:
    """What a candidate makes of a case. Never raises."""
    return attempt(exercise, partial(exercise.run, candidate), case, seconds)


def attempt(
    exercise: Exercise, function: Candidate, case: Case, seconds: float = 60.0
) -> Outcome:
    """What a function, the oracle say, makes of a case. Never raises."""
    args, kwargs = copy.deepcopy((case.args, case.kwargs))
    outcome = Outcome()

    def run() -> None:
        outcome.value = function(*args, **kwargs)
        if not exercise.changes_inputs:
            inputs = leaves(args, "args") + leaves(kwargs, "kwargs")
            outcome.gradients = backward(outcome.value, inputs)

    with guarded():
        try:
            within(seconds, run)
        except BaseException as error:  # whatever a learner writes, the lesson goes on
            outcome.error = error
    outcome.replaced = next(iter(restore_libraries()), "")
    if not exercise.changes_inputs:
        before = [*case.args, *case.kwargs.items()]
        after = [*args, *kwargs.items()]
        for i, (old, new) in enumerate(zip(before, after)):
            if not isinstance(old, torch.Generator) and difference(old, new, ""):
                outcome.changed = argument(exercise, i)
                break
    return outcome


def argument(exercise: Exercise, index: int) -> str:
    """What a learner calls the argument: its name, if a case is a plain call."""
    names = list(inspect.signature(exercise.answer).parameters)
    if exercise.run is call and index < len(names):
        return f"argument {names[index]}"
    return f"argument number {index + 1}"


# --- compare ----------------------------------------------------------------------


def difference(expected: Any, got: Any, where: str, tolerance: float = 1e-4) -> str:
    """The first thing in which they differ, in words; "" if there is none."""
    if isinstance(expected, Tensor):
        return tensor_difference(expected, got, where, tolerance)
    if isinstance(expected, torch.Generator):
        return "" if isinstance(got, torch.Generator) else f"got {a(got)}{where}"
    if isinstance(expected, nn.Module) and isinstance(got, nn.Module):
        expected, got = expected.state_dict(), got.state_dict()
    if dataclasses.is_dataclass(expected) and not isinstance(expected, type):
        if type(got) is not type(expected):
            return f"expected {a(expected)}{where}, got {a(got)}"
        expected, got = vars(expected), vars(got)
    if isinstance(expected, Mapping):
        if not isinstance(got, Mapping):
            return f"expected a dict{where}, got {a(got)}"
        if set(expected) != set(got):
            return f"expected the keys {list(expected)}{where}, got {list(got)}"
        parts = [(expected[key], got[key], f" in {key!r}{where}") for key in expected]
    elif isinstance(expected, list | tuple):
        kind = "list" if isinstance(expected, list) else "tuple"
        if not isinstance(got, list | tuple) or isinstance(got, list) != (
            kind == "list"
        ):
            return f"expected a {kind}{where}, got {a(got)}"
        if len(expected) != len(got):
            return f"expected {len(expected)} items{where}, got {len(got)}"
        names = [f" in item {i}{where}" for i in range(len(expected))]
        parts = list(zip(expected, got, names))
    elif hasattr(expected, "__dict__") and type(expected).__eq__ is object.__eq__:
        if type(got) is not type(expected):
            return f"expected {a(expected)}{where}, got {a(got)}"
        return difference(vars(expected), vars(got), where, tolerance)
    else:
        return plain_difference(expected, got, where, tolerance)
    return next(filter(None, (difference(*part, tolerance) for part in parts)), "")


def plain_difference(expected: Any, got: Any, where: str, tolerance: float) -> str:
    """Floats within the tolerance; all else must be equal. numpy's numbers count."""
    if type(expected) is float and is_number(got, numbers.Real):
        close = math.isclose(expected, got, rel_tol=tolerance, abs_tol=tolerance)
        if close or (math.isnan(expected) and math.isnan(got)):
            return ""
    elif type(expected) is int and is_number(got, numbers.Integral):
        if expected == got:
            return ""
    elif type(expected) is int and is_number(got, numbers.Real):
        return f"expected the int {show(expected)}{where}, got the float {float(got)}"
    elif type(expected) is type(got) and expected == got:
        return ""
    if not isinstance(got, bool | numbers.Real | str | bytes | None):
        return f"expected {show(expected)}{where}, got {a(got)}"
    return f"expected {show(expected)}{where}, got {show(got)}"


def is_number(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool | Tensor)


def tensor_difference(expected: Tensor, got: Any, where: str, tolerance: float) -> str:
    if not isinstance(got, Tensor):
        return f"expected a tensor{where}, got {a(got)}"
    if expected.shape != got.shape:
        return (
            f"expected the shape {tuple(expected.shape)}{where}, got {tuple(got.shape)}"
        )
    if expected.dtype != got.dtype:
        return f"expected the type {expected.dtype}{where}, got {got.dtype}"
    one, two = expected.detach(), got.detach()
    if expected.is_floating_point():
        one, two = one.double(), two.double()
    exact = not (expected.is_floating_point() or expected.is_complex())
    allowed = 0.0 if exact else tolerance
    wrong = ~torch.isclose(one, two, allowed, allowed, equal_nan=not exact)
    if bool(wrong.any()):
        index = wrong.nonzero()[0].tolist()
        at = f" at {index}{where}" if index else where
        values = show(expected[tuple(index)].item()), show(got[tuple(index)].item())
        return f"expected {values[0]}{at}, got {values[1]}"
    if expected.requires_grad != got.requires_grad:
        carries = "a gradient" if expected.requires_grad else "no gradient"
        return f"the result{where} should carry {carries}"
    return ""


def show(value: Any) -> str:
    """A value in few letters."""
    if isinstance(value, int) and value.bit_length() > 200:
        return "a giant number"
    text = f"{value:.5g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def a(value: Any) -> str:
    return "nothing (None)" if value is None else f"a {type(value).__name__}"


def compare(expected: Outcome, got: Outcome, tolerance: float) -> str:
    """In what an outcome differs from the one expected; "" if in nothing."""
    if expected.error is not None or got.error is not None:
        if expected.error is None:
            return f"it raises {type(got.error).__name__}"
        if isinstance(got.error, type(expected.error)):
            return ""
        instead = f", not {type(got.error).__name__}" if got.error else ""
        return f"it should raise {type(expected.error).__name__}{instead}"
    if got.replaced:
        return f"it replaces {got.replaced}"
    if got.changed:
        return f"it changes its {got.changed}"
    wrong = difference(expected.value, got.value, "", tolerance)
    if wrong or not expected.gradients:
        return wrong
    for name, gradient in expected.gradients.items():
        other = got.gradients.get(name, torch.zeros_like(gradient))
        scale = max(1.0, gradient.abs().max().item())
        if wrong := difference(gradient / scale, other / scale, "", tolerance):
            return f"the value is right, its gradient is not: {wrong}"
    return ""


# --- the verdict ------------------------------------------------------------------


@cache
def expected_of(exercise_id: str, seed: int) -> list[tuple[Case, Outcome]]:
    """The cases of a seed, with what the oracle makes of each."""
    exercise = next(one for one in exercises().values() if one.id == exercise_id)
    with guarded():
        cases = exercise.cases(seed)
    return [(case, attempt(exercise, exercise.oracle, case)) for case in cases]


def judge(
    exercise: Exercise, candidate: Candidate, seed: int = 0, seconds: float = SECONDS
) -> Verdict:
    """Is it right? If not: is it one of the traps? If not: where does it differ?

    What is right on the cases of a seed is called on those of another: an answer that
    remembers, or knows the first by heart, is not right.
    """
    restore_libraries()
    end = time.monotonic() + seconds
    for each in (seed, seed + ANOTHER):
        verdict = judge_cases(exercise, candidate, each, end)
        if verdict.status != "ok":
            return verdict
    return verdict


def judge_cases(
    exercise: Exercise, candidate: Candidate, seed: int, end: float
) -> Verdict:
    """The verdict on the cases of one seed, by the clock's `end`."""
    seen = []
    for case, expected in expected_of(exercise.id, seed):
        left = max(end - time.monotonic(), 0.05)
        got = observe(exercise, candidate, case, left)
        # PyTorch raises it, too, with words, where a type is not supported
        if type(got.error) is NotImplementedError and not got.error.args:
            return Verdict("todo")
        seen.append(got)
        if wrong := compare(expected, got, exercise.tolerance):
            break
    else:
        return Verdict("ok")
    if isinstance(got.error, TimeUp):
        return Verdict("not yet", "it takes far too long: does a loop never end?")
    if (number := fallen_into(exercise, candidate, seed, seen)) is not None:
        return Verdict("not yet", exercise.traps[number].sentence, number)
    if got.error is not None and expected.error is None:
        return Verdict("not yet", told(got.error, candidate))
    if got.replaced:
        return Verdict("not yet", f"{wrong}, which all other code needs as it was")
    if got.changed:
        return Verdict("not yet", f"{wrong}; work on a copy ({case.name})")
    return Verdict("not yet", f"{wrong} ({case.name})")


@cache
def trap_outcome(exercise_id: str, seed: int, number: int, case: int) -> Outcome:
    """What a trap makes of a case."""
    exercise = next(one for one in exercises().values() if one.id == exercise_id)
    trap = exercise.traps[number].candidate(exercise.answer)
    return observe(exercise, trap, expected_of(exercise_id, seed)[case][0], 3.0)


def fallen_into(
    exercise: Exercise, candidate: Candidate, seed: int, seen: list[Outcome]
) -> int | None:
    """The number of the trap that gives the same as the candidate on every case.

    If there is none: on every case that is not to be refused, for a learner who has not
    come to the refusals yet.
    """
    left = set(range(len(exercise.traps)))
    differ = set()  # traps that are not the same where something is to be refused
    wrong = False  # where nothing is to be refused
    for i, (case, expected) in enumerate(expected_of(exercise.id, seed)):
        got = seen[i] if i < len(seen) else observe(exercise, candidate, case, 3.0)
        refusal = expected.error is not None
        wrong |= not refusal and bool(compare(expected, got, exercise.tolerance))
        for number in sorted(left):
            other = trap_outcome(exercise.id, seed, number, i)
            if alike(other, got, exercise.tolerance, refusal):
                continue
            differ.add(number)
            if not refusal:
                left.remove(number)
        if not left:
            return None
    return min(left - differ or (left if wrong else set()), default=None)


def alike(one: Outcome, two: Outcome, tolerance: float, refusal: bool = False) -> bool:
    """Whether two outcomes are the same, errors and changed arguments included.

    refusal: an error is expected; its words are everybody's own.
    """
    if (one.changed, one.replaced) != (two.changed, two.replaced):
        return False
    if one.error is not None and two.error is not None:
        same = type(one.error) is type(two.error)
        return same and (refusal or words(one.error) == words(two.error))
    if set(one.gradients) != set(two.gradients):
        return False
    return not compare(
        one, dataclasses.replace(two, changed="", replaced=""), tolerance
    )


def told(error: BaseException, candidate: Candidate) -> str:
    """An error in one line: what, and in which line of the learner's cell."""
    frames = traceback.extract_tb(error.__traceback__)
    files = {code.co_filename for code in codes(candidate)}
    lines = [frame.lineno for frame in frames if frame.filename in files]
    where = f" in line {lines[-1]} of the cell" if lines else ""
    return f"it raises {type(error).__name__}{where}: {words(error)}"


def words(error: BaseException) -> str:
    """What an error says, in one line."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # an error of the learner's own may not even be printed
        text = "(it cannot be shown)"
    return text if len(text) <= 160 else text[:157] + "..."


def codes(candidate: Candidate) -> list[CodeType]:
    """The code of a function, or of a class's methods, below their decorators."""
    parts = vars(candidate).values() if isinstance(candidate, type) else [candidate]
    bare = [inspect.unwrap(part) for part in parts if callable(part)]
    return [part.__code__ for part in bare if hasattr(part, "__code__")]

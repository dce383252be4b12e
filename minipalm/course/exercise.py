"""What an exercise is: an answer in the package, and all that is known about it."""

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from minipalm.course.source import Change, change, compile_beside, source_of

Candidate = Callable[..., Any]  # a learner's function or class, or one in its place


class Case:
    """One call: `Case("unequal lengths", x, mask, clip=0.1)`.

    A tensor among the arguments that requires a gradient is one whose gradient is
    compared, too; so are the parameters of a module.
    """

    def __init__(self, name: str, *args: Any, **kwargs: Any) -> None:
        self.name, self.args, self.kwargs = name, args, kwargs


class Trap:
    """A plausible wrong answer, and what a good teacher would say about it.

    Trap("sentence", ("old", "new"), ...)   the packaged answer with lines changed
    Trap("sentence", function)              or written out

    variant: another trap, and a slip besides (see `with_slips`); lists leave it out.
    """

    def __init__(
        self, sentence: str, *how: Change | Candidate, variant: bool = False
    ) -> None:
        self.sentence, self.how, self.variant = sentence, how, variant

    def candidate(self, answer: Candidate) -> Candidate:
        return _candidate(answer, self.how)


Slip = tuple[str, tuple[Change, ...]]  # what is said of it, and what it changes


def with_slips(traps: tuple[Trap, ...], *slips: Slip) -> tuple[Trap, ...]:
    """Each trap, and the same by one who has also made one of the slips, or all.

    The trap matters more, so it is said first.
    """
    chosen = [(one,) for one in slips] + ([slips] if len(slips) > 1 else [])
    found = []
    for trap in traps:
        found.append(trap)
        for some in chosen:
            sentence = f"{trap.sentence} And {', and '.join(said for said, _ in some)}."
            changes = [change for _, made in some for change in made]
            found.append(Trap(sentence, *trap.how, *changes, variant=True))
    return tuple(found)


class Twin:
    """A right answer written another way: changed lines, or a function."""

    def __init__(self, *how: Change | Candidate) -> None:
        self.how = how

    def candidate(self, answer: Candidate) -> Candidate:
        return _candidate(answer, self.how)


def _candidate(answer: Candidate, how: tuple[Change | Candidate, ...]) -> Candidate:
    changes = tuple(one for one in how if isinstance(one, tuple))
    if changes:
        return compile_beside(change(source_of(answer), changes), answer)
    [function] = how
    assert callable(function)
    return function


def call(candidate: Candidate, *args: Any, **kwargs: Any) -> Any:
    return candidate(*args, **kwargs)


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    Attributes:
        id: such as 10.1: the lesson, and the place in it.
        answer: the packaged function or class; its docstring is the task.
        hole: the method to write, where the answer is a class.
        why: one sentence: what this is good for.
        difficulty, importance: 1 to 5.
        minutes: for one who knows PyTorch's basics.
        at_home: whether it is left for after class; the packaged one goes on.
        hints: a question, the formula, the first line.
        bonus: for those who are done.
        cases: calls for a seed. Values far above the tolerance; unequal lengths; all
            axes of different sizes; defaults left out at least once.
        oracle: the truth, as slow and plain as can be; takes the arguments of `run`
            without the candidate. What it raises, the candidate must raise.
        traps, twins: wrong answers that are named, right ones that must pass.
        run: what is done with a candidate; a call unless said otherwise. Of a class or
            a loop it builds a tiny world, lets it run and returns what can be seen.
        changes_inputs: whether the arguments may be changed, as a training loop does.
        tolerance: absolute and relative; of float32 sums.
        equivalent: mutants that cannot be told from the answer, each with its reason.
    """

    id: str
    answer: Candidate
    why: str
    difficulty: int
    importance: int
    minutes: int
    hints: tuple[str, str, str]
    bonus: str
    cases: Callable[[int], list[Case]]
    oracle: Callable[..., Any]
    traps: tuple[Trap, ...]
    twins: tuple[Twin, ...]
    hole: str | None = None
    at_home: bool = False
    run: Callable[..., Any] = call
    changes_inputs: bool = False
    tolerance: float = 1e-4
    equivalent: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the learner defines."""
        return self.answer.__name__

    @property
    def lesson(self) -> str:
        """Two digits."""
        return f"{int(self.id.split('.')[0]):02}"

    @property
    def title(self) -> str:
        return f"{self.name}.{self.hole}" if self.hole else self.name


@cache
def exercises() -> dict[str, Exercise]:
    """All exercises by name, in order; each module of `exercises/` lists a lesson's."""
    from minipalm.course import exercises as package

    modules = sorted(one.name for one in pkgutil.iter_modules(package.__path__))
    found = {
        one.name: one
        for module in modules
        for one in importlib.import_module(f"{package.__name__}.{module}").EXERCISES
    }
    return found


def of_lesson(lesson: str) -> Iterator[Exercise]:
    """Those of a lesson, such as "10" or "10_gae"."""
    return (one for one in exercises().values() if one.lesson == lesson[:2])

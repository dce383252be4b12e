"""What a lesson calls: `gae = check(gae)`, and `progress()` at its end."""

import inspect
import textwrap
from typing import Any

from minipalm.course.exercise import Exercise, exercises, of_lesson
from minipalm.course.judge import Verdict, judge

board: dict[str, Verdict] = {}  # of this notebook: exercise's name -> last verdict


def line(exercise: Exercise, verdict: Verdict) -> str:
    """What a learner reads: one line, folded where it is long."""
    text = f"{exercise.id} {exercise.title}: {verdict.status}"
    if verdict.message:
        text += f": {verdict.message}"
    if verdict.status != "ok":
        text += f" [below, the package's {exercise.name} is used until then]"
    return textwrap.fill(text, 84, subsequent_indent="    ", break_on_hyphens=False)


def check(candidate: Any) -> Any:
    """Print a verdict on what you have written; gives it back if it is right.

    If it is not, the packaged one comes back, so that the rest of the notebook works.
    Never raises: neither for a wrong answer nor for anything that it does.
    """
    frame = inspect.currentframe()
    exercise = asked_for(candidate, frame.f_back.f_globals if frame.f_back else {})  # type: ignore[union-attr]
    if exercise is None:
        print("check() knows the exercises by their names: keep the name of the stub")
        return candidate
    if candidate is exercise.answer:  # an earlier check has put it there
        verdict = Verdict("todo", "run your cell again, then this one")
    else:
        try:
            verdict = judge(exercise, candidate)
        except BaseException as error:  # a result that cannot even be looked at
            reason = f"what it gives cannot be compared ({type(error).__name__})"
            verdict = Verdict("not yet", reason)
    board.pop(exercise.name, None)  # the last one checked stands last
    board[exercise.name] = verdict
    print(line(exercise, verdict))
    return candidate if verdict.status == "ok" else exercise.answer


def asked_for(candidate: Any, names: dict[str, Any]) -> Exercise | None:
    """The exercise whose name the candidate has in the notebook, or by itself."""
    known = exercises()
    for name, value in names.items():
        if value is candidate and name in known:
            return known[name]
    try:
        return known.get(candidate.__name__)
    except Exception:  # it need not have a name, nor a sane way to be asked
        return None


def board_line(exercise: Exercise, verdict: Verdict | None) -> str:
    """A mark, the exercise, where it stands."""
    status = verdict.status if verdict else "not checked"
    mark = {"ok": "●", "not yet": "◐"}.get(status, "○")
    return f"{mark} {exercise.id:5} {exercise.title:28} {status}"


def progress() -> None:
    """Print the board: each exercise of this lesson and where you are with it."""
    if not board:
        print("no exercise checked yet: run the cells above")
        return
    lesson = exercises()[next(reversed(board))].lesson
    mine = list(of_lesson(lesson))
    for one in mine:
        print(board_line(one, board.get(one.name)))
    done = sum(one.name in board and board[one.name].status == "ok" for one in mine)
    print(f"{done} of {len(mine)} right")

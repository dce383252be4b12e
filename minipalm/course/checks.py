"""Check your notebooks:  ./course check [10] [10_gae ...] [path/to/notebook.ipynb]

Prints the verdict on each exercise; without a name, on those of all lessons. Other
cells are not run, so it takes seconds. The exit status is 0 if all are right, 1 if some
are not, 2 if a notebook could not be judged.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

from minipalm.course import ROOT
from minipalm.course.apart import JudgingError, judge_submission
from minipalm.course.check import board_line
from minipalm.course.exercise import exercises
from minipalm.course.judge import Verdict
from minipalm.course.submission import SubmissionError, read_submission


def notebooks(names: list[str]) -> list[Path]:
    """The files that are meant. Raises SubmissionError for a name that means none."""
    if not names:
        lessons = {one.lesson for one in exercises().values()}
        every = sorted((ROOT / "notebooks").glob("*.ipynb"))
        return [path for path in every if path.stem[:2] in lessons]
    found = []
    for name in names:
        path = Path(name)
        if path.suffix.lower() == ".ipynb":  # never the course's of the same name
            mine = [path] if path.exists() else []
        else:
            lesson = name.zfill(2) if name.isdigit() else path.name
            mine = sorted((ROOT / "notebooks").glob(f"{lesson}*.ipynb"))
        if not mine:
            raise SubmissionError(
                f"there is no notebook {name}: give the number of a lesson, such as "
                "10, or the path of a notebook"
            )
        found += mine
    return found


def show(judged: Iterable[tuple[str, Verdict]]) -> None:
    by_id = {one.id: one for one in exercises().values()}
    for id_, verdict in judged:
        print(f"  {board_line(by_id[id_], verdict)}")
        if verdict.message:
            print(f"      {verdict.message}")


def main(argv: list[str]) -> int:
    right = number = 0
    broken = False
    try:
        paths = notebooks(argv)
    except SubmissionError as error:
        print(f"./course check: {error}", file=sys.stderr)
        return 2
    for path in paths:
        print(path.name, flush=True)
        try:
            verdicts = judge_submission(read_submission(path)).verdicts
        except (SubmissionError, JudgingError) as error:  # the others are judged
            broken = True
            print(f"./course check: {path}: {error}", file=sys.stderr)
            continue
        show(verdicts.items())
        number += len(verdicts)
        right += sum(one.status == "ok" for one in verdicts.values())
    print(f"{right} of {number} right")
    return 2 if broken else int(right < number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Check your notebooks:  ./course check [10] [10_gae ...] [path/to/notebook.ipynb]

Prints the verdict on each exercise; without a name, on those of all lessons. Other
cells are not run, so it takes seconds. The exit status is 0 if all are right.
"""

import sys
from pathlib import Path

from minipalm.course import ROOT
from minipalm.course.check import board_line
from minipalm.course.exercise import exercises
from minipalm.course.submission import SubmissionError, read_submission, verdicts


def notebooks(names: list[str]) -> list[Path]:
    """The files that are meant. Raises SubmissionError for a name that means none."""
    if not names:
        lessons = {one.lesson for one in exercises().values()}
        every = sorted((ROOT / "notebooks").glob("*.ipynb"))
        return [path for path in every if path.stem[:2] in lessons]
    found = []
    for name in names:
        path = Path(name)
        lesson = name.zfill(2) if name.isdigit() else path.stem
        mine = sorted((ROOT / "notebooks").glob(f"{lesson}*.ipynb"))
        if path.suffix == ".ipynb" and path.is_file():
            mine = [path]
        if not mine:
            raise SubmissionError(
                f"there is no notebook {name}: give the number of a lesson, such as "
                "10, or the path of a notebook"
            )
        found += mine
    return found


def main(argv: list[str]) -> int:
    by_id = {one.id: one for one in exercises().values()}
    right = number = 0
    try:
        for path in notebooks(argv):
            print(path.name)
            for id_, verdict in verdicts(read_submission(path)).items():
                number += 1
                right += verdict.status == "ok"
                print(f"  {board_line(by_id[id_], verdict)}")
                if verdict.message:
                    print(f"      {verdict.message}")
    except SubmissionError as error:
        print(f"./course check: {error}", file=sys.stderr)
        return 2
    print(f"{right} of {number} right")
    return int(right < number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

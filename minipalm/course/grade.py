"""Grade a folder of learners' notebooks.

    python -m minipalm.course.grade FOLDER [--out FOLDER/grades]

Each notebook's exercise cells are put into a fresh notebook and judged in a process of
their own, which can compute and no more (see `sandbox`): a notebook that loops, forks,
writes files or ends its process costs only itself. Written are

    grades.csv           a row a notebook: how many exercises are right, and which
    misconceptions.csv   a row a mistake: its sentence, and how many made it
    reports/             for each notebook a page that its learner can read

Who a learner is, the file's path says: alice/10_gae.ipynb, or 10_gae_alice.ipynb.
Whoever means to deceive can: the answers are in the package, for all to read. What this
guards is your machine, and honest grades for honest work.
"""

import argparse
import csv
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from minipalm.course.exercise import exercises
from minipalm.course.judge import Verdict
from minipalm.course.submission import (
    LIMITS,
    SubmissionError,
    read_submission,
    verdicts,
)
from minipalm.data.files import write_text

SKIPPED = {".ipynb_checkpoints", "grades"}  # folders that hold no submission


@dataclass(frozen=True)
class Grade:
    """What came of one file.

    Attributes:
        file: its path in the folder.
        lesson: "" if it could not be told.
        verdicts: by the ids of the lesson's exercises.
        note: why nothing was judged; "" if it was.
    """

    file: str
    lesson: str
    verdicts: dict[str, Verdict]
    note: str = ""

    @property
    def right(self) -> int:
        return sum(one.status == "ok" for one in self.verdicts.values())


def grade(path: Path, folder: Path) -> Grade:
    """Judge one file; whatever it is, there is a grade."""
    name = path.relative_to(folder).as_posix()
    try:
        submission = read_submission(path)
        return Grade(name, submission.lesson, verdicts(submission, LIMITS))
    except SubmissionError as error:
        return Grade(name, "", {}, str(error))
    except Exception as error:  # a fault of ours shall not lose the others' grades
        return Grade(
            name, "", {}, f"grading it failed: {type(error).__name__}: {error}"
        )


def submissions(folder: Path) -> list[Path]:
    """The notebooks in a folder and its folders, sorted by name."""
    found = folder.rglob("*.ipynb")
    return sorted(p for p in found if not SKIPPED & {*p.relative_to(folder).parts[:-1]})


def write_grades(grades: Iterable[Grade], path: Path) -> None:
    """A row a notebook; a column an exercise, empty where it is of another lesson."""
    grades = list(grades)
    order = [one.id for one in exercises().values()]
    used = {id_ for one in grades for id_ in one.verdicts}
    columns = [id_ for id_ in order if id_ in used]
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "lesson", "right", "of", "percent", "note", *columns])
        for one in grades:
            total = len(one.verdicts)
            share = round(100 * one.right / total) if total else 0
            statuses = [
                one.verdicts[c].status if c in one.verdicts else "" for c in columns
            ]
            rows.writerow(
                [one.file, one.lesson, one.right, total, share, one.note, *statuses]
            )


def write_misconceptions(grades: Iterable[Grade], path: Path) -> None:
    """A row a mistake, most frequent first; those that no trap names in one row."""
    who: Mapping[tuple[str, str], list[str]] = defaultdict(list)
    for one in grades:
        for id_, verdict in one.verdicts.items():
            if verdict.status == "not yet":
                named = verdict.trap is not None
                who[id_, verdict.message if named else "(no known mistake)"].append(
                    one.file
                )
    by_id = {one.id: one.title for one in exercises().values()}
    ranked = sorted(who.items(), key=lambda item: (-len(item[1]), item[0]))
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["exercise", "name", "made by", "mistake", "files"])
        for (id_, sentence), files in ranked:
            rows.writerow([id_, by_id[id_], len(files), sentence, " ".join(files)])


def report(one: Grade) -> str:
    """What the learner reads."""
    lines = [f"# {one.file}", ""]
    if one.note:
        return "\n".join([*lines, f"Nothing could be judged: {one.note}.", ""])
    by_id = {each.id: each for each in exercises().values()}
    lines += [
        f"{one.right} of {len(one.verdicts)} exercises of {one.lesson} are right.",
        "",
    ]
    for id_, verdict in one.verdicts.items():
        exercise = by_id[id_]
        lines.append(f"## {id_} {exercise.title}: {verdict.status}")
        lines.append("")
        if verdict.message:
            lines += [verdict.message, ""]
        if verdict.status != "ok":
            lines += [f"To go on: {exercise.hints[0]}", ""]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m minipalm.course.grade", description="Grade learners' notebooks."
    )
    parser.add_argument("folder", type=Path, help="notebooks, in folders or not")
    parser.add_argument("--out", type=Path, help="default: FOLDER/grades")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time"
    )
    args = parser.parse_args(argv)
    if not args.folder.is_dir():
        print(f"{args.folder} is not a folder", file=sys.stderr)
        return 2
    paths = submissions(args.folder)
    if not paths:
        print(f"{args.folder} holds no .ipynb file", file=sys.stderr)
        return 2
    out = args.out or args.folder / "grades"
    (out / "reports").mkdir(parents=True, exist_ok=True)
    grades = []
    with ThreadPoolExecutor(args.jobs) as pool:
        for one in pool.map(lambda path: grade(path, args.folder), paths):
            grades.append(one)
            said = one.note or f"{one.right} of {len(one.verdicts)}"
            print(f"{one.file}: {said}", flush=True)
            page = one.file.removesuffix(".ipynb").replace("/", "__")
            write_text(out / "reports" / f"{page}.md", report(one))
    write_grades(grades, out / "grades.csv")
    write_misconceptions(grades, out / "misconceptions.csv")
    print(f"written: {out / 'grades.csv'}, {out / 'misconceptions.csv'}, reports/")
    return 0


if __name__ == "__main__":
    sys.exit(main())

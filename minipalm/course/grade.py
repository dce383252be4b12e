"""Grade a folder of learners' notebooks.

    ./course grade FOLDER [--out FOLDER/grades]

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
import hashlib
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minipalm.course.apart import LIMITS, JudgingError, judge_submission
from minipalm.course.exercise import Exercise, Trap, exercises
from minipalm.course.judge import Verdict
from minipalm.course.submission import SubmissionError, read_submission
from minipalm.data.files import write_text

NO_ONES = {".ipynb_checkpoints", "__MACOSX"}  # folders that programs make by themselves


@dataclass(frozen=True)
class Grade:
    """What came of one file.

    Attributes:
        file: its path in the folder.
        lesson: "" if it could not be told.
        verdicts: by the ids of the lesson's exercises.
        note: why nothing was judged; "" if it was.
        ours: whether that is the fault of the course or the machine, not of the file.
        doors: what the learner's code could have done on this machine.
    """

    file: str
    lesson: str
    verdicts: dict[str, Verdict]
    note: str = ""
    ours: bool = False
    doors: tuple[str, ...] = ()

    @property
    def right(self) -> int:
        return sum(one.status == "ok" for one in self.verdicts.values())


def grade(path: Path, folder: Path) -> Grade:
    """Judge one file; whatever it is, there is a grade."""
    name, lesson = path.relative_to(folder).as_posix(), ""
    try:
        submission = read_submission(path)
        lesson = submission.lesson
        judged = judge_submission(submission, LIMITS)
        return Grade(name, lesson, judged.verdicts, doors=judged.doors)
    except SubmissionError as error:
        return Grade(name, lesson, {}, str(error))
    except JudgingError as error:
        return Grade(name, lesson, {}, str(error), ours=True)
    except Exception as error:  # a fault of ours shall not lose the others' grades
        said = f"grading it failed: {type(error).__name__}: {error}"
        return Grade(name, lesson, {}, said, ours=True)


def submissions(folder: Path, out: Path) -> tuple[list[Path], list[Path]]:
    """The notebooks in a folder and its folders, and the files that are none; sorted.

    What lies in `out` is never graded, but a notebook there is told among the others.
    """
    found: list[Path] = []
    others: list[Path] = []
    for place, folders, files in os.walk(folder):
        folders[:] = [one for one in folders if not is_no_ones(one)]
        inside = out != folder and Path(place).resolve().is_relative_to(out.resolve())
        for path in (Path(place, one) for one in files if not is_no_ones(one)):
            if path.suffix.lower() == ".ipynb":
                (others if inside else found).append(path)
            elif not inside and not path.name.startswith("."):
                others.append(path)
    return sorted(found), sorted(others)


def is_no_ones(name: str) -> bool:
    return name in NO_ONES or name.startswith("._")


# --- texts --------------------------------------------------------------------------


def plain(text: str) -> str:
    """One line that every file takes; a file's name may hold anything."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def say(text: str) -> None:
    """Print, whatever the encoding; a closed terminal does not end the grading."""
    encoding = sys.stdout.encoding or "utf-8"
    with suppress(OSError):
        print(plain(text).encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()


def table_row(values: Iterable[Any]) -> list[Any]:
    """What a spreadsheet shows as it is: text that would be a formula is quoted."""
    return [
        ("'" if value[:1] in tuple("=+-@") else "") + plain(value)
        if isinstance(value, str)
        else value
        for value in values
    ]


def page_name(file: str) -> str:
    """The name of a report without .md: short, ASCII, and another for each file.

    a/b.ipynb -> a__b; where that cannot be undone, a hash of the path is added.
    """
    stem = file.removesuffix(".ipynb")
    page = re.sub(r"[^A-Za-z0-9._-]", "_", stem.replace("/", "__"))[:80]
    if page.replace("__", "/") == stem != file:
        return page
    path = file.encode("utf-8", "surrogatepass")
    return f"{page}-{hashlib.sha256(path).hexdigest()[:8]}"


# --- files --------------------------------------------------------------------------


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
            row = [one.file, one.lesson, one.right, total, share, one.note, *statuses]
            rows.writerow(table_row(row))


def write_misconceptions(grades: Iterable[Grade], path: Path) -> None:
    """A row a mistake, most frequent first; those that no trap names in one row.

    A mistake with a slip besides is that mistake.
    """
    by_id = {one.id: one for one in exercises().values()}
    who: Mapping[tuple[str, str], list[str]] = defaultdict(list)
    for one in grades:
        for id_, verdict in one.verdicts.items():
            if verdict.status == "not yet":
                sentence = "(no known mistake)"
                if verdict.trap is not None:
                    sentence = main_trap(by_id[id_], verdict.trap).sentence
                who[id_, sentence].append(one.file)
    ranked = sorted(who.items(), key=lambda item: (-len(item[1]), item[0]))
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["exercise", "name", "made by", "mistake", "files"])
        for (id_, sentence), files in ranked:
            row = [id_, by_id[id_].title, len(files), sentence, " ".join(files)]
            rows.writerow(table_row(row))


def main_trap(exercise: Exercise, number: int) -> Trap:
    """The trap of that number, or the one that it is a variant of."""
    before = reversed(exercise.traps[: number + 1])
    return next(trap for trap in before if not trap.variant)


def report(one: Grade) -> str:
    """What the learner reads."""
    lines = [f"# {plain(one.file)}", ""]
    if one.note:
        return "\n".join([*lines, f"Nothing could be judged: {plain(one.note)}.", ""])
    by_id = {each.id: each for each in exercises().values()}
    lines += [
        f"{one.right} of {len(one.verdicts)} exercises of {one.lesson} are right.",
        "",
    ]
    for id_, verdict in one.verdicts.items():
        exercise = by_id[id_]
        lines += [f"## {id_} {exercise.title}: {verdict.status}", ""]
        if verdict.message:
            lines += [plain(verdict.message), ""]
        if verdict.status != "ok":
            lines += [f"To go on: {exercise.hints[0]}", ""]
    for door in one.doors:
        lines += [f"On the machine that judged this, {plain(door)}.", ""]
    return "\n".join(lines)


def deliver(one: Grade, reports: Path) -> bool:
    """Print a grade and write its page; whether that could be done."""
    try:
        say(f"{one.file}: {one.note or f'{one.right} of {len(one.verdicts)}'}")
        write_text(reports / f"{page_name(one.file)}.md", report(one))
        return True
    except Exception as error:  # the others' pages shall be written
        say(f"{one.file}: its page is not written: {type(error).__name__}: {error}")
        return False


def grade_all(paths: list[Path], folder: Path, out: Path, jobs: int) -> int:
    """Grade and write; what is done when it is interrupted is written, too.

    Returns the exit status: 1 if something failed that is no learner's fault.
    """
    grades, delivered = [], True
    pool = ThreadPoolExecutor(max(1, jobs))
    try:
        for one in pool.map(lambda path: grade(path, folder), paths):
            grades.append(one)
            delivered &= deliver(one, out / "reports")
    finally:
        pool.shutdown(cancel_futures=True)
        write_grades(grades, out / "grades.csv")
        write_misconceptions(grades, out / "misconceptions.csv")
    for door in dict.fromkeys(door for one in grades for door in one.doors):
        say(f"on this machine: {door}")
    say(f"written: {out / 'grades.csv'}, {out / 'misconceptions.csv'}, reports/")
    return int(not delivered or any(one.ours for one in grades))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="./course grade", description="Grade learners' notebooks."
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
    out = args.out or args.folder / "grades"
    paths, others = submissions(args.folder, out)
    if others:
        names = [path.relative_to(args.folder).as_posix() for path in others]
        say(f"not graded, as they are no submitted notebooks: {', '.join(names)}")
    if not paths:
        print(f"{args.folder} holds no .ipynb file", file=sys.stderr)
        return 2
    (out / "reports").mkdir(parents=True, exist_ok=True)
    return grade_all(paths, args.folder, out, args.jobs)


if __name__ == "__main__":
    sys.exit(main())

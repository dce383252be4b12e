"""What is written about the course and follows from it: tables and the teacher's guide.

Made by `./course lessons`; a test holds every page equal to what these functions give.
"""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import jupytext

from minipalm.course import ROOT
from minipalm.course.exercise import exercises, of_lesson
from minipalm.course.mutants import mutants

MEASURED = ROOT / "data" / "results" / "lessons.json"  # see outputs.refresh
WORDS_A_MINUTE = 150  # read with thought
FIGURE_MINUTES = 2.0  # to predict, move, and talk about a figure
GUIDE = ROOT / "docs" / "teaching"  # written by hand, a page a lesson

BUILDS = {  # what the reader of the README wants to know of a lesson
    "00": "the whole pipeline once, with packaged parts; how checks speak",
    "01": "a byte-pair tokenizer, batches and masks, a world whose reward is known",
    "02": "rotary positions",
    "03": "causal mask, attention with shared keys and values, the cache",
    "04": "a gated feed-forward layer, and its width at equal parameters",
    "05": "the parallel block and its serial twin",
    "06": "the network, its loss, its schedule, pretraining, sampling",
    "07": "packing, the loss on responses only",
    "08": "pairwise loss, pooling, normalisation, calibration",
    "09": "log-probabilities of answers, estimators of KL, shaped rewards",
    "10": "advantages, whitening",
    "11": "shaped policy and value losses, the update, the loop",
    "12": "intervals, power, length control, diversity, pass@k, benchmarks",
    "13": "two laws, a rule that stops in time, ensembles, length bias and its removal",
    "14": "tests that refuse bugs and pass what is right; a diagnosis from curves",
    "15": "importance weights, DPO, RLOO and GRPO, best of n, all methods compared",
    "16": "operations, bytes, the wire, floors of sampling, rounding, the bill",
}


class Lesson(NamedTuple):
    name: str  # 10_gae
    title: str  # GAE
    exercises: int
    minutes: int  # of class: read, write, run, look; what its plan adds up to
    estimate: float  # the same from its words, figures, exercises and computing
    cpu_seconds: float | None  # of the executed solution


def cells_of(path: Path) -> list[Any]:
    return list(jupytext.read(path, fmt="py:percent").cells)


class Part(NamedTuple):
    """One part of a lesson's plan: `10 exercises 15.1 and 15.2`."""

    minutes: int
    exercises: tuple[str, ...]  # their ids


def plan(name: str) -> list[Part]:
    """The parts of a lesson in class, from the teacher's page."""
    page = (GUIDE / f"{name}.md").read_text("utf-8")
    found = re.search(r"\*\*Minutes\.\*\*(.*?)\n\n", page, re.DOTALL)
    assert found, f"{name}: no minutes"
    *parts, last = " ".join(found[1].split()).split(" · ")
    parts.append(re.split(r"\.(?= |$)", last)[0])  # what follows is a remark
    plan = []
    for text in parts:
        minutes, ids = int(text.split()[0]), re.findall(r"\d+\.\d+", text)
        if match := re.search(r"(\d+)\.(\d+) to \d+\.(\d+)", text):
            lesson, first, end = map(int, match.groups())
            ids = [f"{lesson}.{n}" for n in range(first, end + 1)]
        plan.append(Part(minutes, tuple(ids)))
    return plan


def lessons() -> list[Lesson]:
    """Those that have exercises or a place in the pipeline, in order."""
    measured = json.loads(MEASURED.read_text("utf-8")) if MEASURED.exists() else {}
    found = []
    for path in sorted((ROOT / "lessons").glob("[0-9][0-9]_*.py")):
        cells = cells_of(path)
        title = cells[0].source.splitlines()[0].split("·")[-1].strip()
        mine = list(of_lesson(path.stem))
        cpu = measured.get("lessons", {}).get(path.stem)
        words = sum(len(c.source.split()) for c in cells if c.cell_type == "markdown")
        figures = sum(
            bool(re.search(r"interactive\(|plot\.|figure", c.source))
            for c in cells
            if c.cell_type == "code" and "import" not in c.source
        )
        estimate = (
            words / WORDS_A_MINUTE
            + FIGURE_MINUTES * figures
            + sum(one.minutes for one in mine if not one.at_home)
            + (cpu or 0) / 60
        )
        minutes = sum(part.minutes for part in plan(path.stem))
        found.append(Lesson(path.stem, title, len(mine), minutes, estimate, cpu))
    return found


def lesson_map() -> str:
    """The README's table of lessons."""
    lines = [
        "| lesson | you build | exercises | minutes | CPU-seconds |",
        "|---|---|---|---|---|",
    ]
    for one in lessons():
        link = f"[{one.name[:2]} {one.title}](notebooks/{one.name}.ipynb)"
        cpu = "" if one.cpu_seconds is None else f"{one.cpu_seconds:.0f}"
        lines.append(
            f"| {link} | {BUILDS[one.name[:2]]} | {one.exercises} | {one.minutes} "
            f"| {cpu} |"
        )
    total = sum(one.exercises for one in lessons())
    computed = sum(one.cpu_seconds or 0 for one in lessons())
    minutes = sum(one.minutes for one in lessons())
    lines.append(f"| all | | {total} | {minutes} | {computed:.0f} |")
    return "\n".join(lines)


def checks_table() -> str:
    """The README's table of what proves the checks."""
    lines = [
        "| lesson | exercises | traps: rejected and named | twins: accepted "
        "| mutants: rejected | equivalent, with the reason |",
        "|---|---|---|---|---|---|",
    ]
    totals = [0] * 5
    for lesson in sorted({one.lesson for one in exercises().values()}):
        mine = list(of_lesson(lesson))
        equivalent = sum(len(one.equivalent) for one in mine)
        row = [
            len(mine),
            sum(len(one.traps) for one in mine),
            sum(len(one.twins) for one in mine),
            sum(len(mutants(one)) for one in mine) - equivalent,
            equivalent,
        ]
        totals = [a + b for a, b in zip(totals, row)]
        lines.append(f"| {lesson} | {' | '.join(map(str, row))} |")
    lines.append(f"| all | {' | '.join(map(str, totals))} |")
    return "\n".join(lines)


def counted(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def teaching() -> str:
    """docs/teaching.md: hand-written pages a lesson, and the traps of its exercises."""
    parts = [(GUIDE / "guide.md").read_text("utf-8").strip()]
    for one in lessons():
        parts.append(f"## {one.name[:2]} {one.title}")
        parts.append(
            f"{one.minutes} minutes, {counted(one.exercises, 'exercise')}. "
            f"[Lesson](../notebooks/{one.name}.ipynb), "
            f"[solution](../solutions/{one.name}.ipynb)."
        )
        parts.append((GUIDE / f"{one.name}.md").read_text("utf-8").strip())
        parts.append("**Misconceptions that the checks name.**")
        for exercise in of_lesson(one.name):
            parts.append(f"*{exercise.id} `{exercise.title}`*")
            traps = [one for one in exercise.traps if not one.variant]
            parts.append("\n".join(f"- {trap.sentence}" for trap in traps))
    return "\n\n".join(parts) + "\n"


BLOCKS = {"lessons": lesson_map, "checks": checks_table}


def readme(text: str) -> str:
    """The README with the tables between its marks made anew."""
    for name, make in BLOCKS.items():
        begin = f"<!-- {name}: written by ./course lessons -->"
        end = f"<!-- end of {name} -->"
        between = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        table = f"{begin}\n{make()}\n{end}"
        text = between.sub(lambda _, table=table: table, text)  # type: ignore[misc]
    return text


def documents() -> dict[Path, str]:
    """The pages, by their paths."""
    path = ROOT / "README.md"
    return {
        path: readme(path.read_text("utf-8")),
        ROOT / "docs" / "teaching.md": teaching(),
    }

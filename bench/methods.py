"""What lesson 15's methods cost at full size: the table of docs/full_size.md.

    ./course full --scale full-lora:3 --gpus 1 --until 15_offline --out RUN
    python -m bench.methods RUN        keeps RUN's numbers, and writes the table
    python -m bench.methods            writes the table of those that are kept

Both print it. Of a run at a smaller scale, or without a GPU, they do nothing else. The
numbers are kept in data/results/full_methods.json, which lesson 15 shows, too.
"""

import argparse
import datetime
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minipalm.course import ROOT
from minipalm.data.files import write_text
from minipalm.plot.costs import PHASES, in_order, named
from minipalm.train.progress import read_progress
from minipalm.train.stage import StageError, stage_summary

RESULTS = ROOT / "data" / "results" / "full_methods.json"
PAGE = ROOT / "docs" / "full_size.md"
COSTS = ("updates", "answers", "seconds", "phases", "memory")
BEGIN = "<!-- written by python -m bench.methods: begin -->"
END = "<!-- written by python -m bench.methods: end -->"


def kept(run: Path) -> dict[str, Any]:
    """What a run's methods cost, with its scale, machine and date.

    Not what they have learnt: a few updates are not worth a number.

    Raises:
        StageError: lesson 15 has not run to its end there.
    """
    scale = stage_summary(run, "15_offline")["scale"]
    path = run / "15_offline" / "methods.json"
    progress = read_progress(run)
    return {
        "date": datetime.date.fromtimestamp(path.stat().st_mtime).isoformat(),
        "scale": scale,
        "gpu": progress.gpu,
        "ranks": progress.ranks,
        "methods": {
            method: {key: row[key] for key in COSTS}
            for method, row in json.loads(path.read_text("utf-8")).items()
            if row["updates"]
        },
    }


def markdown(results: dict[str, Any]) -> str:
    """A line a method: updates, answers, seconds and those of its phases, GiB."""

    def cell(value: float | None, digits: int) -> str:
        return "–" if value is None else f"{value:.{digits}f}"

    trained = in_order(results["methods"])
    phases = [p for p in PHASES if any(p in row["phases"] for row in trained.values())]
    heads = ["answers", "seconds", *(PHASES[p][0] for p in phases), "GiB"]
    lines = [
        f"{results['date']}, {results['ranks']} × {results['gpu'] or 'CPU'}, "
        f"`{results['scale']}`; an update of each:",
        "",
        f"| | {' | '.join(heads)} |",
        "| --- " * (len(heads) + 1) + "|",
    ]
    for method, row in trained.items():
        cells = [cell(row["answers"], 0), cell(row["seconds"], 2)]
        cells += [cell(row["phases"].get(phase), 2) for phase in phases]
        cells.append(cell(row["memory"], 1))
        lines.append(f"| {named(method, row)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def placed(results: dict[str, Any], page: str) -> str:
    """The page with this table in place of the last one."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{markdown(results)}\n{END}{after}"


def unfit(results: dict[str, Any]) -> str:
    """Why this is not what methods cost at full size; "" if it is."""
    if not results["scale"].startswith("full"):
        return f"the scale is {results['scale']}, and not a full one"
    return "" if results["gpu"] else "the run was not on a GPU"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.methods", description=__doc__.split("\n")[0]
    )
    parser.add_argument("run", nargs="?", type=Path, help="a batch run's folder")
    args = parser.parse_args(argv)
    try:
        results = kept(args.run) if args.run else json.loads(RESULTS.read_text("utf-8"))
    except (StageError, FileNotFoundError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    print(f"{markdown(results)}\n")
    if why := unfit(results):
        print(f"Nothing was written: {why}.")
        return 0
    if args.run:
        write_text(RESULTS, json.dumps(results, indent=1) + "\n")
        print(f"Wrote {RESULTS}")
    write_text(PAGE, placed(results, PAGE.read_text("utf-8")))
    print(f"Wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The report of a run, also of one that goes on or was stopped.

python -m minipalm.report runs/full             writes runs/full/report.html
python -m minipalm.report runs/full --every 60  again each minute, until it is done
"""

import argparse
import sys
import time
from pathlib import Path

from minipalm.data.files import write_text
from minipalm.data.lock import is_held
from minipalm.ends import first_cause, read_ends
from minipalm.evaluate.live import headline, live_page, machine
from minipalm.evaluate.page import page, section
from minipalm.evaluate.report import read_evaluation, terminal_table
from minipalm.train.progress import Progress, read_progress


def halted(out: Path, progress: Progress) -> str | None:
    """Why the run does not go on, "" if that is not known; None if it does."""
    stage = progress.current
    if stage is None or stage.state == "running" or is_held(out):
        return None
    end = first_cause(read_ends(out / stage.name))
    return str(end or "")


def write_page(out: Path) -> Progress:
    """Write {out}/report.html, with whatever there is; returns how far the run is.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    progress = read_progress(out)
    text = live_page(progress, halted(out, progress))
    if progress.current is None:
        try:
            used = section("The machine", *machine(progress))
            text = page(read_evaluation(out), used, progress.command)
        except (OSError, ValueError, KeyError, TypeError):  # removed, or broken
            pass
    write_text(out / "report.html", text)
    return progress


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m minipalm.report", description="Make a run's report."
    )
    parser.add_argument("run", type=Path, help="a folder such as runs/full")
    parser.add_argument("--every", type=float, metavar="SECONDS", help="and again")
    args = parser.parse_args(argv)
    while True:
        try:
            progress = write_page(args.run)
        except OSError as error:
            print(f"{parser.prog}: {error}", file=sys.stderr)
            return 2
        print(headline(progress, halted(args.run, progress)), flush=True)
        if args.every is None or progress.current is None:
            break
        try:
            time.sleep(args.every)
        except KeyboardInterrupt:
            return 130
    if progress.current is None:
        try:
            print(f"\n{terminal_table(args.run)}\n")
        except (OSError, ValueError, KeyError, TypeError):
            pass
    print(f"report: {args.run / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

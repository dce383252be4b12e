"""The shipped results, made again:  ./course results [NAME ...] [--again]

What takes longer than a lesson has time for is run beforehand, and its numbers are in
data/results/. This says which there are, and makes those that are named. A maker goes
on where it was stopped, and makes no run that is there already; --again begins anew.
What GPUs have measured is not made here: see bench/.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

from minipalm.course import ROOT

FOLDER = ROOT / "data" / "results"


class Maker(NamedTuple):
    """One file of data/results, and what makes it."""

    module: str  # run as python -m
    file: str
    minutes: int  # of one core, about
    what: str


MAKERS = {
    "seeds": Maker(
        "minipalm.course.seeds", "toy_seeds.json", 10, "the pipeline on five seeds"
    ),
    "bugs": Maker(
        "minipalm.course.bugs", "bugs.json", 6, "curves of planted bugs (lesson 14)"
    ),
    "methods": Maker(
        "minipalm.course.methods", "methods.json", 15, "six methods (lesson 15)"
    ),
    "overoptimisation": Maker(
        "minipalm.course.overoptimisation",
        "overoptimisation.json",
        30,
        "PPO against wrong rewards (lesson 13)",
    ),
}


def listing() -> str:
    """What there is to be made."""
    lines = [
        f"    {name:18} {one.what}: {one.file}, about {one.minutes} minutes"
        for name, one in MAKERS.items()
    ]
    return "\n".join(["./course results NAME ... [--again]", "", *lines])


def make(name: str, again: bool) -> int:
    """Run a maker; gives its exit status."""
    maker = MAKERS[name]
    if again:
        (FOLDER / maker.file).unlink(missing_ok=True)
    print(f"{name}: about {maker.minutes} minutes of one core", flush=True)
    return subprocess.run([sys.executable, "-m", maker.module], cwd=ROOT).returncode


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="./course results",
        description="Make the numbers in data/results again; without a name: say which "
        "there are.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(MAKERS))
    parser.add_argument(
        "--again", action="store_true", help="remove what is there, and begin anew"
    )
    args = parser.parse_args(argv)
    if unknown := [name for name in args.names if name not in MAKERS]:
        print(f"There are no results {unknown[0]!r}.\n\n{listing()}", file=sys.stderr)
        return 2
    if not args.names:
        print(listing())
        return 0
    return max(make(name, args.again) for name in args.names)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("Stopped. Run the same command again: it resumes.")

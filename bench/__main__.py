"""./course bench: race minipalm against its peers, and write the table of README.md."""

import argparse
import datetime
import json
import sys
import tempfile
from pathlib import Path

from bench import environment
from bench.race import Result
from bench.races import RACES, Race
from bench.table import machine, place, render

README = environment.ROOT / "bench" / "README.md"


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./course bench", description=__doc__)
    parser.add_argument(
        "races",
        nargs="*",
        metavar="RACE",
        help=f"which to run, of {', '.join(RACES)}; all of them, if none is named",
    )
    parser.add_argument(
        "--pairs", type=int, help="timed steps of each side; by default 5 to 15"
    )
    parser.add_argument("--warmup", type=int, default=2, help="untimed ones; 2")
    parsed = parser.parse_args(argv)
    for name in parsed.races:
        if name not in RACES:
            parser.error(f"there is no race {name!r}; there are {', '.join(RACES)}")
    if parsed.warmup < 0 or (parsed.pairs is not None and parsed.pairs < 1):
        parser.error("--pairs must be at least 1, and --warmup at least 0")
    return parsed


def main(argv: list[str]) -> int:
    wanted = arguments(argv)
    environment.ensure()
    outcomes: list[tuple[Race, Result]] = []
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in wanted.races or RACES:
            race = RACES[name]
            print(f"{race.task} against {race.peer} ...", end=" ", flush=True)
            file = Path(folder) / f"{name}.json"
            pairs = wanted.pairs or race.pairs
            try:
                environment.run_race(name, pairs, wanted.warmup, file)
            except RuntimeError as error:  # costs nobody else's result
                failed.append(f"{error}")
                print("failed", flush=True)
                continue
            result = Result(**json.loads(file.read_text("utf-8")))
            print(f"{result.ratio:.2f} times as fast", flush=True)
            outcomes.append((race, result))
    table = render(outcomes)
    print(f"\n{table}")
    if failed:
        print("", *failed, sep="\n", file=sys.stderr)
        return 1
    if not wanted.races:  # a part of the races does not replace the whole table
        day = datetime.date.today().isoformat()
        torch = environment.pinned()["torch"]
        text = f"{day}; {machine()}; torch {torch}, one thread.\n\n{table}"
        README.write_text(place(text, README.read_text("utf-8")), "utf-8")
        print(f"\nwritten to {README.relative_to(environment.ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The pipeline on five seeds:  ./course seeds [--seeds 1 2 3 4 5]

Data, initial weights and sampling all change with the seed. Each seed runs in
runs/seeds/{seed} (what it says is in its log.txt) and is resumed if it was stopped. The
evaluations are collected into data/results/toy_seeds.json: every number of
12_evaluation/evaluation.json, by seed, with mean and standard deviation.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from minipalm.course import ROOT
from minipalm.course.inputs import STAGES
from minipalm.course.results import bars, update_readme
from minipalm.course.run import TIMES
from minipalm.plot.seeds import over_optimisation_by_seed

RESULTS = ROOT / "data" / "results" / "toy_seeds.json"
PICTURE = ROOT / "data" / "results" / "over_optimisation.png"


def numbers(tree: Any, name: str = "") -> dict[str, float]:
    """The numbers in nested objects, by dotted name; lists, texts and flags are left.

    >>> numbers({"win": {"rate": 0.8, "pairs": [1, 2]}, "kl": 4})
    {'win.rate': 0.8, 'kl': 4.0}
    """
    if isinstance(tree, dict):
        leaves: dict[str, float] = {}
        for key, value in tree.items():
            leaves |= numbers(value, f"{name}.{key}" if name else str(key))
        return leaves
    is_number = isinstance(tree, int | float) and not isinstance(tree, bool)
    return {name: float(tree)} if is_number else {}


def run_seed(seed: int, out: Path) -> int:
    """Make the seed's data and run the pipeline on it. Returns 0 if all went well."""
    out.mkdir(parents=True, exist_ok=True)
    make = ["minipalm.data.make", "--seed", str(seed), "--out", str(out / "data")]
    run = ["minipalm.course.run", "--scale", "toy", "--seed", str(seed)]
    run += ["--out", str(out), "--data", str(out / "data")]
    with (out / "log.txt").open("w", encoding="utf-8") as log:
        for command in (make, run):
            status = subprocess.run(
                [sys.executable, "-m", *command],
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
            ).returncode
            if status:
                return status
    return 0


def cpu_seconds(out: Path) -> dict[str, float]:
    """CPU-seconds of each stage and of all, where every stage noted them."""
    stages = {
        path.parent.name: json.loads(path.read_text("utf-8"))["cpu"]
        for path in sorted(out.glob(f"*/{TIMES}"))
        if path.parent.name in STAGES
    }
    if set(stages) != set(STAGES):
        return {}
    stages["all"] = sum(stages.values())
    return {f"cpu_seconds.{name}": seconds for name, seconds in stages.items()}


def collect(outs: dict[int, Path]) -> dict[str, Any]:
    """For every number that all evaluations hold: its value by seed, mean and sd.

    And the curves of PPO, for the picture, rounded to three digits.
    """
    evaluations = {
        seed: json.loads((out / "12_evaluation/evaluation.json").read_text("utf-8"))
        for seed, out in outs.items()
    }
    by_seed = {
        seed: numbers(evaluation) | cpu_seconds(outs[seed])
        for seed, evaluation in evaluations.items()
    }
    first, *others = by_seed.values()
    table = {}
    for name in first:
        if all(name in other for other in others):
            values = [found[name] for found in by_seed.values()]
            table[name] = {
                "mean": statistics.fmean(values),
                "sd": statistics.stdev(values) if others else 0.0,
                "values": values,
            }
    curves = [
        {
            beta: [{k: v and round(v, 3) for k, v in row.items()} for row in rows]
            for beta, rows in evaluation.get("curves", {}).items()
        }
        for evaluation in evaluations.values()
    ]
    return {"seeds": list(outs), "numbers": table, "curves": curves}


def show(results: dict[str, Any]) -> str:
    """The table that the terminal gets: a number a line, mean ± sd, then each seed."""
    width = max((len(name) for name in results["numbers"]), default=0)
    lines = [f"{'':{width}}  {'mean ± sd':>20}  by seed {results['seeds']}"]
    for name, row in results["numbers"].items():
        values = "  ".join(f"{value:.3f}" for value in row["values"])
        spread = f"{row['mean']:.3f} ± {row['sd']:.3f}"
        lines.append(f"{name:{width}}  {spread:>20}  {values}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="./course seeds", description="The pipeline on several seeds."
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    args = parser.parse_args(argv)
    outs = {seed: ROOT / "runs" / "seeds" / str(seed) for seed in args.seeds}
    begin, failed = time.monotonic(), []
    with ThreadPoolExecutor(max_workers=min(2, os.cpu_count() or 1)) as pool:
        for seed, status in zip(outs, pool.map(run_seed, outs, outs.values())):
            verdict = f"failed, see {outs[seed]}/log.txt" if status else "complete"
            print(f"seed {seed}: {verdict}, after {time.monotonic() - begin:.0f} s")
            failed += [seed] if status else []
    if failed:
        return 1
    results = collect(outs)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    figure = over_optimisation_by_seed(results["curves"])
    figure.savefig(PICTURE, dpi=100)
    update_readme(ROOT / "README.md", results)
    print(f"\n{show(results)}\n\nwritten to {RESULTS}, and into the README\n")
    verdicts = bars(results)
    for text, met, found in verdicts:
        print(f"{'met   ' if met else 'NOT MET'} {text}: {found}")
    return 0 if all(met for _, met, _ in verdicts) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("Stopped. Run the same command again: it resumes.")

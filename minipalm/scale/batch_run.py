"""The memory of a batch run's trainings, said and measured.

    python -m minipalm.scale.batch_run RUN      keep what those of this run took, and
                                                show it beside what the planner says

Sampling, in 08 and 12, leaves no metrics, so it is not among them.
"""

import argparse
import datetime
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minipalm.config import get_preset
from minipalm.data.files import write_text
from minipalm.scale.gpu import GIB, GPUS
from minipalm.scale.measured import RESULTS
from minipalm.scale.plan import plan
from minipalm.train.ceiling import NAMES
from minipalm.train.progress import MACHINE, read_object
from minipalm.train.run import read_metrics

RUN = RESULTS.with_name("batch_run.json")
LOOPS = {  # the planner's stages, and where a run keeps their metrics
    "06 pretraining": "06_palm/policy",
    "06 trunk": "06_palm/trunk",
    "07 SFT": "07_sft/policy",
    "07 trunk": "07_sft/trunk",
    "08 reward model": "08_reward_model/training",
    "11 PPO": "11_ppo/beta-*",
}


def of_run(folder: Path) -> dict[str, Any]:
    """What the trainings of a batch run took, from its metrics.

    Returns:
        scale, gpus (how many), gpu (their name), torch, date; and gib: of each training
        the most that was allocated at once on the GPU of rank 0.

    Raises:
        ValueError: it was on no GPU that the planner knows, or has not trained it all.
    """
    machine, done = read_object(folder / MACHINE), folder / "06_palm" / "done.json"
    if machine.get("gpu") not in NAMES:
        raise ValueError(
            f"{folder}: expected a batch run on one of {', '.join(NAMES)}; it was on "
            f"{machine.get('gpu') or 'none'}"
        )
    gib = {}
    for stage, path in LOOPS.items():
        rows = [row for loop in folder.glob(path) for row in read_metrics(loop)]
        if not rows:
            raise ValueError(f"{folder}: expected all trainings, found none of {stage}")
        gib[stage] = max(row["memory"] for row in rows)
    return {
        "scale": read_object(done)["scale"],
        "gpus": machine["ranks"],
        "gpu": machine["gpu"],
        "torch": machine["torch"],
        "date": datetime.date.fromtimestamp(done.stat().st_mtime).isoformat(),
        "gib": gib,
    }


def said(run: Mapping[str, Any]) -> dict[str, float]:
    """GiB that the planner says for the same trainings."""
    stages = plan(get_preset(run["scale"]), GPUS[NAMES[run["gpu"]]], run["gpus"])
    return {one.name: one.peak / GIB for one in stages if one.name in LOOPS}


def stages_table(run: Mapping[str, Any]) -> str:
    """Said and measured, as a table of Markdown."""
    lines = ["| training | GiB said | measured | off by |", "| --- | --- | --- | --- |"]
    for stage, gib in said(run).items():
        was = run["gib"][stage]
        lines.append(f"| {stage} | {gib:.1f} | {was:.1f} | {gib / was - 1:+.1%} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m minipalm.scale.batch_run", description=__doc__.split("\n")[0]
    )
    parser.add_argument("run", type=Path, help="a batch run's folder")
    args = parser.parse_args(argv)
    try:
        run = of_run(args.run)
    except ValueError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    write_text(RUN, json.dumps(run, indent=1) + "\n")
    print(stages_table(run))
    return 0


if __name__ == "__main__":
    sys.exit(main())

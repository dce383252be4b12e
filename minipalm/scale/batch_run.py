"""The memory of a batch run's stages, said and measured.

python -m minipalm.scale.batch_run RUN     keep what the stages of this run took, and
                                           show it beside what the planner says
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minipalm.config import get_preset
from minipalm.data.files import write_text
from minipalm.scale.gpu import GIB, GPUS
from minipalm.scale.measured import RESULTS, read_results
from minipalm.scale.plan import plan
from minipalm.train.ceiling import NAMES
from minipalm.train.progress import MACHINE
from minipalm.train.run import read_metrics

LOOPS = {  # the planner's stages, and where a run keeps their metrics
    "06 pretraining": "06_palm/policy",
    "06 trunk": "06_palm/trunk",
    "07 SFT": "07_sft/policy",
    "07 trunk": "07_sft/trunk",
    "08 reward model": "08_reward_model/training",
    "11 PPO": "11_ppo/beta-*",
}


def of_run(folder: Path) -> dict[str, Any]:
    """What the stages of a batch run took, from its metrics.

    Returns:
        scale, number of GPUs and their name; and of each stage the most GiB that were
        allocated at once on the GPU of rank 0.

    Raises:
        ValueError: it was on no GPU that the planner knows.
    """
    machine = json.loads((folder / MACHINE).read_text("utf-8"))
    if machine["gpu"] not in NAMES:
        raise ValueError(
            f"{folder}: expected a run on one of {', '.join(NAMES)}; it was on "
            f"{machine['gpu'] or 'a processor'}"
        )
    done = json.loads((folder / "06_palm" / "done.json").read_text("utf-8"))
    most = {
        stage: max(
            line["memory"] for loop in folder.glob(path) for line in read_metrics(loop)
        )
        for stage, path in LOOPS.items()
    }
    return {
        "scale": done["scale"],
        "gpus": machine["ranks"],
        "gpu": machine["gpu"],
        "gib": most,
    }


def said(run: Mapping[str, Any]) -> dict[str, float]:
    """GiB that the planner says for the same stages."""
    stages = plan(get_preset(run["scale"]), GPUS[NAMES[run["gpu"]]], run["gpus"])
    return {one.name: one.peak / GIB for one in stages if one.name in LOOPS}


def stages_table(run: Mapping[str, Any]) -> str:
    """Said and measured, as a table of Markdown."""
    lines = ["| stage | GiB said | measured | off by |", "| --- | --- | --- | --- |"]
    for stage, gib in said(run).items():
        was = run["gib"][stage]
        lines.append(f"| {stage} | {gib:.1f} | {was:.1f} | {gib / was - 1:+.1%} |")
    return "\n".join(lines)


def main(folder: str) -> None:
    run = of_run(Path(folder))
    results = read_results()
    write_text(RESULTS, json.dumps(results | {"run": run}, indent=1) + "\n")
    print(stages_table(run))


if __name__ == "__main__":
    main(*sys.argv[1:])

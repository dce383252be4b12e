"""The stage notebooks' code without Jupyter, to try a machine at any scale.

    python -m bench.stages full-lora:3 /tmp/run                         one GPU
    torchrun --nproc-per-node 2 -m bench.stages full:3 /tmp/run         two
    python -m bench.stages smoke /tmp/run 06_palm 07_sft                some stages
    python -m bench.stages full-lora:3 /tmp/run 15_offline              lesson 15's

It runs the cells of a batch run, stage after stage in one process a rank, and prints
for each stage its seconds, and of each training run the last line of metrics: loss,
seconds of every phase, tokens a second, GiB of GPU memory. Stages that are complete
are left out.

Checkpoints of training are not written (at full size up to 99 GB each) unless
--checkpoints is given; the results that later stages read always are. To see a run
resume: --checkpoints, end it with kill -9 after some steps, and start it again.
"""

import argparse
import gc
import json
import time
from pathlib import Path
from typing import Any

import torch

from minipalm.course import ROOT
from minipalm.course.inputs import STAGES
from minipalm.parallel import barrier, is_first
from minipalm.train.run import Run

CLASSROOM = "classroom"


def run_cells(stage: str, scale: str, out: Path) -> None:
    """The code cells of a stage's solution, without those that only teach."""
    notebook = json.loads((ROOT / "solutions" / f"{stage}.ipynb").read_text("utf-8"))
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in notebook["cells"]:
        tags = cell["metadata"].get("tags", [])
        if cell["cell_type"] == "code" and CLASSROOM not in tags:
            exec(compile("".join(cell["source"]), stage, "exec"), names)
            if "parameters" in tags:
                names |= {"scale": scale, "out": str(out)}


def last_metrics(folder: Path) -> dict[str, Any]:
    """The last line of each training run of a stage."""
    return {
        path.parent.name: json.loads(path.read_text("utf-8").splitlines()[-1])
        for path in sorted(folder.glob("*/metrics.jsonl"))
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.stages")
    parser.add_argument("scale", help="such as full-lora:3, full:3, smoke")
    parser.add_argument("out", type=Path, help="folder of the run")
    parser.add_argument(
        "stages", nargs="*", default=STAGES, help="the pipeline's, if none is named"
    )
    parser.add_argument("--checkpoints", action="store_true")
    args = parser.parse_args()
    if not args.checkpoints:
        Run.save = lambda *_, **__: None  # type: ignore[method-assign]
    for stage in args.stages:
        if (args.out / stage / "done.json").exists():
            continue
        start = time.perf_counter()
        run_cells(stage, args.scale, args.out)
        gc.collect()  # networks, and the graphs that hold them
        torch.compiler.reset()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        barrier()
        if is_first():
            seconds = round(time.perf_counter() - start, 1)
            told = {"stage": stage, "seconds": seconds}
            print("\n" + json.dumps(told | last_metrics(args.out / stage)), flush=True)


if __name__ == "__main__":
    main()

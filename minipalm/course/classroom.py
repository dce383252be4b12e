"""What a lesson of the pipeline does first when a learner runs it."""

import json
import shutil
from pathlib import Path

from minipalm.course.run import STAGES

LENDER = Path("runs/toy")  # what `./course run` has made


def borrow(out: str, stages: tuple[str, ...], scale: str) -> None:
    """Copy those stages that {out} does not have from runs/toy, at the same scale.

    Prints where each one comes from. One that is nowhere to be had is left to the cell
    that needs it: its error says which lesson makes it.
    """
    for stage in stages:
        if scale_of(Path(out, stage)) is not None:
            print(f"{stage}: from {out}")
        elif scale_of(LENDER / stage) == scale:
            shutil.copytree(LENDER / stage, Path(out, stage), dirs_exist_ok=True)
            print(f"{stage}: copied from {LENDER}")


def start_afresh(out: str, stage: str, scale: str) -> None:
    """Train this stage anew in {out}/{stage}, from the stages before it (see `borrow`).

    What `./course run` has made in runs/toy stays as it is.
    """
    folder = Path(out, stage)
    for old in folder.iterdir() if Path(out) != LENDER and folder.is_dir() else ():
        if old.is_dir():
            shutil.rmtree(old, ignore_errors=True)
        elif old.suffix != ".ipynb":  # a batch run is writing its notebook there
            old.unlink()
    borrow(out, STAGES[: STAGES.index(stage)], scale)


def scale_of(stage: Path) -> str | None:
    """The scale of a complete stage."""
    done = stage / "done.json"
    return json.loads(done.read_text("utf-8"))["scale"] if done.is_file() else None

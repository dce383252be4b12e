"""What a lesson of the pipeline does first when a learner runs it."""

import json
import shutil
from pathlib import Path

from minipalm.course.inputs import stages_until

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
            # without stage.json: the copy is the learner's, and may be trained anew
            shutil.copytree(
                LENDER / stage,
                Path(out, stage),
                dirs_exist_ok=True,
                ignore=shutil.ignore_patterns("stage.json"),
            )
            print(f"{stage}: copied from {LENDER}")


def start_afresh(out: str, stage: str, scale: str) -> None:
    """Train this stage anew in {out}/{stage}, from the stages before it (see `borrow`).

    What `./course run` has made stays as it is: in runs/toy, and wherever its
    stage.json says so, which is printed.
    """
    folder = Path(out, stage)
    if made_by_run(folder):
        if Path(out) != LENDER:
            print(
                f"{folder} was made by ./course run, so nothing in it is trained anew: "
                'to train elsewhere, change `out` above, for example to "runs/again"'
            )
    elif Path(out) != LENDER and folder.is_dir():
        for old in folder.iterdir():
            if old.is_dir():
                shutil.rmtree(old, ignore_errors=True)
            elif old.suffix != ".ipynb":  # a batch run is writing its notebook there
                old.unlink()
    borrow(out, stages_until(stage)[:-1], scale)


def made_by_run(stage: Path) -> bool:
    """Whether the folder is one that `./course run` keeps its record in."""
    return (stage / "stage.json").is_file()


def scale_of(stage: Path) -> str | None:
    """The scale of a complete stage."""
    done = stage / "done.json"
    return json.loads(done.read_text("utf-8"))["scale"] if done.is_file() else None

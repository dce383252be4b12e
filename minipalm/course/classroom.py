"""What a lesson of the pipeline does first when a learner runs it."""

import json
import shutil
from pathlib import Path

from minipalm.course.run import STAGES

LENDER = Path("runs/toy")  # what `./course run` has made


def start_afresh(out: str, stage: str, scale: str = "toy") -> None:
    """Train this stage anew, from the stages before it.

    Removes the folder {out}/{stage}. Earlier stages that {out} does not have are copied
    from runs/toy, if `./course run` has made them there at the same scale. What is in
    runs/toy stays as it is.

    Prints what it did. A stage that is nowhere to be had is left to the cell that needs
    it: its error says which lesson makes it.
    """
    folder = Path(out)
    shutil.rmtree(folder / stage, ignore_errors=True)
    for earlier in STAGES[: STAGES.index(stage)]:
        if (folder / earlier / "done.json").is_file():
            print(f"{earlier}: yours, from {folder}")
        elif scale_of(LENDER / earlier) == scale:
            shutil.copytree(LENDER / earlier, folder / earlier, dirs_exist_ok=True)
            print(f"{earlier}: copied from {LENDER}")
    print(f"{stage}: begins afresh in {folder}")


def scale_of(stage: Path) -> str | None:
    """The scale of a complete stage."""
    done = stage / "done.json"
    return json.loads(done.read_text("utf-8"))["scale"] if done.is_file() else None

"""How each process of a stage ended badly, and which of them was the first.

Where one rank fails, the others soon do as well: they miss it in a collective, or are
stopped. So each leaves a note beside its notebook, NAME.rank-1.ended.json, and whoever
wants to know why the stage ended looks at all of them.
"""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

OWN, LOST, STOPPED = "own", "lost", "stopped"
SUFFIX = ".ended.json"
# What gloo, NCCL and torchrun's store say where the other end is not there any more.
GONE = re.compile(
    r"Connection (was )?(likely )?(closed|reset|refused|aborted)|Broken pipe|"
    r"remote process exited|ncclRemoteError|recv, got 0 bytes|Timed out waiting"
)


@dataclass(frozen=True)
class End:
    rank: int | None  # None: there was one process only
    kind: str  # OWN: by itself; LOST: it missed another rank; STOPPED: by a signal
    what: str  # "cell [16]: ValueError: too long"
    time: float  # seconds since 1970

    def __str__(self) -> str:
        return self.what if self.rank is None else f"rank {self.rank}: {self.what}"


def misses_another(name: str, message: str) -> bool:
    """Whether a cell's error only says that another rank is gone."""
    collective = name == "RuntimeError" or name.startswith("Dist")
    return collective and bool(GONE.search(message))


def write_end(output: Path, end: End) -> None:
    """Leave the note of the process whose notebook is output."""
    output.with_suffix(SUFFIX).write_text(json.dumps(asdict(end)) + "\n", "utf-8")


def read_ends(folder: Path) -> list[End]:
    """The notes in a stage's folder; a broken one is as if it were not there."""
    ends = []
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            ends.append(End(**json.loads(path.read_text("utf-8"))))
        except (OSError, ValueError, TypeError):
            pass
    return ends


def forget_ends(folder: Path) -> None:
    """Remove the notes of the time before, also of ranks that there are no more."""
    for path in folder.glob(f"*{SUFFIX}"):
        path.unlink(missing_ok=True)


def first_cause(ends: list[End]) -> End | None:
    """The first that failed by itself; where none did, the first of all."""
    return min(ends, key=lambda end: (end.kind != OWN, end.time), default=None)


def last_cell(output: Path) -> tuple[str, tuple[str, str] | None]:
    """Where a partial notebook ends: "cell [16]: ", and the cell's error if it has one.

    The error is its name and its message. Both are empty where nothing has run.
    """
    try:
        cells = json.loads(output.read_text("utf-8"))["cells"]
    except (OSError, ValueError, KeyError, TypeError):
        return "", None
    number, error = None, None
    for cell in cells:
        begun = cell["metadata"].get("papermill", {}).get("start_time")
        if cell["cell_type"] != "code" or not begun:
            continue
        number, error = cell["execution_count"] or number, None
        for each in cell["outputs"]:
            if each["output_type"] == "error":
                error = each["ename"], each["evalue"]
    return ("" if number is None else f"cell [{number}]: "), error

"""How each process of a stage ended badly, and which of them was the first.

Where one rank fails, the others soon do as well: they miss it in a collective, or are
stopped. So each leaves a note beside its notebook, NAME.rank-1.ended.json, and whoever
wants to know why the stage ended looks at all of them.
"""

import json
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from minipalm.stopping import Stopped

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

    The error is its name and its message. Both are empty where nothing has begun.
    """
    try:
        cells = json.loads(output.read_text("utf-8"))["cells"]
    except (OSError, ValueError, KeyError, TypeError):
        return "", None
    begun = [
        cell
        for cell in cells
        if cell["cell_type"] == "code"
        and cell["metadata"].get("papermill", {}).get("start_time")
    ]
    if not begun:
        return "", None
    numbers = [cell["execution_count"] or 0 for cell in begun]
    number = numbers[-1] or max(numbers) + 1  # it died before it was given one
    errors = [out for out in begun[-1]["outputs"] if out["output_type"] == "error"]
    raised = (errors[0]["ename"], errors[0]["evalue"]) if errors else None
    return f"cell [{number}]: ", raised


def kernel_died(error: BaseException) -> bool:
    """Whether papermill has seen that, or we when a signal stopped us."""
    seen = [type(each).__name__ for each in (error, error.__context__)]
    return "DeadKernelError" in seen or getattr(error, "kernel_died", False)


def end_of(error: BaseException, output: Path, rank: int | None) -> End:
    """How this process ended: the failing cell's own error where there is one.

    A rank that is stopped may have failed before: torchrun then heard first of another
    one, which had only missed this one.
    """
    where, raised = last_cell(output)
    if raised:
        name, message = raised[0], " ".join(raised[1].split())
        kind, what = OWN, f"{where}{name}: {message}"
        if rank is not None and misses_another(name, message):
            said = message.partition(". ")[0]  # what follows is advice
            kind, what = LOST, f"{where}another rank is gone ({name}: {said})"
    elif kernel_died(error):
        kind, what = OWN, f"{where}the kernel died"
    elif isinstance(error, Stopped):
        kind, what = STOPPED, f"{where}stopped by {error.signal.name}"
    else:
        lines = str(error).strip().splitlines() or [""]
        kind, what = OWN, f"{type(error).__name__}: {lines[-1]}"
    return End(rank, kind, what, time.time())

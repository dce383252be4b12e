"""TensorBoard's event files beside metrics.jsonl: a run's curves, while it goes.

    python -m minipalm.train.events runs/full --follow
    tensorboard --logdir runs/full

The files are made from metrics.jsonl, by somebody who looks on: training knows nothing
of them. They need the library tensorboard; without it there are none.
"""

import argparse
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from minipalm.train.progress import Row, Training, parse_row, read_progress

FILES = "events.out.tfevents.*"
POLL = 5.0  # seconds
ROOM = 1 << 16  # bytes that must be free to begin


class Events:
    """The event file of one training run, as far as its metrics.jsonl goes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.inode = self.offset = 0
        self.writer: Any = None  # a SummaryWriter, from the first line on

    def close(self) -> None:
        if self.writer:
            with suppress(OSError):  # one that failed before, which was said
                self.writer.close()
        self.writer = None

    def update(self, training: Training) -> None:
        """Add what has been logged since; begin anew if the run was set back.

        Raises:
            OSError: a full disk, say. The next call begins anew.
        """
        try:
            with (self.folder / "metrics.jsonl").open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self.inode or status.st_size < self.offset:
                    self.begin(status.st_ino)
                file.seek(self.offset)
                text, end, _ = file.read().rpartition(b"\n")  # whole lines only
        except FileNotFoundError:
            return
        self.offset += len(text + end)
        lines = text.decode("utf-8", "replace").splitlines()
        rows = [row for line in lines if (row := parse_row(line))]
        try:
            for row, when in zip(rows, times(rows, status.st_mtime)):
                step = int(row["step"])
                for name, value in scalars(row, training).items():
                    self.writer.add_scalar(name, value, step, when)
            if rows:
                self.writer.flush()
        except OSError:
            self.inode = 0  # what the file holds now, nobody knows
            raise

    def begin(self, inode: int) -> None:
        """A new event file in place of the old ones."""
        from torch.utils.tensorboard import SummaryWriter

        self.close()
        with TemporaryFile(dir=self.folder) as file:
            file.write(bytes(ROOM))  # SummaryWriter's thread is loud on a full disk
            file.flush()
        for old in self.folder.glob(FILES):
            old.unlink(missing_ok=True)
        self.writer = SummaryWriter(str(self.folder))
        self.inode, self.offset = inode, 0


def times(rows: list[Row], end: float) -> list[float]:
    """When each row was logged, if the last was at `end`, from the seconds of steps."""
    found = []
    for row in reversed(rows):
        found.append(end)
        end -= row.get("seconds", 0.0)
    return found[::-1]


def scalars(row: Row, training: Training) -> dict[str, float]:
    """What TensorBoard shows of a row: its numbers, and what follows from them."""
    shown = {name: value for name, value in row.items() if name != "step"}
    shown["progress"] = row["step"] / max(training.steps, 1)
    if "seconds" in row:
        left = training.steps - row["step"]
        shown["hours_left"] = (row["seconds"] + training.between) * left / 3600
    share = training.share(row)
    if share is not None:
        shown["share_of_ceiling"] = share
    return shown


def follow(out: Path, over: threading.Event) -> None:
    """Write events of all trainings in out until `over`, and then once more.

    Where that fails, it is said once, and tried again at every look.
    """
    files: dict[str, Events] = {}
    last = said = False
    while not last:
        last = over.wait(POLL)
        if not out.is_dir():
            continue
        for training in read_progress(out).trainings:
            events = files.setdefault(training.name, Events(out / training.name))
            try:
                events.update(training)
            except OSError as error:
                if not said:
                    where = f"TensorBoard's files in {out / training.name}"
                    print(f"{where}: {error}; to be tried again", file=sys.stderr)
                said = True
    for events in files.values():
        events.close()


@contextmanager
def following(out: Path) -> Iterator[None]:
    """Event files are written beside this block, where tensorboard is installed."""
    if not find_spec("tensorboard"):
        yield
        return
    over = threading.Event()
    thread = threading.Thread(target=follow, args=(out, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(30)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m minipalm.train.events",
        description="Write TensorBoard's event files beside a run's metrics.",
    )
    parser.add_argument("run", type=Path, help="a folder such as runs/full")
    parser.add_argument(
        "--follow", action="store_true", help="go on until it is stopped by Ctrl-C"
    )
    args = parser.parse_args(argv)
    if not find_spec("tensorboard"):
        print(f'{parser.prog}: needs pip install -e ".[full]"', file=sys.stderr)
        return 2
    if not args.run.is_dir():
        print(f"{parser.prog}: {args.run}: there is no run", file=sys.stderr)
        return 2
    over = threading.Event()
    if not args.follow:
        over.set()
    try:
        follow(args.run, over)
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""One writer at a time for a folder of results."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def lock(folder: Path) -> Iterator[IO[str]]:
    """Hold folder for this process, or raise RuntimeError if another one holds it.

    The system gives the lock back when its holder ends, however it ends, so no lock is
    ever stale. A child that is passed the file's descriptor holds the lock as well.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+", encoding="utf-8") as file:
        try:
            wait_for_lookers(file)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise RuntimeError(
                f"{folder} is being written by {holder}.\n"
                "Wait for it, stop it, or give this run another --out."
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        yield file


def is_held(folder: Path) -> bool:
    """Whether somebody writes into folder; changes nothing there."""
    try:
        with (folder / ".lock").open("r+", encoding="utf-8") as file:
            look(file)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def wait_for_lookers(file: IO[str]) -> None:
    """Acquire the lock; who only looks has it for a moment. Raises OSError."""
    for _ in range(30):
        try:
            return acquire(file)
        except OSError:
            time.sleep(0.01)
    acquire(file)


if sys.platform == "win32":

    def acquire(file: IO[str]) -> None:
        import msvcrt

        file.seek(1000)  # a byte that nobody reads
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

    look = acquire  # Windows has no lock that is shared

else:

    def acquire(file: IO[str]) -> None:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def look(file: IO[str]) -> None:
        """Raise OSError if somebody has acquired it; those who look share it."""
        import fcntl

        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)

"""Stages that are to be made again: out of the way first, removed when all is well.

Whatever can be refused is refused while they wait aside, and then they come back. A
command that is killed meanwhile leaves them there; the next one puts them back.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

ASIDE, GONE = ".aside", ".gone"  # .06_palm.aside


def _hidden(folder: Path, state: str) -> Path:
    return folder.with_name(f".{folder.name}{state}")


def put_back(out: Path) -> None:
    """Undo what a command that was killed had begun, and end what it had agreed to."""
    for old in out.glob(f".*{GONE}"):
        shutil.rmtree(old)
    for old in out.glob(f".*{ASIDE}"):
        folder = out / old.name[1 : -len(ASIDE)]
        shutil.rmtree(folder, ignore_errors=True)  # what was begun in its place
        old.rename(folder)


@contextmanager
def set_aside(out: Path, stages: Iterable[str]) -> Iterator[Callable[[], None]]:
    """In this block the stages are not there; after it they are, unless they may go.

    Args:
        out: folder of the run; nobody else works there.
        stages: names of their folders.

    Yields:
        what is to be called when they may go: it removes them for good.
    """
    folders = [out / stage for stage in stages if (out / stage).is_dir()]

    def remove() -> None:
        for folder in folders:  # all are gone at once, however long removing takes
            _hidden(folder, ASIDE).rename(_hidden(folder, GONE))
        for folder in folders:
            print(f"{folder.name}: removed, to be made again", flush=True)
            shutil.rmtree(_hidden(folder, GONE))

    try:
        for folder in folders:
            folder.rename(_hidden(folder, ASIDE))
        yield remove
    finally:
        put_back(out)

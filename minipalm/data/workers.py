"""The same work on many things by several processes, in order."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import connection, get_context, parent_process
from typing import Any, TypeVar

M = TypeVar("M")
X = TypeVar("X")
Y = TypeVar("Y")


def cores() -> int:
    """How many this process may use, 32 at most."""
    if hasattr(os, "sched_getaffinity"):
        return min(len(os.sched_getaffinity(0)), 32)
    return min(os.cpu_count() or 1, 32)


def in_order(
    work: Callable[[X], Y], items: Iterable[tuple[M, X]], workers: int
) -> Iterator[tuple[M, Y]]:
    """`(note, work(x))` for each `(note, x)`, by so many processes; 1: by this one.

    Only a few items are under way at a time, however many there are. `work` must be
    able to travel to other processes; it does so once.
    """
    if workers == 1:
        yield from ((note, work(x)) for note, x in items)
        return
    spawn = get_context("spawn")  # not fork: this process may have threads and a GPU
    with ProcessPoolExecutor(workers, spawn, _begin, (work,)) as pool:
        under_way: deque[tuple[M, Future[Y]]] = deque()
        for note, x in items:
            under_way.append((note, pool.submit(_do, x)))
            if len(under_way) > 2 * workers:
                note, future = under_way.popleft()
                yield note, future.result()
        for note, future in under_way:
            yield note, future.result()


# --- in the other processes -----------------------------------------------------------

_work: Callable[[Any], Any]


def _begin(work: Callable[[Any], Any]) -> None:
    """Remember what to do, and end with the parent: if it is killed, no work comes."""
    global _work
    _work = work
    parent = parent_process()
    assert parent

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _do(x: Any) -> Any:
    return _work(x)

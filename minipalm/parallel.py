"""Several processes as one: who I am, which rows are mine, what all have together.

torchrun starts as many processes as there are GPUs, and each runs the same program (its
number is called its rank). All know the whole batch and draw the same random numbers;
each computes its share of the rows, and sums over the ranks are the numbers that one
process would have found. Without torchrun every function here is the identity.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Rows = TypeVar("Rows")  # whatever has a length and gives some of its rows by [a:b]


class Ranks(NamedTuple):
    rank: int  # of this process, from 0
    world: int  # how many there are
    device: torch.device  # this process's own GPU, or the CPU where there is none


def ranks() -> Ranks:
    """Who I am among how many; the first call joins them.

    Several processes find each other by the environment that torchrun sets. They speak
    through NCCL about what lies on GPUs, through gloo about all else.
    """
    world = int(os.environ.get("WORLD_SIZE", 1))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    if world == 1:
        return Ranks(0, 1, device)
    if not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(minutes=30))
    return Ranks(dist.get_rank(), world, device)


def is_first() -> bool:
    """Whether this process is the one that writes files, and shows bars and figures."""
    return int(os.environ.get("RANK", 0)) == 0


def barrier() -> None:
    """Go on when all have come here."""
    if ranks().world > 1:
        summed(0.0)


@contextmanager
def first_alone() -> Iterator[None]:
    """The first process runs the block before the others do.

    So what it leaves on a disk that all share, they find there.
    """
    if not is_first():
        barrier()
    try:
        yield
    finally:
        if is_first():
            barrier()


# --- rows ---------------------------------------------------------------------------


def share(rows: Rows) -> Rows:
    """This process's part of a batch: all parts are equally long, in order.

    Example: rows 0 to 7 for two processes: 0 to 3 for one, 4 to 7 for the other.

    Raises:
        ValueError: it cannot be cut so.
    """
    rank, world, _ = ranks()
    if world == 1:
        return rows
    number: int = len(rows)  # type: ignore[arg-type]
    if number % world:
        raise ValueError(
            f"{number} rows cannot be shared equally among {world} processes: choose "
            f"batch sizes in minipalm/config.py that are multiples of {world}"
        )
    part = number // world
    return rows[rank * part : (rank + 1) * part]  # type: ignore[index]


def of_all(rows: int) -> int:
    """How many rows there are in all, if each process takes so many."""
    return rows * ranks().world


def gather_rows(mine: Tensor) -> Tensor:
    """The rows of all, in order, from equally many rows of each; undoes `share`."""
    _, world, _ = ranks()
    if world == 1:
        return mine
    sent = mine.to(torch.uint8) if mine.dtype == torch.bool else mine
    parts = [torch.empty_like(sent) for _ in range(world)]
    dist.all_gather(parts, sent.contiguous())
    return torch.cat(parts).to(mine.dtype)


@torch.no_grad()
def row_by_row(
    compute: Callable[[Tensor], Tensor], number: int, size: int = 0
) -> Tensor:
    """What `compute` says about each of `number` rows; each process asks about some.

    Args:
        compute: row numbers (on the CPU) to a tensor with one row for each; what it
            says of a row must not depend on the rows beside it.
        number: of rows; need not be a multiple of anything.
        size: rows of one call at most; 0 for all at once.
    """
    _, world, _ = ranks()
    filled = -(-number // world) * world  # the last rows are asked about twice
    rows = share(torch.arange(filled).clamp(max=number - 1))
    parts = [compute(part) for part in rows.split(size or max(len(rows), 1))]
    mine = parts[0] if len(parts) == 1 else torch.cat(parts)
    return mine if world == 1 else gather_rows(mine)[:number]


# --- numbers ------------------------------------------------------------------------


def summed(x: Any) -> Any:
    """The sum over all processes of a number or a tensor; the same on each."""
    _, world, device = ranks()
    if world == 1:
        return x
    if isinstance(x, Tensor):
        everywhere = x.detach().clone()
        dist.all_reduce(everywhere)
        return everywhere
    return summed(torch.tensor(x, dtype=torch.float64, device=device)).item()


def check_same(what: str, text: str) -> None:
    """Refuse to go on where processes that must agree do not.

    Raises:
        ValueError: another process has another text.
    """
    _, world, _ = ranks()
    if world == 1:
        return
    texts: list[Any] = [None] * world
    dist.all_gather_object(texts, text)
    if any(other != texts[0] for other in texts):
        raise ValueError(f"{what}: not the same in all processes: {set(texts)}")

"""Where the ranks of a run are: on this machine, and on others that take part."""

import argparse
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass

PORT = 29_400  # torchrun's own choice, too


@dataclass(frozen=True)
class Nodes:
    """One rank here, in a process without torchrun, unless something else is said."""

    ranks: int = 1  # on this machine
    count: int = 1  # machines; each has as many ranks
    number: int = 0  # of this machine; number 0 decides what is run
    host: str = ""  # of machine 0, as the others reach it
    port: int = PORT
    name: str = "minipalm"  # of the job: two jobs with one endpoint do not mix
    more: tuple[str, ...] = ()  # torchrun's own options

    @property
    def several(self) -> bool:
        return self.count > 1

    def launcher(self, index: int) -> list[str]:
        """What Python is given to start the index-th stage on all ranks.

        Each stage is a job of torchrun, and meets at two ports of its own, one for
        torchrun and one for Heartbeat: whoever is early cannot meet those who are still
        leaving the stage before.
        """
        if self.ranks == 1 and not self.several:
            return []
        start = ["-m", "minipalm.course.supervise", f"--nproc-per-node={self.ranks}"]
        if not self.several:
            return [*start, "--standalone", *self.more]
        return [
            *start,
            f"--nnodes={self.count}",
            f"--node-rank={self.number}",
            "--rdzv-backend=static",  # machine 0 has rank 0
            f"--rdzv-endpoint={self.host}:{self.port + 2 * index}",
            f"--rdzv-id={self.name}-{index}",
            *self.more,
        ]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that say where ranks are."""
    here = parser.add_argument_group("ranks on this machine: one a GPU")
    here.add_argument("--gpus", default="all", help="how many, or all (the default)")
    here.add_argument("--cpus", type=int, help="no GPU: so many ranks on the CPU")
    many = parser.add_argument_group("several machines: the same command on each")
    many.add_argument("--nnodes", type=int, default=1, help="how many (default: 1)")
    many.add_argument(
        "--node-rank", type=int, help="this one's number; default: Slurm's"
    )
    many.add_argument(
        "--rdzv-endpoint", metavar="HOST:PORT", help="of machine 0, where all meet"
    )
    many.add_argument("--rdzv-id", help="of the job; default: Slurm's")
    many.add_argument(
        "--torchrun", default="", help="further options of torchrun, in one string"
    )


def ranks_here(gpus: str, cpus: int | None, found: int) -> int:
    """How many ranks this machine gets. found: its GPUs. Raises ValueError.

    >>> ranks_here("all", None, found=8), ranks_here("2", None, found=8)
    (8, 2)
    >>> ranks_here("all", None, found=0)  # no GPU: one process on the CPU
    1
    """
    if cpus is not None:
        if gpus != "all":
            raise ValueError(f"--gpus {gpus} and --cpus {cpus}: give one of the two")
        if cpus < 1:
            raise ValueError(f"--cpus must be 1 or more (got {cpus})")
        return cpus
    if gpus == "all":
        return max(found, 1)
    if not gpus.isdigit() or int(gpus) < 1:
        raise ValueError(f"--gpus must be all, or a number from 1 (got {gpus!r})")
    if int(gpus) > found:
        raise ValueError(
            f"--gpus {gpus}: this machine has {found}. "
            "For ranks on the CPU, to try things: --cpus N"
        )
    return int(gpus)


def find_nodes(
    args: argparse.Namespace, found: int, env: Mapping[str, str] = os.environ
) -> Nodes:
    """What the options, and Slurm's variables, say. Raises ValueError.

    found: GPUs of this machine.
    """
    ranks = ranks_here(args.gpus, args.cpus, found)
    more = tuple(args.torchrun.split())
    if args.nnodes == 1:
        return Nodes(ranks, more=more)
    if sys.platform == "win32":
        raise ValueError("several machines: torchrun does that on Linux and macOS only")
    number = args.node_rank
    if number is None:
        number = int(env.get("SLURM_NODEID", -1))
    if not 0 <= number < args.nnodes:
        raise ValueError(
            f"--node-rank must be this machine's number, 0 to {args.nnodes - 1}"
        )
    if not args.rdzv_endpoint:
        raise ValueError(
            "--rdzv-endpoint is missing: HOST:PORT, where HOST is the machine of "
            "--node-rank 0"
        )
    host, _, port = args.rdzv_endpoint.rpartition(":")
    if not port.isdigit():
        host, port = args.rdzv_endpoint, str(PORT)
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError) as error:
        raise ValueError(
            f"--rdzv-endpoint {host}: this machine knows none of that name ({error})"
        ) from None
    name = args.rdzv_id or f"minipalm-{env.get('SLURM_JOB_ID', '0')}"
    return Nodes(ranks, args.nnodes, number, host, int(port), name, more)

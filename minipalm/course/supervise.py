"""torchrun, as `./course full` starts it: it dies with its parent, and says less.

    python -m minipalm.course.supervise --standalone --nproc-per-node 2 \\
        -m minipalm.spmd NOTEBOOK OUTPUT

The options are torchrun's own. When a rank fails, torchrun stops the others within
seconds; of its report, thirty lines of stack and log, nothing is kept. Whoever it saw
first had often only missed another rank. So the ranks leave notes, and one line says
which of them was the first that failed, where, and why.
"""

import argparse
import logging
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from minipalm.course.heartbeat import JOIN, Heartbeat
from minipalm.ends import OWN, End, first_cause, forget_ends, read_ends, write_end
from minipalm.stopping import die_with_parent

NOTES = 5.0  # seconds for the notes of other machines to come over a shared disk
PATIENCE = 10.0  # seconds before we say for whom we wait


def how_it_ended(code: int) -> str:
    """An exit code of a process in words: "with exit status 1", "by SIGKILL"."""
    if code < 0:
        return f"by {signal.Signals(-code).name}"
    return f"with exit status {code}"


def run_ranks(args: argparse.Namespace, output: Path) -> tuple[int, str]:
    """Run torchrun. Returns the exit status, and if it is not 0, what happened.

    A rank that was killed has left no note, so we leave one for it.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.run import run

    try:
        run(args)
    except ChildFailedError as error:
        ends = read_ends(output.parent)
        known = {end.rank for end in ends}
        for rank, failure in error.failures.items():
            if rank not in known:
                what = f"ended {how_it_ended(failure.exitcode)}"
                ends.append(End(rank, OWN, what, failure.timestamp))
                with suppress(OSError):
                    write_end(output.with_suffix(f".rank-{rank}.ipynb"), ends[-1])
        return 1, str(first_cause(ends))
    except RendezvousError as error:
        return 1, f"the machines did not meet: {error}"
    except SignalException as stop:
        return 128 + stop.sigval, "a machine was stopped"
    return 0, ""


def cause(folder: Path, otherwise: str, ranks: int) -> str:
    """Why a stage of so many ranks on several machines ended.

    otherwise: what is said where no rank failed by itself; a machine may be lost.
    """
    deadline = time.monotonic() + NOTES
    while True:
        ends = read_ends(folder)
        first = first_cause(ends)
        if first and first.kind == OWN:
            return str(first)
        if len(ends) == ranks or time.monotonic() > deadline:
            return otherwise
        time.sleep(0.1)


def say_who_is_missing(beat: Heartbeat, met: threading.Event, port: int) -> None:
    """One line, if after a while the machines have not met."""
    if met.wait(PATIENCE):
        return
    if beat.number:
        missing = [0]
    else:
        missing = [n for n in beat.others if not beat.seen[n][0]]
    if missing:
        names = ", ".join(map(str, missing))
        print(
            f"waiting for machine {names}: all meet at {beat.host}:{port}, within "
            f"{JOIN.seconds // 60} min",
            flush=True,
        )


def run_together(args: argparse.Namespace, output: Path) -> tuple[int, str]:
    """run_ranks on one of several machines; each learns how the others end."""
    count, per_machine = int(args.nnodes), int(args.nproc_per_node)
    host, _, port = args.rdzv_endpoint.rpartition(":")
    beat, met = Heartbeat(host, int(port) + 1, args.node_rank, count), threading.Event()
    asked = beat, met, int(port)
    threading.Thread(target=say_who_is_missing, args=asked, daemon=True).start()
    try:
        with beat:
            if beat.number:
                met.set()
            status, reason = run_ranks(args, output)
            met.set()
            if beat.ended:
                status, reason = 1, beat.ended
            beat.leave(reason)
    except RuntimeError as error:  # a port is taken, or nobody is there
        return 1, f"the machines did not meet: {error}"
    finally:
        met.set()
    if status and status < 128:
        reason = cause(output.parent, reason, count * per_machine)
    return status, reason


def main(argv: list[str] | None = None) -> int:
    die_with_parent()
    from torch.distributed.run import parse_args, parse_min_max_nnodes

    logging.disable()  # of this process alone, not of the ranks
    args = parse_args(argv)
    output = Path(args.training_script_args[-1])
    if not args.node_rank:
        forget_ends(output.parent)
    several = parse_min_max_nnodes(args.nnodes)[1] > 1
    status, reason = (run_together if several else run_ranks)(args, output)
    if status and status < 128:
        print(f"{reason}; all ranks were stopped", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())

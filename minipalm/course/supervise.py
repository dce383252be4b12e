"""torchrun, as `./course full` starts it: it dies with its parent, and says less.

    python -m minipalm.course.supervise --standalone --nproc-per-node 2 \\
        -m minipalm.spmd NOTEBOOK OUTPUT

The options are torchrun's own. When a rank fails, torchrun stops the others within
seconds; of its report, thirty lines of stack and log, one sentence is kept: which rank
it was. What went wrong has been said by that rank itself, and stands in its notebook.
"""

import argparse
import logging
import signal
import sys

from minipalm.course.heartbeat import Heartbeat
from minipalm.stopping import die_with_parent


def how_it_ended(code: int) -> str:
    """An exit code of a process in words: "with exit status 1", "by SIGKILL"."""
    if code < 0:
        return f"by {signal.Signals(-code).name}"
    return f"with exit status {code}"


def run_ranks(args: argparse.Namespace) -> tuple[int, str]:
    """Run torchrun. Returns the exit status, and if it is not 0, what happened."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.run import run

    try:
        run(args)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        how = how_it_ended(failure.exitcode)
        return max(failure.exitcode, 1), f"rank {rank} ended {how}"
    except RendezvousError as error:
        return 1, f"the machines did not meet: {error}"
    except SignalException as stop:
        return 128 + stop.sigval, "a machine was stopped"
    return 0, ""


def main(argv: list[str] | None = None) -> int:
    die_with_parent()
    from torch.distributed.run import parse_args, parse_min_max_nnodes

    logging.disable()  # of this process alone, not of the ranks
    args = parse_args(argv)
    count = parse_min_max_nnodes(args.nnodes)[1]
    if count == 1:
        status, reason = run_ranks(args)
    else:
        host, _, port = args.rdzv_endpoint.rpartition(":")
        try:
            with Heartbeat(host, int(port) + 1, args.node_rank, count) as beat:
                status, reason = run_ranks(args)
                if beat.ended:
                    status, reason = 1, beat.ended
                beat.leave(reason)
        except RuntimeError as error:  # a port is taken, or nobody is there
            status, reason = 1, f"the machines did not meet: {error}"
    if status and status < 128:
        print(f"{reason}; all ranks were stopped", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())

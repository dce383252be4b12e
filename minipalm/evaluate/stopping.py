"""When to stop: listen to a signal that the policy is not paid by."""

from collections.abc import Sequence
from typing import NamedTuple


class Stop(NamedTuple):
    """Where a run is ended, and what is kept of it; both count from 0."""

    kept: int  # the iteration whose policy is kept
    seen: int  # the last iteration that had to be run


def stop_at(signal: Sequence[float], patience: int, window: int = 1) -> Stop:
    """Stop when the signal has not reached a new high for `patience` iterations.

    The signal is noisy, so what is compared is the mean of its last `window` values, or
    of all that there are in the beginning. Nothing later than an iteration is known at
    it. A new high must be above the old one; an equal one is none.

    Args:
        signal: one number an iteration, larger is better; at least one.
        patience: iterations without a new high after which the run is ended; 1 or
            more.
        window: values that are averaged, 1 or more.

    Returns:
        `Stop(kept, seen)`: the iteration of the highest mean so far, and the last one
        run, both counted from 0. If patience never runs out, `seen` is the last of the
        signal.

    Raises:
        ValueError: there is no signal, or patience or window is below 1.

    Example: signal (1, 3, 2, 2.5, 9) with patience 2: the high of iteration 1 is not
    beaten by 2 or 3, so (1, 3); the 9 is never seen. With patience 3: (4, 4).
    """
    if not signal or patience < 1 or window < 1:
        raise ValueError(
            "a signal, patience and window of 1 or more are needed "
            f"(got {len(signal)} values, {patience} and {window})"
        )
    kept, high = 0, float("-inf")
    for now in range(len(signal)):
        recent = signal[max(0, now + 1 - window) : now + 1]
        mean = sum(recent) / len(recent)
        if mean > high:
            kept, high = now, mean
        elif now - kept >= patience:
            return Stop(kept, now)
    return Stop(kept, len(signal) - 1)

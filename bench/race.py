"""A race: our step and the peer's, in turn, on one thread, by processor time.

    python -m bench.race NAME PAIRS WARMUP RESULT.json

runs one of `bench.races.RACES` in a process of its own, so that nobody inherits the
memory of another race. `./course bench` calls it for each.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

Step = Callable[[], object]
# A peer whose own trainer owns the loop is not torn apart: it is handed a function to
# call after each of its steps, and told how many to do.
Loop = Callable[[int, Step], None]


@dataclass(frozen=True)
class Side:
    """One of the two racers.

    Attributes:
        loop: does n steps, and calls the given function after each.
        parameters: of the network that is trained or sampled from.
    """

    loop: Loop
    parameters: int


def repeat(step: Step) -> Loop:
    """The loop of a racer that is a plain function."""

    def loop(steps: int, after: Step) -> None:
        for _ in range(steps):
            step()
            after()

    return loop


@dataclass(frozen=True)
class Result:
    """Seconds of processor time, pair by pair, after the warm-up."""

    ours: list[float]
    theirs: list[float]
    our_parameters: int
    their_parameters: int

    @property
    def ratios(self) -> list[float]:
        """How many times as long the peer took, in each pair."""
        return [b / a for a, b in zip(self.ours, self.theirs, strict=True)]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)


def race(ours: Side, theirs: Side, pairs: int, warmup: int) -> Result:
    """Let both do warmup + pairs steps, alternating, and time each step.

    Our loop is driven from inside the peer's: after each of its steps, one of ours.
    """
    steps = warmup + pairs
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    mark = 0.0

    def lap(racer: str) -> None:
        nonlocal mark
        seconds[racer].append(time.process_time() - mark)
        mark = time.process_time()

    def our_turn() -> None:
        lap("theirs")
        ours.loop(1, lambda: lap("ours"))

    mark = time.process_time()
    theirs.loop(steps, our_turn)
    if any(len(times) != steps for times in seconds.values()):
        counts = {racer: len(times) for racer, times in seconds.items()}
        raise RuntimeError(f"a race of {steps} steps each had {counts}")
    return Result(
        seconds["ours"][warmup:],
        seconds["theirs"][warmup:],
        ours.parameters,
        theirs.parameters,
    )


def main(name: str, pairs: int, warmup: int, result: Path) -> None:
    import torch

    from bench.races import RACES

    torch.set_num_threads(1)
    torch.manual_seed(0)
    ours, theirs = RACES[name].sides()
    outcome = race(ours, theirs, pairs, warmup)
    result.write_text(json.dumps(asdict(outcome)), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))

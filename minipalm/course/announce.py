"""Several machines: the others learn from machine 0 that it lives, and how it goes.

Machine 0 alone looks at the data, which may take longer than machines wait for each
other where a stage begins. Its word is a file in the run's folder, which all share.
"""

import argparse
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from minipalm.config import get_preset
from minipalm.course.heartbeat import JOIN
from minipalm.data.files import fingerprint, write_text
from minipalm.train.progress import read_object

RECORD = "data.json"  # in the run's folder: machine 0's word
BEAT = 20.0  # seconds until it is written again
TELL = 10.0  # seconds until who waits says so
GONE = 120.0  # seconds without: a shared disk may show for a minute what was before


def fingerprints(args: argparse.Namespace) -> dict[str, Any]:
    """What tells a run's data, and what they must fit, from others."""
    inputs = {
        stage: {name: fingerprint(path) for name, path in files.items()}
        for stage, files in args.inputs.items()
    }
    return {"preset": repr(get_preset(args.scale)), "inputs": inputs}


@contextmanager
def announced(args: argparse.Namespace, several: bool) -> Iterator[Callable[[], None]]:
    """Around all that machine 0 does: the others learn that it lives, and how it goes.

    Its word is "reading" until what this yields is called, then "ready", and at last
    "ended". It is written again and again, with a count, and names this start: what an
    earlier one has left cannot be taken for it.

    several: there are others. If not, no word is left.
    """
    path = args.out / RECORD
    if not several:
        path.unlink(missing_ok=True)
        yield lambda: None
        return
    word: dict[str, Any] = {"start": secrets.token_hex(8), "count": 0}
    word["data"] = fingerprints(args)
    one_at_a_time, over = threading.Lock(), threading.Event()

    def say(state: str = "") -> None:
        with one_at_a_time:
            word["state"] = state or word["state"]
            word["count"] += 1
            write_text(path, json.dumps(word) + "\n")

    def repeat() -> None:
        left = JOIN.total_seconds()
        while left > 0 and not over.wait(BEAT):
            with suppress(OSError):  # the disk may soon be back
                say()
            left -= BEAT if word["state"] == "ready" else 0
        if not over.is_set():  # all have met, or never will
            with suppress(OSError):
                path.unlink(missing_ok=True)

    try:
        say("reading")
        threading.Thread(target=repeat, daemon=True).start()
        yield lambda: say("ready")
    finally:
        over.set()
        with suppress(OSError):  # what ended us shall be heard, not this
            say("ended")


def wait_for_data(args: argparse.Namespace) -> None:
    """On another machine: wait until machine 0 has checked the same data.

    That may take longer than machines wait for each other where a stage begins. A word
    that lay there before counts when it changes; only "ready" counts at once.

    Raises:
        ValueError: machine 0 has ended, is lost, or does not begin.
    """
    path, told = args.out / RECORD, False
    old, data = read_object(path), fingerprints(args)
    now: dict[str, Any] = {}
    begin = since = time.monotonic()
    while now.get("state") != "ready":
        before, now = now, read_object(path)
        known = now == old and now.get("state") != "ready"
        if known or now.get("data") != data:
            now = {}
        if now != before:
            since = time.monotonic()
        patience, why = until_when(now.get("state"), args.out)
        if time.monotonic() - since > patience:
            raise ValueError(why)
        if not told and time.monotonic() - begin > TELL:
            print(
                f"waiting for machine 0, {args.rdzv_endpoint}, to read the data: as "
                f"long as it takes, if it begins within {JOIN.seconds // 60} min",
                flush=True,
            )
            told = True
        time.sleep(0.2)


def until_when(state: str | None, out: Path) -> tuple[float, str]:
    """Seconds to wait for another word of machine 0; and why no longer."""
    if state == "reading":
        return GONE, f"machine 0 is lost: it gave no sign for {GONE:g} s"
    if state == "ended":  # there may be another start, which goes on
        return 2 * BEAT, "machine 0 ended before the first stage, and has said why"
    return JOIN.total_seconds(), (
        f"machine 0 has not begun within {JOIN.seconds // 60} min, or has said why "
        f"not. All machines must get the same command, and share {out}"
    )

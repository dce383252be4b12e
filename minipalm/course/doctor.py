"""Is this machine ready for the course?   ./course doctor

Looks at versions, memory, disk and speed, says how many minutes each lesson will take
here, and how to mend what is not as it should be. Exit status 0 if nothing stands in
the way. To say that a package is missing it needs none.
"""

import importlib.metadata as metadata
import json
import os
import platform
import re
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

from minipalm.course import ROOT

AGAIN = "./course clean --all, then the same command again"  # .venv may have no pip
SLOWEST = 3.0  # times as long as where the lessons were timed: class time still holds
NEEDED_GB = {"memory": 3.0, "disk": 2.0}  # free; a notebook's kernel takes about 1


class Finding(NamedTuple):
    """One line: what was looked at, whether it is well, and how to mend it if not."""

    what: str
    well: bool
    said: str
    mend: str = ""


def python_version() -> Finding:
    found = platform.python_version()
    return Finding(
        "Python",
        sys.version_info >= (3, 11),
        found,
        f"install Python 3.11 or newer; {AGAIN}",
    )


def packages() -> list[Finding]:
    """The packages that pyproject.toml asks for, and what is installed.

    Whether a version is in its range is only looked at where `packaging` is there.
    """
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    asked = project["dependencies"] + project["optional-dependencies"]["course"]
    findings = []
    for text in asked:
        name = re.split(r"[^\w.-]", text, maxsplit=1)[0]
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            findings.append(Finding(name, False, "is missing", AGAIN))
            continue
        well = in_range(text, version)
        said = version if well else f"{version}, not {text}"
        findings.append(Finding(name, well, said, AGAIN))
    return findings


def in_range(requirement: str, version: str) -> bool:
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return True
    return Requirement(requirement).specifier.contains(version, prereleases=True)


def memory_gb() -> tuple[float, str] | None:
    """What programs can have, or all there is where the system says only that.

    The word says which: "free" or "in all". None where it says neither.
    """
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) / 2**20, "free"
    except OSError:
        pass
    try:  # macOS
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        return pages * size / 2**30, "in all; how much is free is not known here"
    except (AttributeError, ValueError, OSError):
        return None


def room() -> list[Finding]:
    memory, disk = memory_gb(), shutil.disk_usage(ROOT).free / 2**30
    findings = [
        Finding(
            "disk",
            disk >= NEEDED_GB["disk"],
            f"{disk:.1f} GB free",
            f"make {NEEDED_GB['disk']:g} GB free where the clone lies",
        )
    ]
    if memory is not None:
        findings.append(
            Finding(
                "memory",
                memory[0] >= NEEDED_GB["memory"],
                f"{memory[0]:.1f} GB {memory[1]}",
                "close other programs, or other notebooks' kernels",
            )
        )
    return findings


def seconds_of_work() -> float:
    """CPU-seconds of a small training step, as lessons take them, the median of 5."""
    import torch

    from minipalm.config import PRESETS
    from minipalm.model.palm import PaLM
    from minipalm.train.language_model import next_token_loss

    preset = PRESETS["toy"]
    generator = torch.Generator().manual_seed(0)
    config = preset.policy
    model = PaLM(type(config)(**{**vars(config), "vocab_size": 144}), generator)
    ids = torch.randint(144, (32, preset.window), generator=generator)
    times = []
    for _ in range(8):
        begin = time.process_time()
        next_token_loss(model, ids).backward()
        times.append(time.process_time() - begin)
    return statistics.median(times[3:])  # the first ones warm up


def lesson_minutes() -> tuple[list[str], Finding]:
    """A line a lesson, and whether this machine is fast enough for class time."""
    from minipalm.course.documents import MEASURED, lessons

    measured = json.loads(MEASURED.read_text("utf-8"))
    factor = seconds_of_work() / measured["step_seconds"]
    lines = [
        f"    {one.name:20} {one.minutes:4}    {one.cpu_seconds * factor / 60:6.1f}"
        for one in lessons()
        if one.cpu_seconds is not None
    ]
    return ["    lesson             minutes   of them computing", *lines], Finding(
        "speed",
        factor < SLOWEST,
        f"a training step takes {factor:.1f} times as long as where lessons were timed",
        "close other programs; set OMP_NUM_THREADS=1; plug the laptop in",
    )


def measure() -> tuple[list[str], Finding | None]:
    """`lesson_minutes`, or why the speed could not be had; never raises.

    Without the table of timings there is nothing to compare with, and no finding.
    """
    try:
        return lesson_minutes()
    except FileNotFoundError as error:
        return [f"    not known: there is no {error.filename}"], None
    except Exception as error:
        why = f"could not be measured: {type(error).__name__}: {error}"
        return ["    not known"], Finding("speed", False, why, AGAIN)


def show(one: Finding) -> None:
    print(f"{'ok ' if one.well else 'BAD'}  {one.what:24} {one.said}", flush=True)
    if not one.well:
        print(f"     to mend it: {one.mend}", flush=True)


def main() -> int:
    findings = [python_version(), *packages(), *room()]
    for one in findings:
        show(one)
    lines, speed = measure()  # last: it needs all that was looked for before
    if speed is not None:
        show(speed)
        findings.append(speed)
    print("\nThe lessons here:\n" + "\n".join(lines))
    bad = sum(not one.well for one in findings)
    print("\nready" if not bad else f"\n{bad} to mend")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())

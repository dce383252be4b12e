"""Is this machine ready for the course?   ./course doctor

Looks at versions, memory, disk and speed, says how many minutes each lesson will take
here, and how to mend what is not as it should be. Exit status 0 if nothing stands in
the way.
"""

import importlib.metadata as metadata
import json
import os
import platform
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

from minipalm.course import ROOT

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
        "install Python 3.11 or newer, then ./course clean --all",
    )


def packages() -> list[Finding]:
    """The packages that pyproject.toml asks for, and what is installed."""
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    asked = project["dependencies"] + project["optional-dependencies"]["course"]
    findings = []
    for text in asked:
        one = Requirement(text)
        if one.marker is not None and not one.marker.evaluate():
            continue
        mend = f'pip install -c constraints.txt "{one}"'
        try:
            version = metadata.version(one.name)
        except metadata.PackageNotFoundError:
            findings.append(Finding(one.name, False, "is missing", mend))
            continue
        well = one.specifier.contains(version, prereleases=True)
        findings.append(Finding(one.name, well, version, mend))
    return findings


def free_memory_gb() -> float | None:
    """What programs can have; None where the system does not say it."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) / 2**20
    except OSError:
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    except (AttributeError, ValueError, OSError):
        return None


def room() -> list[Finding]:
    memory, disk = free_memory_gb(), shutil.disk_usage(ROOT).free / 2**30
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
                memory >= NEEDED_GB["memory"],
                f"{memory:.1f} GB free",
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
        factor < 3,
        f"a training step takes {factor:.1f} times as long as where lessons were timed",
        "close other programs; set OMP_NUM_THREADS=1; plug the laptop in",
    )


def main() -> int:
    lines, speed = lesson_minutes()
    findings = [python_version(), *packages(), *room(), speed]
    for one in findings:
        print(f"{'ok ' if one.well else 'BAD'}  {one.what:24} {one.said}")
        if not one.well:
            print(f"     to mend it: {one.mend}")
    print("\nThe lessons here:\n" + "\n".join(lines))
    bad = sum(not one.well for one in findings)
    print("\nready" if not bad else f"\n{bad} to mend")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())

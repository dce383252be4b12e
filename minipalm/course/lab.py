"""Open JupyterLab on the lessons:  ./course lab [JupyterLab's own options]"""

import os
import subprocess
import sys
from pathlib import Path

from minipalm.course import ROOT

# Holds labconfig/page_config.json: no question whether to fetch news from the network.
CONFIG = Path(__file__).parent / "jupyter"


def command(options: list[str]) -> list[str]:
    """What starts JupyterLab."""
    start = [sys.executable, "-m", "jupyterlab"]
    if not any(one.startswith("--ServerApp.root_dir") for one in options):
        start += [f"--ServerApp.root_dir={ROOT}"]
        start += ["--LabApp.default_url=/lab/tree/notebooks"]
    return [*start, *options]


def environment() -> dict[str, str]:
    """Ours, with the course's settings before the learner's own."""
    paths = [str(CONFIG), os.environ.get("JUPYTER_CONFIG_PATH", "")]
    return {**os.environ, "JUPYTER_CONFIG_PATH": os.pathsep.join(filter(None, paths))}


def main(argv: list[str]) -> int:
    if os.name == "nt":
        return subprocess.call(command(argv), env=environment())
    os.execve(sys.executable, command(argv), environment())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

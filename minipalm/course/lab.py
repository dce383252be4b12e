"""Open JupyterLab on the lessons:  ./course lab [JupyterLab's own options]"""

import os
import subprocess
import sys

from minipalm.course import ROOT


def main(argv: list[str]) -> int:
    command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={ROOT}"]
    command += ["--LabApp.default_url=/lab/tree/notebooks", "--LabApp.news_url=None"]
    command += argv
    if os.name == "nt":
        return subprocess.call(command)
    os.execv(command[0], command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

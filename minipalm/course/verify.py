"""Everything that must hold:  ./course test [pytest's own options]

Lint, format, types, spelling, then pytest: unit tests, and the notebooks under nbval.
All of them run even if one fails; the exit status is non-zero if any did.
"""

import subprocess
import sys
import time

from minipalm.course import ROOT

PROSE = ("README.md", "CONTRIBUTING.md", *"lessons docs minipalm tests bench".split())
STEPS = {  # name: what Python is asked to run
    "lint": ["-m", "ruff", "check", "--quiet"],
    "format": ["-m", "ruff", "format", "--check", "--quiet"],
    "types": ["-m", "mypy", "--no-error-summary"],
    "spelling": ["-m", "codespell_lib", "--toml", "pyproject.toml", *PROSE],
    # last: its closing line is the last one printed; a file at a time on each core
    "tests": ["-m", "pytest", "-q", "-n", "auto", "--dist", "loadfile"],
}


def main(argv: list[str]) -> int:
    failed: list[str] = []
    for name, arguments in STEPS.items():
        last = name == "tests"
        if last:
            print(f"tests (failed so far: {', '.join(failed) or 'none'})", flush=True)
        begin = time.monotonic()
        command = [sys.executable, *arguments, *(argv if last else [])]
        status = subprocess.run(command, cwd=ROOT).returncode
        if status:
            failed.append(name)
        if not last:
            verdict = "failed" if status else "ok"
            print(f"{name}: {verdict}, {time.monotonic() - begin:.1f} s", flush=True)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

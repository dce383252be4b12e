"""The peers' own environment, .venv-bench: made once, and when its recipe changes."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv-bench"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / "installed"  # written last: a half-made environment has none
REQUIREMENTS = ROOT / "bench" / "requirements.txt"

# What a race runs under. One thread: processor time is then comparable, and a busy
# machine disturbs it least. The process keeps the memory it frees, instead of handing
# it back and fetching it again each step (glibc; without effect elsewhere): that cost
# varies, and hits those hardest who allocate most. Nobody asks a network for anything.
RACE_SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "MALLOC_MMAP_MAX_": "0",
    "HF_HUB_OFFLINE": "1",
    "PYTHONNOUSERSITE": "1",
}


def recipe() -> str:
    """What the environment depends on, as one hash."""
    files = [REQUIREMENTS, ROOT / "pyproject.toml"]
    parts = [*(file.read_text("utf-8") for file in files), sys.version, str(ROOT)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def pinned() -> dict[str, str]:
    """The exact versions of requirements.txt, by name."""
    lines = (line.split("#")[0].strip() for line in REQUIREMENTS.open(encoding="utf-8"))
    return dict(line.split("==") for line in lines if line)


def install_commands(uv: str | None) -> list[list[str]]:
    """The commands that make .venv-bench, with uv where it is present."""
    base = getattr(sys, "_base_executable", sys.executable)  # not .venv's
    what = ["-r", str(REQUIREMENTS), "-e", str(ROOT)]
    if uv:
        return [
            [uv, "venv", "--no-project", "--python", base, str(VENV)],
            [uv, "pip", "install", "--python", str(PYTHON), *what],
        ]
    pip = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "--quiet"]
    return [[base, "-m", "venv", str(VENV)], [*pip, "install", *what]]


def ensure() -> None:
    """Make .venv-bench unless it is there and up to date; stop with what went wrong."""
    if STAMP.exists() and STAMP.read_text("utf-8") == recipe():
        return
    env = {**os.environ, **RACE_SETTINGS}
    if "PIP_FIND_LINKS" in env:  # local wheels: pip parts them by spaces, uv by commas
        env.setdefault("UV_FIND_LINKS", ",".join(env["PIP_FIND_LINKS"].split()))
    print(f"Installing the peers into {VENV.name}: once, some minutes ...", flush=True)
    shutil.rmtree(VENV, ignore_errors=True)
    for command in install_commands(shutil.which("uv")):
        done = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(
                f"{done.stdout[-2000:]}{done.stderr[-2000:]}\n"
                f"could not run {' '.join(command)}\n"
                "Mend what it names (often the network, or a full disk) and run "
                "./course bench again."
            )
    (VENV / ".gitignore").write_text("*\n", "utf-8")
    STAMP.write_text(recipe(), "utf-8")


def run_race(name: str, pairs: int, warmup: int, result: Path) -> None:
    """One race in a fresh process of .venv-bench.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    done = subprocess.run(
        [PYTHON, "-m", "bench.race", name, str(pairs), str(warmup), str(result)],
        cwd=ROOT,
        env={**os.environ, **RACE_SETTINGS},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"the race {name} failed:\n{done.stderr[-2000:]}")

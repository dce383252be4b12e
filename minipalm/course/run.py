"""Run the pipeline: its stages in order, each a notebook in a process of its own.

    ./course run --scale toy --seed 0 --out runs/toy
    ./course run --until 07_sft                         no further than this stage
    ./course run --until 15_offline                     and then what it leaves out

A stage writes into its folder {out}/{stage}, done.json last. Here we keep stage.json
beside it: the scale, the seed, the input files and the earlier stages that it was made
from. A stage that is done is skipped, one that is not is resumed; both are made again
if their input files or an earlier stage have changed.
"""

import argparse
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from minipalm.config import get_preset
from minipalm.course import ROOT
from minipalm.course.inputs import STAGES, all_inputs
from minipalm.course.made_from import code_digest, made_from, prepare, shown
from minipalm.course.nodes import Nodes
from minipalm.data.lock import lock
from minipalm.ends import (
    STOPPED,
    End,
    first_cause,
    forget_ends,
    read_ends,
    write_end,
)
from minipalm.stopping import SIGNALS, Stopped, stop_on_signals
from minipalm.train.progress import FURTHER, read_object

TIMES = "times.json"  # of the run that completed a stage: seconds, wall and CPU
ONE = Nodes()  # one process, on this machine
SMALL = ("smoke", "toy")  # one thread: more of them only wait for each other


class Spent(NamedTuple):
    status: int
    wall: float  # seconds
    cpu: float  # seconds of the process, its kernel and their threads


def is_small(scale: str) -> bool:
    """Whether a scale, such as toy or toy:3, is made for one thread of a CPU."""
    return scale.partition(":")[0] in SMALL


def check_place(out: Path, scale: str, seed: int) -> None:
    """Raises ValueError if out holds stages of another scale or seed."""
    for stage in (*STAGES, *FURTHER):
        for name in ("stage.json", "done.json"):
            record = read_object(out / stage / name)
            found = record.get("scale", scale), record.get("seed", seed)
            if found != (scale, seed):
                raise ValueError(
                    f"{shown(out / stage)} was made with scale {found[0]}, seed "
                    f"{found[1]}, not {scale}, {seed}.\n"
                    "Give this run another --out, or remove that folder."
                )


def execute(
    notebook: Path,
    output: Path,
    values: dict[str, Any],
    keep_open: int | None,
    launcher: Sequence[str] = (),
    unless: Path | None = None,
) -> Spent:
    """Run a notebook in a process of its own; if we are stopped, stop it first.

    keep_open: the descriptor of a lock that the process shall hold as well.
    launcher: what Python is given before `-m minipalm.spmd`, to run it on many ranks.
    unless: a file; where it is there, the ranks have nothing to do.
    """
    command = [sys.executable, *launcher, "-m", "minipalm.spmd", "--with-parent"]
    if unless is not None:
        command += ["--unless", str(unless)]
    for name, value in values.items():
        command += ["-p", name, json.dumps(value)]  # JSON is YAML
    command += [str(notebook), str(output)]
    env = dict(os.environ)
    if is_small(values["scale"]):
        env.setdefault("OMP_NUM_THREADS", "1")
    shared = () if os.name == "nt" or keep_open is None else (keep_open,)
    begin = time.monotonic()
    child = subprocess.Popen(
        command,
        cwd=ROOT,
        env=env,
        pass_fds=shared,
        start_new_session=bool(launcher),  # or Ctrl-C in a terminal reaches it twice
    )
    try:
        if sys.platform == "win32":
            return Spent(child.wait(), time.monotonic() - begin, float("nan"))
        _, code, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(code)
        cpu = usage.ru_utime + usage.ru_stime
        return Spent(child.returncode, time.monotonic() - begin, cpu)
    except BaseException:
        if child.returncode is None:
            child.terminate()
            try:
                child.wait(15)
            except subprocess.TimeoutExpired:
                child.kill()
        raise


def parameters(args: argparse.Namespace, files: dict[str, Path]) -> dict[str, Any]:
    """What a stage's notebook is told."""
    values = {"scale": args.scale, "seed": args.seed, "out": shown(args.out)}
    return values | {name: shown(path) for name, path in files.items()}


def drop_checkpoints(folder: Path) -> None:
    """Remove those of a complete stage: at full size each fills 82 GB, for nothing."""
    for checkpoint in folder.glob("*/step-*"):
        shutil.rmtree(checkpoint, ignore_errors=True)


def run_stage(
    notebook: Path,
    args: argparse.Namespace,
    files: dict[str, Path],
    after: dict[str, str],
    keep_open: int,
    launcher: Sequence[str] = (),
    wait_for_all: bool = False,
) -> Spent:
    """Run a stage unless it is complete, say so, and enter its run into `after`.

    wait_for_all: other machines wait for this stage, so even a complete one is begun.
    """
    stage, folder = notebook.stem, args.out / notebook.stem
    done, output = folder / "done.json", folder / notebook.name
    now, code = made_from(args, files, after), code_digest(notebook, args.scale)
    complete, after[stage] = prepare(folder, now, files, code, args.renew)
    spent = Spent(0, 0.0, 0.0)
    if complete:
        cut_short = output.exists() and not (folder / TIMES).exists()
        see = f", but its notebook may not have run to its end: see {shown(output)}"
        but = see if cut_short else ""
        print(f"{stage}: complete{but}", flush=True)
    else:
        print(f"{stage}: into {shown(folder)}", flush=True)
    if wait_for_all or not complete:
        values, unless = parameters(args, files), done if wait_for_all else None
        forget_ends(folder)  # it may end before a process is there to do so
        spent = execute(notebook, output, values, keep_open, launcher, unless)
    if spent.status == 0 and not done.is_file():
        print(f"{notebook.name} ran to its end without done.json", file=sys.stderr)
        spent = spent._replace(status=1)
    if spent.status == 0 and not complete:
        print(f"{stage}: {spent.wall:.1f} s, {spent.cpu:.1f} CPU-s", flush=True)
        (folder / TIMES).write_text(json.dumps(spent._asdict()) + "\n", "utf-8")
    if done.is_file() and not is_small(args.scale):
        drop_checkpoints(folder)
    return spent


def run_stages(
    args: argparse.Namespace,
    inputs: dict[str, dict[str, Path]],
    keep_open: int,
    nodes: Nodes = ONE,
) -> int:
    """Run what is not complete. Returns 0, or the exit status of what stopped it."""
    after: dict[str, str] = {}
    resume = "run the same command again: it resumes at the last checkpoint."
    for index, (stage, files) in enumerate(inputs.items()):
        notebook = args.notebooks / f"{stage}.ipynb"
        how = nodes.launcher(index), nodes.several
        try:
            spent = run_stage(notebook, args, files, after, keep_open, *how)
        except Stopped as stop:
            by = f"stopped by {stop.signal.name}"
            end = End(None, STOPPED, by, stop.time)  # ranks say so too, but later
            write_end(args.out / stage / "command", end)
            print(f"\n{stage}: {by}. To go on, {resume}", file=sys.stderr)
            return int(stop.code or 0)
        if spent.status:
            first = first_cause(read_ends(args.out / stage))
            why = f"{str(first).rstrip('.')}." if first else "as said above."
            failed = f"failed: {why} Mend it and {resume}"
            if (args.out / stage / "done.json").is_file():
                failed = (
                    "failed after its result was written, as said above. The same "
                    "command keeps the result and goes on with the next stage."
                )
            print(f"{stage} {failed}", file=sys.stderr)
            return spent.status
    if STAGES[-1] not in inputs:  # the report is about all of them
        return 0
    report(args.out)
    times = [read_object(args.out / stage / TIMES).get("cpu", 0.0) for stage in inputs]
    print(f"all stages: {sum(times):.1f} CPU-s")
    return 0


def report(out: Path) -> None:
    """Print the table, write the page, and say where it is."""
    from minipalm.evaluate.report import terminal_table, write_report

    print(f"\n{terminal_table(out)}\n\nreport: {write_report(out)}")


@contextmanager
def signals_as_they_were() -> Iterator[None]:
    """Afterwards signals do what they did before: a notebook's kernel lives on."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            # one that was not set from Python cannot be put back
            if handler is not None:
                signal.signal(number, handler)
        logging.disable(logging.NOTSET)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="./course run", description="Run it all.")
    parser.add_argument("--scale", default="toy", help="smoke, toy, small or full")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="default: runs/SCALE")
    parser.add_argument("--until", metavar="STAGE", help="the last one to run")
    parser.add_argument("--data", type=Path, help="folder of the JSON-lines files")
    parser.add_argument(
        "--preferences", type=Path, help="your own comparisons, instead of a labeller's"
    )
    parser.add_argument(
        "--notebooks", type=Path, default=ROOT / "solutions", help="default: solutions"
    )
    parser.set_defaults(renew=True)  # unasked: at these scales it takes minutes
    args = parser.parse_args(argv)
    args.out = args.out or ROOT / "runs" / args.scale
    try:  # whatever can be wrong is said before anything runs
        get_preset(args.scale)
        check_place(args.out, args.scale, args.seed)
        inputs = all_inputs(args)
        with lock(args.out) as held, signals_as_they_were():
            stop_on_signals()
            return run_stages(args, inputs, held.fileno())
    except (ValueError, RuntimeError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

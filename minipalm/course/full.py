"""Run the pipeline in batch, at a size that needs GPUs: each stage on all ranks.

    ./course full                                full size, one rank a GPU
    ./course full --scale full-lora --gpus 1     adapters: one GPU of 80 GB
    ./course full --until 07_sft --out runs/mine --data my_data
    ./course full --until 15_offline             further than by default, see run.py

The stages are those of `./course run`, and so is what is skipped and resumed. A stage
that was made from something else is not made again unasked: it may be days of work.
Where there is more than one rank, torchrun runs each stage's notebook on all of them,
and when one of them fails, it stops the others.
"""

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from minipalm.config import PRESETS, Preset, get_preset
from minipalm.course import ROOT
from minipalm.course.adopt import adopt
from minipalm.course.announce import announced, wait_for_data
from minipalm.course.data_check import check_data
from minipalm.course.inputs import all_inputs
from minipalm.course.made_from import refused, stale_stages
from minipalm.course.nodes import Nodes, add_options, find_nodes
from minipalm.course.renew import put_back, set_aside
from minipalm.course.run import (
    check_place,
    execute,
    is_small,
    parameters,
    run_stages,
    signals_as_they_were,
)
from minipalm.data.lock import lock
from minipalm.ends import forget_ends
from minipalm.model.palm import count_parameters
from minipalm.scale.disk import rooms
from minipalm.scale.plan import check_ranks
from minipalm.scale.reserve import let_memory_grow
from minipalm.stopping import stop_on_signals
from minipalm.train.events import following
from minipalm.train.progress import read_progress, write_machine


def find_gpus(args: argparse.Namespace) -> list[str]:
    """Names of the GPUs that this run may use: none at scales made for a CPU."""
    if args.cpus is not None or is_small(args.scale):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return []
    import torch

    return [
        torch.cuda.get_device_name(number)
        for number in range(torch.cuda.device_count())
    ]


def check_gpus(preset: Preset, gpus: list[str], cpus: int | None) -> None:
    """Raises ValueError if a network of billions would begin on a CPU unasked."""
    if not gpus and cpus is None and count_parameters(preset.policy) > 10**9:
        raise ValueError(
            "PyTorch finds no GPU here (see nvidia-smi; is it PyTorch for CUDA?). To "
            "go on without, give --cpus 1; for a first try there is --scale smoke"
        )


def check_disk(preset: Preset, out: Path, stages: Iterable[str]) -> None:
    """Raises ValueError if checkpoints and results will not find room where out lies.

    Said now and not after a day. What the run has there already counts as its own. Of
    complete stages nothing more comes; what they have may be more or less than planned,
    since the pretraining of another run may be linked, and of another type.
    """
    made = {stage for stage in stages if (out / stage / "done.json").is_file()}
    needs = [one for one in rooms(preset) if one.stage in set(stages) - made]
    if not needs:
        return
    worst = max(needs, key=lambda room: room.fullest)
    more = worst.fullest - sum(r.result for r in rooms(preset) if r.stage in made)
    files = [path for path in out.rglob("*.safetensors") if path.is_file()]
    begun = [path for path in files if path.relative_to(out).parts[0] not in made]
    mine = sum(path.stat().st_size for path in begun)
    disk = next(path for path in (out, *out.absolute().parents) if path.exists())
    free = shutil.disk_usage(disk).free
    if more > mine + free:
        raise ValueError(
            f"networks of this run fill {more / 1e9:.4g} GB more at the fullest "
            f"moment, in {worst.stage}. {out} has {mine / 1e9:.4g} GB of them, and "
            f"{free / 1e9:.4g} GB are free there: make room, or give --out on a "
            "larger disk"
        )


def follow(args: argparse.Namespace, stages: list[str], nodes: Nodes) -> int:
    """Take part in what machine 0 runs. Returns 0, or what stopped it."""
    for index, stage in enumerate(stages):
        print(f"{stage}: with machine 0, {nodes.host}", flush=True)
        notebook = args.notebooks / f"{stage}.ipynb"
        folder = args.out / stage
        try:
            status = execute(
                notebook,
                folder / notebook.name,
                parameters(args, args.inputs[stage]),
                None,
                nodes.launcher(index),
                folder / "done.json",
            ).status
        except SystemExit as stop:
            status = int(stop.code or 0)
        if status:
            print(
                f"{stage}: ended here. What machine 0 says counts; to go on, run the "
                "same commands again.",
                file=sys.stderr,
            )
            return status
    return 0


def refuse_stale(args: argparse.Namespace) -> list[str]:
    """The stages that will be made again; raises ValueError if nobody asked for it."""
    stale = stale_stages(args, args.inputs)
    if stale and not args.renew:
        raise refused(args.out, stale)
    return list(stale)


def begin(args: argparse.Namespace, preset: Preset, held: int) -> int:
    """All that can be refused, and only then what cannot be undone.

    Returns 0, or the status of what was refused and said; raises ValueError.
    """
    put_back(args.out)
    for stage in args.inputs:  # how they ended before is no cause of what comes now
        forget_ends(args.out / stage)
    taken = args.pretrained, args.out, args.scale, args.seed
    if args.pretrained and not (args.out / "06_palm").exists():
        adopt(*taken)  # first, or what came after it would seem to be stale
    with set_aside(args.out, refuse_stale(args)) as remove:
        if args.pretrained:
            adopt(*taken)
        check_disk(preset, args.out, args.inputs)
        status = check_data(args, held)
        if not status:
            remove()
    return status


def run(args: argparse.Namespace, held: int, nodes: Nodes, *machine: Any) -> int:
    """Run the stages, and write down what they do; machine: see `write_machine`."""
    with following(args.out):
        write_machine(args.out, *machine)
        status = run_stages(args, args.inputs, held, nodes)
        if read_progress(args.out).current is None:
            from minipalm.report import write_page  # matplotlib

            write_page(args.out)  # again, with what the machine did
        return status


def parse(argv: list[str] | None) -> tuple[str, argparse.Namespace]:
    """The program's name, and what it was asked; `command` is all of it."""
    parser = argparse.ArgumentParser(
        prog="./course full", description="Run it all in batch, on GPUs."
    )
    parser.add_argument(
        "--scale",
        default="full",
        help=f"{', '.join(PRESETS)}, or full:3 for three steps (default: full)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="default: runs/SCALE")
    parser.add_argument("--until", metavar="STAGE", help="the last one to run")
    parser.add_argument("--data", type=Path, help="folder of your own files")
    parser.add_argument(
        "--preferences", type=Path, help="your own comparisons, instead of a labeller's"
    )
    parser.add_argument(
        "--pretrained", type=Path, metavar="RUN", help="take its 06_palm, train none"
    )
    parser.add_argument(
        "--renew",
        action="store_true",
        help="remove stages that were made from other files, and make them again",
    )
    parser.add_argument(
        "--notebooks", type=Path, default=ROOT / "solutions", help="default: solutions"
    )
    add_options(parser)
    args = parser.parse_args(argv)
    args.out = args.out or ROOT / "runs" / args.scale.replace(":", "-")
    given = sys.argv[1:] if argv is None else argv
    args.command = shlex.join([*parser.prog.split(), *given])
    return parser.prog, args


def main(argv: list[str] | None = None) -> int:
    prog, args = parse(argv)
    try:  # whatever can be wrong is said before anything runs
        preset = get_preset(args.scale)
        gpus = find_gpus(args)
        check_gpus(preset, gpus, args.cpus)
        nodes = find_nodes(args, len(gpus))
        check_ranks(preset, nodes.ranks * nodes.count)
        check_place(args.out, args.scale, args.seed)
        args.inputs = all_inputs(args)
        where = f"{nodes.count} × {nodes.ranks} on {gpus[0] if gpus else 'the CPU'}"
        print(f"{args.scale}: machines × processes {where}", flush=True)
        cores = (os.cpu_count() or 1) // nodes.ranks
        if not is_small(args.scale):
            os.environ.setdefault("OMP_NUM_THREADS", str(max(cores, 1)))
            let_memory_grow()
        with signals_as_they_were():
            stop_on_signals()
            if nodes.number:
                refuse_stale(args)
                wait_for_data(args)
                return follow(args, list(args.inputs), nodes)
            ranks = nodes.ranks * nodes.count
            with announced(args, nodes.several) as ready, lock(args.out) as held:
                status = begin(args, preset, held.fileno())
                if status:
                    return status
                ready()
                gpu = gpus[0] if gpus else None
                return run(args, held.fileno(), nodes, ranks, gpu, args.command)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

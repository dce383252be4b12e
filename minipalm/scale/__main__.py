"""What does the pipeline cost?

python -m minipalm.scale --preset full --gpu a100-80g --gpus 8
python -m minipalm.scale --preset full-lora --gpu h200 --price 2.9
python -m minipalm.scale --gpu a100-80g --memory 39.4       a card that is not listed
"""

import argparse
import math
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from minipalm.config import PRESETS, Preset, get_preset
from minipalm.scale.gpu import GIB, GPU, GPUS, get_gpu, own_gpu
from minipalm.scale.plan import check_ranks, plan
from minipalm.scale.report import (
    Trial,
    advice,
    budget,
    disk_table,
    memory_table,
    network_table,
    phase_table,
    short,
    stage_table,
)
from minipalm.scale.reserve import GROWING, NAMES, OUTSIDE
from minipalm.scale.stages import DISK, START, Stage

MOST = 8  # GPUs of one machine; of the wire between machines the plan knows nothing


def number(kind: Callable[[str], float], least: float, most: float = math.inf) -> Any:
    """What argparse takes for a type: a finite number from least to most."""

    def read(text: str) -> float:
        value = kind(text)
        if not (math.isfinite(value) and least <= value <= most):
            limits = (
                f"{least:g} or more" if most == math.inf else f"{least:g} to {most:g}"
            )
            raise argparse.ArgumentTypeError(f"expected {limits} (got {text})")
        return value

    read.__name__ = kind.__name__  # argparse names it where the text is no number
    return read


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m minipalm.scale",
        description="Memory, hours and money of the whole pipeline on given GPUs.",
    )
    on_gpu = [name for name, one in PRESETS.items() if one.machine.device == "auto"]
    parser.add_argument("--preset", default="full", choices=on_gpu)
    parser.add_argument("--gpu", default="a100-80g", choices=GPUS)
    own = parser.add_argument_group(
        "a card of your own",
        "what it reaches, in place of --gpu's (not its data sheet)",
    )
    for name, unit, means in (
        ("memory", "GIB", "that PyTorch finds"),
        ("tflops", "TFLOP/s", "in bfloat16, for seconds on end (an H200: 685 of 989)"),
        ("bandwidth", "TB/s", "of its memory (an H200: 4.3 of 4.8)"),
        ("link", "GB/s", "from the machine's other GPUs (an H200: 250 of 450)"),
    ):
        positive = number(float, 1e-3, 1e6)
        own.add_argument(f"--{name}", type=positive, metavar=unit, help=means)
    parser.add_argument(
        "--gpus",
        type=number(int, 1, MOST),
        help="of one machine; 8 for `full` without adapters, else 1",
    )
    parser.add_argument(
        "--lora", type=number(int, 0), metavar="RANK", help="0: all weights"
    )
    parser.add_argument("--recompute", action="store_true", help="activations, twice")
    parser.add_argument(
        "--micro-batch", type=number(int, 1), metavar="ROWS", help="on each GPU"
    )
    parser.add_argument(
        "--price",
        type=number(float, 0),
        help="dollars a GPU-hour; by default an assumption",
    )
    parser.add_argument(
        "--disk",
        type=number(float, 1e-3),
        default=DISK / 1e9,
        help="GB/s of checkpoints; 2",
    )
    parser.add_argument(
        "--budget",
        type=number(float, 1),
        default=5000.0,
        help="GPU-hours to spend; 5000",
    )
    return parser.parse_args(argv)


def changed(preset: Preset, args: argparse.Namespace) -> Preset:
    """The preset with what the command line says otherwise."""
    machine = preset.machine
    if args.lora is not None:
        machine = replace(machine, lora_rank=args.lora)
    if args.recompute:
        machine = replace(machine, recompute=True)
    preset = replace(preset, machine=machine)
    if args.micro_batch:
        n = args.micro_batch
        reward = replace(preset.reward.optim, micro_batch=n)
        preset = replace(
            preset,
            pretrain=replace(preset.pretrain, micro_batch=n),
            sft=replace(preset.sft, micro_batch=n),
            reward=replace(preset.reward, optim=reward),
            ppo=replace(preset.ppo, micro_batch=n),
        )
    return preset


@dataclass(frozen=True)
class Asked:
    """A plan, and what it is one of."""

    args: argparse.Namespace
    preset: Preset
    gpu: GPU
    stages: list[Stage]


def planned(argv: list[str]) -> Asked:
    """The plan that a command line asks for.

    Raises:
        ValueError: there can be none.
    """
    args = arguments(argv)
    preset = changed(get_preset(args.preset), args)
    if args.gpus is None:
        whole = args.preset == "full" and not preset.machine.lora_rank
        args.gpus = MOST if whole else 1
    check_ranks(preset, args.gpus)
    given = args.memory, args.tflops, args.bandwidth, args.link
    gpu = own_gpu(get_gpu(args.gpu, args.price), *given)
    return Asked(args, preset, gpu, plan(preset, gpu, args.gpus, 1e9 * args.disk))


def tried(argv: list[str], asked: Asked) -> list[list[Trial]]:
    """Plans of the same command line with more options; without those refused."""
    args = asked.args
    alone = "--gpus 1 " if args.gpus > 1 else ""
    larger = sorted(
        (card.memory, card.price, name)
        for name, card in GPUS.items()
        if card.memory > asked.gpu.memory
    )
    own = args.memory is not None
    groups = [
        ["--recompute"],
        ["--micro-batch 2", "--micro-batch 1"],
        [f"--gpus {n}" for n in range(args.gpus + 1, MOST + 1)],
        [alone + ("--preset full-lora" if args.preset == "full" else "--lora 16")],
        [f"--memory {m / GIB:g}" if own else f"--gpu {name}" for m, _, name in larger],
    ]
    trials = []
    for group in groups:
        found = []
        for words in group:
            with suppress(ValueError):
                other = planned([*argv, *words.split()])
                found.append(Trial(words, other.gpu, other.stages))
        trials.append(found)
    return [found for found in trials if found]


def told(asked: Asked, trials: list[list[Trial]]) -> str:
    """The plan as text."""
    args, preset, gpu, stages = asked.args, asked.preset, asked.gpu, asked.stages
    [ppo] = [one for one in stages if one.phases]
    bought = budget(stages, args.gpus, args.budget)
    whose = "assumed; give yours with --price" if args.price is None else "yours"
    parts = [
        f"{args.gpus} × {gpu.name}: {gpu.memory / GIB:.1f} GiB, "
        f"{gpu.flops / 1e12:.0f} TFLOP/s, {gpu.bandwidth / 1e12:.2f} TB/s, "
        f"{gpu.link / 1e9:.0f} GB/s between two\n"
        f"({gpu.source})\n"
        f"${gpu.price:.2f} a GPU-hour ({whose}); {START:.0f} s to start a stage, "
        f"checkpoints at {args.disk:g} GB/s, {OUTSIDE / GIB:.1f} GiB for what is not "
        "PyTorch's (assumed)",
        stage_table(stages, gpu, args.gpus),
        "Of each network, at the stage's worst moment. PyTorch may hold more than is "
        f"allocated\n(held; under {NAMES[0]}={GROWING}). Fits is tight where\n"
        "it does only if less is held than was measured:\n" + network_table(stages),
        *advice(stages, preset, gpu, trials),
        "One iteration of PPO, answers of the greatest length:\n" + phase_table(ppo),
        "Its memory, part by part:\n" + memory_table(ppo.memory),
        "The run's folder, of all stages together (lesson 15 is optional):\n"
        + disk_table(preset),
        f"{args.budget:,.0f} GPU-hours (${args.budget * gpu.price:,.0f}) buy\n"
        f"  {bought['pipelines']:.1f} times all of this, or\n"
        f"  {bought['after pretraining']:,.0f} times all but pretraining, or\n"
        f"  pretraining on {short(bought['tokens'])} tokens and the rest once, or\n"
        f"  {bought['iterations']:,.0f} iterations of PPO.",
    ]
    return "\n\n".join(parts)


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    try:
        asked = planned(argv)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(told(asked, tried(argv, asked)))
    return int(any(one.fits(asked.gpu) == "NO" for one in asked.stages))


if __name__ == "__main__":
    sys.exit(main())

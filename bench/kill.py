"""Kill a batch run, run it again, and compare it with one that nobody killed.

    python -m bench.kill OUT --scale full-lora:3 --gpus 1      a GPU: about 12 minutes
    python -m bench.kill OUT --scale smoke --cpus 1            a processor: 1

The stages up to the reward model are run, then PPO. When its first checkpoint is there,
the process that computes gets kill -9, as if the machine had run out of memory. It is
said how long the job took to end, what was left of it, and, after the same command has
been given again, how far metrics and weights are from those of PPO without a kill. On a
processor they are equal; on a GPU sums of parallel threads differ in their last bits.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from safetensors import safe_open

BEFORE = ("06_palm", "07_sft", "08_reward_model")
PPO = "11_ppo"
# what no seed fixes
MACHINES = ("seconds", "checkpoint_seconds", "tokens_per_second", "memory")


def course_full(out: Path, until: str, options: list[str]) -> list[str]:
    """The command that runs the stages until this one."""
    command = [sys.executable, "-m", "minipalm.course.full", "--out", str(out)]
    return [*command, "--until", until, *options]


def complete(out: Path, until: str, options: list[str]) -> None:
    """Run them, or stop with their exit status."""
    begin = time.monotonic()
    status = subprocess.call(course_full(out, until, options))
    print(f"{out} until {until}: exit {status}, {time.monotonic() - begin:.0f} s")
    if status:
        sys.exit(status)


def kill_in_ppo(out: Path, options: list[str]) -> None:
    """Run PPO until its first checkpoint, and kill what computes."""
    job = subprocess.Popen(course_full(out, PPO, options), start_new_session=True)
    while not list((out / PPO).glob("beta-*/step-" + "[0-9]" * 6)):
        if job.poll() is not None:
            sys.exit("PPO ended before there was a checkpoint: take more steps")
        time.sleep(0.02)
    family = psutil.Process(job.pid).children(recursive=True)
    kernels = [one for one in family if "--kernel" in one.cmdline()]
    if not kernels:
        sys.exit("found no process that computes: nothing was killed")
    begin = time.monotonic()
    kernels[-1].kill()
    status = job.wait()
    took = time.monotonic() - begin
    _, alive = psutil.wait_procs(family, timeout=20)
    print(f"killed 1 of {len(kernels)}: exit {status} after {took:.1f} s")
    print(f"left alive: {len(alive)} of {len(family)} processes")
    if shutil.which("nvidia-smi"):
        asked = ["--query-gpu=memory.used", "--format=csv,noheader"]
        subprocess.run(["nvidia-smi", *asked])


def metrics(out: Path) -> list[dict[str, Any]]:
    """The lines of PPO's metrics that a seed fixes."""
    lines = [
        json.loads(line)
        for path in sorted((out / PPO).glob("beta-*/metrics.jsonl"))
        for line in path.read_text("utf-8").splitlines()
    ]
    return [
        {name: x for name, x in line.items() if not name.startswith(MACHINES)}
        for line in lines
    ]


def compare(one: Path, other: Path) -> None:
    """How far two runs of PPO are apart: metrics, and the weights of the policy."""
    a, b = metrics(one), metrics(other)
    if not a or len(a) != len(b):
        sys.exit(f"expected as many iterations of both, got {len(a)} and {len(b)}")
    equal = sum(x == y for x, y in zip(a, b))
    print(f"iterations: {len(a)} and {len(b)}, equal in every metric: {equal}")
    same, far, largest = 0, 0.0, 0.0
    names: list[str] = []
    for path in sorted((one / PPO / "result").glob("*.safetensors")):
        twin = other / PPO / "result" / path.name
        with safe_open(path, "pt") as x, safe_open(twin, "pt") as y:
            for name in x.keys():
                p, q = x.get_tensor(name).float(), y.get_tensor(name).float()
                names.append(name)
                same += bool((p == q).all())
                far = max(far, (p - q).abs().max().item())
                largest = max(largest, p.abs().max().item())
    print(f"weights: {same} of {len(names)} tensors equal bit for bit")
    print(f"largest difference {far:.2g}, largest weight {largest:.2g}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.kill", description="Kill a batch run, and resume it."
    )
    parser.add_argument("out", type=Path, help="a new folder")
    args, options = parser.parse_known_args(argv)
    killed, whole = args.out / "killed", args.out / "whole"
    complete(killed, BEFORE[-1], options)
    for stage in BEFORE:
        shutil.copytree(killed / stage, whole / stage, copy_function=os.link)
    kill_in_ppo(killed, options)
    complete(killed, PPO, options)
    complete(whole, PPO, options)
    compare(killed, whole)


if __name__ == "__main__":
    main()

"""Speed at full size, on one GPU or two, beside ceilings of the same run.

    python -m bench.full_size                         every part for one GPU
    python -m bench.full_size --parts ceilings decode some
    torchrun --nproc-per-node 2 -m bench.full_size --parts two_gpus
    python -m bench.full_size --tiny                  the same ways, on a processor
    python -m bench.full_size --show                  the table of earlier runs

A part that fails is reported, and the others go on. Numbers are kept in
data/results/full_size.json, part by part.
"""

import argparse
import datetime
import json
import platform
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.full import ppo, sampling, training
from bench.full.goals import table
from bench.full.measure import (
    Numbers,
    Sizes,
    ceilings,
    clear,
    full_sizes,
    log,
    tiny_sizes,
)
from minipalm.parallel import is_first, ranks

RESULTS = Path(__file__).parents[1] / "data" / "results" / "full_size.json"

Part = Callable[[Sizes], Numbers]
ONE_GPU: dict[str, Part] = {
    "ceilings": ceilings,
    "train_bf16": training.train_bf16,
    "train_fp32": training.train_fp32,
    "train_lora": training.train_lora,
    "train_ours_short": training.train_ours_short,
    "train_palm_rlhf": training.train_palm_rlhf,
    "train_llama": training.train_llama,
    "decode": sampling.decode,
    "decode_llama": sampling.decode_llama,
    "decode_palm_rlhf": sampling.decode_palm_rlhf,
    "ppo_lora": ppo.ppo_lora,
    "train_recomputed": training.train_recomputed,
    "ceilings_again": ceilings,
}
TWO_GPUS: dict[str, Part] = {
    "two_ceilings": ceilings,
    "two_train": training.train_two_gpus,
    "two_ppo": ppo.ppo_full,
}
PARTS = ONE_GPU | TWO_GPUS


def machine() -> dict[str, Any]:
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "gpu": card,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
    }


def measure(name: str, sizes: Sizes) -> dict[str, Any]:
    """One part; an error is its result."""
    log(name)
    clear()
    start = time.perf_counter()
    try:
        found: dict[str, Any] = {**PARTS[name](sizes)}
    except Exception as error:
        traceback.print_exc()
        found = {"error": f"{type(error).__name__}: {error}"[:500]}
    clear()
    found["took"] = time.perf_counter() - start
    return {**found, "date": datetime.date.today().isoformat(), "machine": machine()}


def kept(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=[*PARTS, "two_gpus"])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--budget", type=float, default=1e9, help="seconds in all")
    args = parser.parse_args(argv)
    results = kept(args.results)
    if args.show:
        print(table(results))
        return 0
    names = args.parts or list(ONE_GPU)
    if names == ["two_gpus"]:
        names = list(TWO_GPUS)
    sizes = tiny_sizes() if args.tiny else full_sizes()
    ranks()
    begin = time.perf_counter()
    failed = False
    for name in names:
        if time.perf_counter() - begin > args.budget:
            log(f"no time left for {name}")
            continue
        found = measure(name, sizes)
        failed |= "error" in found
        if is_first():
            log(f"{name}: {json.dumps(found)}")
            results[name] = found
            args.results.parent.mkdir(parents=True, exist_ok=True)
            args.results.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    if is_first():
        print(table(results))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

"""Speed at full size, on one GPU or two, beside ceilings of the same run.

    python -m bench.full_size                         every part for one GPU
    python -m bench.full_size --parts training        some, or one by its name
    torchrun --nproc-per-node 2 -m bench.full_size --parts two_gpus
    python -m bench.full_size --tiny                  the same ways, on a processor
    python -m bench.full_size --show                  the table of earlier runs
    python -m bench.full_size --readme                writes it into bench/README.md
    python -m bench.full_size --merge a.json b.json   add the parts of others

A part that fails is reported, and the others go on (on one GPU). Numbers are kept in
data/results/full_size.json, part by part, each with the ceilings of its own process.
"""

import argparse
import datetime
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.full import ppo, sampling, training
from bench.full.goals import placed, table
from bench.full.measure import (
    Numbers,
    Sizes,
    ceilings,
    clear,
    full_sizes,
    log,
    tiny_sizes,
)
from minipalm.parallel import is_first, ranks, summed
from minipalm.scale.reserve import let_memory_grow

RESULTS = Path(__file__).parents[1] / "data" / "results" / "full_size.json"
README = Path(__file__).with_name("README.md")
SHORT = Path(__file__).parents[1] / "README.md"  # without the phases

Part = Callable[[Sizes], Numbers]
GROUPS: dict[str, dict[str, Part]] = {
    "training": {
        "train_lora": training.train_lora,
        "train_bf16": training.train_bf16,
        "train_fp32": training.train_fp32,
        "train_ours_short": training.train_ours_short,
        "train_palm_rlhf": training.train_palm_rlhf,
        "train_llama": training.train_llama,
        "train_recomputed": training.train_recomputed,
    },
    "sampling": {
        "decode": sampling.decode,
        "ppo_lora": ppo.ppo_lora,
        "old_logprobs": ppo.old_logprobs,
        "decode_palm_rlhf": sampling.decode_palm_rlhf,
        "decode_llama": sampling.decode_llama,
    },
    "two_gpus": {
        "two_train": training.train_two_gpus,
        "two_ppo": ppo.ppo_full,
    },
}
PARTS = {name: part for group in GROUPS.values() for name, part in group.items()}


def machine() -> dict[str, Any]:
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "gpu": card,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "allocator": let_memory_grow(),
    }


def measure(name: str, part: Part, sizes: Sizes) -> dict[str, Any]:
    """One part; an error is its result, or, of several processes, the end of all."""
    log(name)
    clear()
    start = time.perf_counter()
    try:
        found: dict[str, Any] = {**part(sizes)}
    except Exception as error:
        traceback.print_exc()
        if ranks().world > 1:  # the others would wait for this one: torchrun ends all
            raise
        found = {"error": f"{type(error).__name__}: {error}"[:500]}
    clear()
    found["took"] = time.perf_counter() - start
    return {**found, "date": datetime.date.today().isoformat(), "machine": machine()}


def kept(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def keep(results: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


def chosen(names: list[str]) -> dict[str, Part]:
    """Parts by the names of groups and their own."""
    found: dict[str, Part] = {}
    for name in names:
        found |= GROUPS.get(name) or {name: PARTS[name]}
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=[*GROUPS, *PARTS],
        default=["training", "sampling"],
    )
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--readme", action="store_true", help="write the tables")
    parser.add_argument("--merge", nargs="+", type=Path, default=[])
    parser.add_argument(
        "--results",
        type=Path,
        help="default: data/results/full_size.json; --tiny keeps nothing",
    )
    parser.add_argument("--budget", type=float, default=1e9, help="seconds in all")
    args = parser.parse_args(argv)
    if args.results is None:
        args.results = Path(os.devnull) if args.tiny else RESULTS
    results = kept(args.results)
    for path in args.merge:
        results |= kept(path)
        keep(results, args.results)
    if args.readme:
        for path, phases in (README, True), (SHORT, False):
            text = placed(results, path.read_text("utf-8"), phases)
            path.write_text(text, "utf-8")
    if args.show or args.merge or args.readme:
        print(table(results))
        return 0
    sizes = tiny_sizes() if args.tiny else full_sizes()
    let_memory_grow()
    ranks()
    begin = time.perf_counter()
    limits = measure("ceilings", ceilings, sizes)
    for name, part in chosen(args.parts).items():
        late = time.perf_counter() - begin > args.budget
        if summed(float(late)):
            log(f"no time left for {name}")
            continue
        found = {**measure(name, part, sizes), "limits": limits}
        if is_first():
            log(f"{name}: {json.dumps(found)}")
            results[name] = found
            keep(results, args.results)
    again = measure("ceilings again", ceilings, sizes)
    if is_first():
        log(f"ceilings: {json.dumps(limits)}, at the end {json.dumps(again)}")
        for name in chosen(args.parts):
            if name in results:
                results[name]["limits_at_the_end"] = again
        keep(results, args.results)
        print(table(results))
    return int(any("error" in results.get(name, {}) for name in chosen(args.parts)))


if __name__ == "__main__":
    sys.exit(main())

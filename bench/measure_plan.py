"""What `minipalm.scale` predicts, measured on a GPU or two with minipalm's own code.

    python -m bench.measure_plan --out one.json
    torchrun --nproc-per-node 2 -m bench.measure_plan --out two.json
    python -m minipalm.scale.measured one.json two.json     keep and compare them
    python -m bench.measure_plan --tiny --out tiny.json     the same, on a processor

A setting that fails is reported, and the others go on; none is begun when the time is
over. A setting is a network, how it lies on the machine, and the rows of a step, or of
each of its micro-batches.
"""

import argparse
import dataclasses
import datetime
import gc
import json
import statistics
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bench.full.measure import (
    Sizes,
    ceilings,
    clear,
    full_sizes,
    log,
    network,
    now,
    peak,
    reserved,
    tiny_sizes,
    token_rows,
)
from minipalm.config import OptimConfig
from minipalm.model.palm import PaLM
from minipalm.model.place import fine_tuned, place
from minipalm.parallel import is_first, ranks
from minipalm.scale.measured import LENGTH, Setting
from minipalm.scale.reserve import let_memory_grow
from minipalm.train.language_model import next_token_loss
from minipalm.train.optim import adamw, optimizer_step

WARM, TIMED = 2, 5  # steps; the first of them compiles


def setting(name: str, rows: int, **how: Any) -> Setting:
    """One with the usual ways, and nothing measured yet."""
    usual = {"network": "policy", "depth": 32, "gpus": 1, "weights": "float32"}
    usual |= {"lora_rank": 0, "recompute": False, "compile": True}
    return Setting(name=name, rows=rows, gib=0.0, seconds=0.0, **{**usual, **how})


ONE_GPU = (
    setting("all weights", 4),
    setting("all weights", 4, recompute=True),
    setting("adapters", 4, lora_rank=16),
    setting("adapters", 8, lora_rank=16),
    setting("adapters", 4, lora_rank=16, recompute=True),
    setting("all weights", 8, recompute=True),
    setting("critic", 8, network="trunk", depth=24),
    setting("all weights, bfloat16", 4, weights="bfloat16"),
    setting("adapters", 4, lora_rank=16, parts=4),
    setting("all weights", 4, recompute=True, parts=4),
    setting("critic", 4, network="trunk", depth=24, parts=4),
)
TWO_GPUS = (
    setting("all weights", 4, gpus=2),
    setting("all weights", 4, gpus=2, recompute=True),
    setting("all weights", 8, gpus=2, recompute=True),
    setting("all weights", 4, gpus=2, recompute=True, parts=4),
    setting("critic", 4, gpus=2, network="trunk", depth=24, parts=4),
)


def placed(one: Setting, sizes: Sizes) -> PaLM:
    """The network of a setting, with random weights, where it is to be trained."""
    config = sizes.policy if one.network == "policy" else sizes.trunk
    start = network(config)
    if not one.lora_rank:
        return place(start, one.machine, weights=one.weights)
    reference = place(start, one.machine, trained=False)
    return fine_tuned(start, one.machine, reference)


def steps_of(model: PaLM, ids: Tensor, parts: int) -> list[float]:
    """Seconds of each timed step; `peak` and `reserved` are then of these steps."""
    optimizer = adamw(model)
    config = OptimConfig(steps=1000, batch_size=len(ids), lr=1e-6)
    taken = []
    for step in range(1, WARM + TIMED + 1):
        if step == WARM + 1:
            clear()
        start = now()
        for _ in range(parts):
            (next_token_loss(model, ids) / parts).backward()
        optimizer_step(model, optimizer, config, step)
        taken.append(now() - start)
    return taken[WARM:]


def measured(one: Setting, sizes: Sizes) -> dict[str, Any]:
    """A setting with its seconds and GiB, or with its error."""
    begin, found = time.perf_counter(), dataclasses.asdict(one)
    try:
        model = placed(one, sizes)
        clear()
        ids = token_rows(model.config, one.rows, sizes.window + 1)
        taken = steps_of(model, ids, one.parts)
        found |= {"gib": peak(), "reserved": reserved()}
        found["seconds"] = statistics.median(taken)
        found["spread"] = (max(taken) - min(taken)) / found["seconds"]
        del model
    except Exception as error:
        traceback.print_exc()
        found = {**found, "error": f"{type(error).__name__}: {error}"[:300]}
        found.pop("seconds")
    gc.collect()
    clear()
    log(f"{found} took {time.perf_counter() - begin:.0f} s")
    return found


def link(number: int) -> float:
    """Bytes a second that a GPU receives when all gather a large tensor."""
    _, world, device = ranks()
    mine = torch.ones(number // world, dtype=torch.bfloat16, device=device)
    whole = mine.new_empty(world * len(mine))
    taken = []
    for _ in range(12):
        start = now()
        dist.all_gather_into_tensor(whole, mine)
        taken.append(now() - start)
    return 2 * (world - 1) * len(mine) / statistics.median(taken[2:])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--seconds", type=float, default=180.0, help="to begin within")
    args = parser.parse_args(argv)
    begin = time.perf_counter()
    sizes = tiny_sizes() if args.tiny else full_sizes()
    assert args.tiny or sizes.window == LENGTH
    let_memory_grow()
    world = ranks().world
    rates = ceilings(sizes)
    result: dict[str, Any] = {
        "source": "minipalm's own code: bench/measure_plan.py",
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "allocator": let_memory_grow(),
        "ceilings": {
            "flops": 1e12 * rates["sustained_tflops"],
            "bandwidth": 1e9 * rates["copy_gbs"],
        },
        "settings": [],
        "decoding": [],
    }
    if torch.cuda.is_available():
        result["source"] += f", {torch.cuda.get_device_name()}"
    if world > 1:
        result["ceilings"]["link"] = link(sizes.copy // 8)
    late = torch.zeros(1)
    for one in ONE_GPU if world == 1 else TWO_GPUS:
        late[0] = time.perf_counter() - begin > args.seconds
        if world > 1:
            dist.broadcast(late, 0)  # all stop before the same setting
        if late.item():
            log(f"no time left for {one}")
            continue
        result["settings"].append(measured(one, sizes))
        if is_first():  # after each, so that nothing is lost
            args.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    if world > 1:
        dist.destroy_process_group()
    return int(any("error" in one for one in result["settings"]))


if __name__ == "__main__":
    sys.exit(main())

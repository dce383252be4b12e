"""What torchrun starts in tests/train/test_parallel.py: two_ranks.py FOLDER OTHER.

Trains each world of worlds.py in FOLDER, stops and resumes it there, and resumes what
is in OTHER, which another number of processes may have left. Rank 0 writes
FOLDER/told.json; that all processes have the same to tell is asserted here.
"""

import json
import os
import resource
import shutil
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed.checkpoint

sys.path.insert(0, str(Path(__file__).parent))
from worlds import (
    DPO,
    GRPO,
    METHODS,
    OFFLINE,
    OPTIM,
    PPO,
    RLOO,
    WORLDS,
    Stopped,
    draw,
    network,
    quiet,
)

from minipalm.config import MachineConfig
from minipalm.model.generate import generate
from minipalm.model.place import in_one_piece, own, place, whole
from minipalm.parallel import barrier, check_same, is_first, ranks, row_by_row, summed
from minipalm.rlhf.sampling import Sampler
from minipalm.train.checkpoint import (
    CheckpointError,
    load_module,
    module_tensors,
    read_state,
    write_checkpoint,
)
from minipalm.train.heldout import mean_loss
from minipalm.train.language_model import next_token_loss
from minipalm.train.run import Run, TrainingError, read_metrics

CONFIGS = {name: replace(OPTIM, steps=4, micro_batch=2) for name in WORLDS}
CONFIGS["ppo"] = replace(PPO, iterations=4, reuse_logprobs=False, micro_batch=2)
WORLDS |= METHODS
CONFIGS["offline"] = replace(OFFLINE, ppo=replace(CONFIGS["ppo"], kl_target=None))
CONFIGS["dpo"] = replace(DPO, optim=replace(OPTIM, steps=4, micro_batch=1))
for method in (RLOO, GRPO):
    CONFIGS[method.method] = replace(
        method, iterations=4, reuse_logprobs=False, micro_batch=1
    )


def weights(modules):
    """All weights in one piece, by name."""
    return {
        f"{name}/{key}": in_one_piece(tensor).tolist()
        for name, module in modules.items()
        for key, tensor in module.state_dict().items()
    }


def begin(folder: Path) -> None:
    """Runs that are cut short in step 3, after the checkpoint of step 2."""
    for name, world in WORLDS.items():
        try:
            world(folder / name, stop=3, config=CONFIGS[name], placed=True)
        except Stopped:
            barrier()


def finish(folder: Path) -> dict:
    """The same runs to the end, resumed or begun."""
    return {
        name: {
            "weights": weights(world(folder / name, config=CONFIGS[name], placed=True)),
            "metrics": read_metrics(folder / name),
        }
        for name, world in WORLDS.items()
    }


def passes(folder: Path) -> dict:
    """Passes without training, whose rows no number of processes divides."""
    policy, rows = network(0), draw(7, 6)
    prompts, mask = rows[:, :3], torch.ones(7, 3, dtype=torch.bool)
    how = {"max_new_tokens": 5, "eos_id": 2}
    told = {}
    for name, decoder in (("generate", False), ("decoder", True)):
        placed = place(policy, MachineConfig(decoder=decoder))
        generator = torch.Generator().manual_seed(4)
        said = Sampler(placed)(placed, prompts, mask, **how, generator=generator)
        told[name] = [said.responses.tolist(), said.mask.tolist()]
        told[name] += [said.logprobs.tolist()]
    generator = torch.Generator().manual_seed(4)
    alone = generate(policy, prompts, mask, **how, generator=generator)
    assert told["generate"][0] == alone.responses.tolist()
    states = row_by_row(lambda some: placed.hidden(rows[some])[:, -1], 7, 2)
    told["states"] = states.tolist()
    told["loss"] = mean_loss(next_token_loss, placed, rows, 35, 2)
    assert all(map(torch.equal, whole(placed).parameters(), policy.parameters()))
    half = place(policy, MachineConfig(compute="bfloat16", recompute=True))
    loss = next_token_loss(half, rows[:6], 30 * ranks().world)
    loss.backward()
    told["half"] = summed(loss).item()
    run = Run(folder, seed=0)
    run.check_weights(1, {"model": half})
    weight = own(half.blocks[0].w_feedforward.weight)
    if ranks().rank == ranks().world - 1:  # one process's part
        weight.data[-1, -1] = torch.nan
    try:
        run.check_weights(2, {"model": half})
    except TrainingError as error:
        told["not finite"] = "no longer finite after step 2" in str(error)
    grad = in_one_piece(half.blocks[0].w_in.weight.grad)
    told["grad"] = [str(grad.dtype), grad.tolist()]
    return told


def failures(folder: Path) -> dict:
    """What all are told where the last process has no room to write, or cannot read."""
    model = place(network(0), MachineConfig())
    tensors = module_tensors({"m": model})
    write_checkpoint(folder / "a", tensors, {"n": 1})
    last, told = ranks().rank == ranks().world - 1, {}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if last:  # as on a disk with a quota
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))
    try:
        write_checkpoint(folder / "a", tensors, {"n": 2})
    except CheckpointError as error:
        told["written"] = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    barrier()  # the first process clears away what was begun
    told["kept"] = read_state(folder / "a")["n"], os.listdir(folder)
    reader = torch.distributed.checkpoint.HuggingFaceStorageReader
    broken = OSError(5, "Input/output error") if last else None
    with patch.object(reader, "read_data", side_effect=broken):
        try:
            load_module(model, folder / "a", "m")
        except CheckpointError as error:
            told["read"] = str(error)
    return told


def main(folder: Path, other: Path) -> None:
    torch.use_deterministic_algorithms(True)
    quiet()
    warnings.filterwarnings("error", message="FSDP2-wrapped")  # it names a danger
    told = {"passes": passes(folder / "passes"), "whole": finish(folder / "whole")}
    told["failures"] = failures(folder / "failures")
    begin(folder / "cut")
    if is_first():
        shutil.copytree(folder / "cut", folder / "left")  # for another number of us
        shutil.copytree(folder / "cut", folder / "begun")  # stays as it is
    barrier()
    told["resumed"] = finish(folder / "cut")
    if other.exists():
        told["taken_over"] = finish(other)

    check_same("what is told", json.dumps(told, sort_keys=True))
    if is_first():
        (folder / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except BaseException:
        import traceback

        sys.stderr = sys.__stderr__
        traceback.print_exc()
        os._exit(1)

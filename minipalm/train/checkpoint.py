"""Checkpoints: safetensors beside a small JSON, whole or not there at all.

Several processes write a file each, with their parts of the weights: PyTorch's
distributed checkpoint, in safetensors too. Any number of processes reads either kind.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from minipalm.model.place import is_sharded
from minipalm.parallel import barrier, is_first
from minipalm.train.parts import PARTS, load_parts, own_part, part_sizes, save_parts
from minipalm.train.piecewise import save_file

Tensors = dict[str, Tensor]
TENSORS, STATE = "tensors.safetensors", "state.json"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, read, or used here."""


def module_tensors(modules: Mapping[str, nn.Module]) -> Tensors:
    """Weights and buffers by name: "policy/norm.weight", ..."""
    return {
        f"{name}/{key}": tensor.contiguous()
        for name, module in modules.items()
        for key, tensor in learnt(module).items()
    }


def learnt(module: nn.Module) -> Tensors:
    """The state of a module; where it has adapters, theirs: the rest never changes."""
    state = module.state_dict()
    return {key: x for key, x in state.items() if ".lora_" in key} or state


def optimizer_tensors(optimizers: Mapping[str, torch.optim.Optimizer]) -> Tensors:
    """What the optimizers remember, by weight number: "policy_optimizer/0.exp_avg"."""
    return {
        f"{name}/{number}.{key}": tensor
        for name, optimizer in optimizers.items()
        for number, memory in optimizer.state_dict()["state"].items()
        for key, tensor in memory.items()
    }


# --- writing ------------------------------------------------------------------------


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Whatever keeps the block from writing becomes one sentence that names path.

    Raises:
        CheckpointError: the disk is full, say.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: could not be written ({error}). Earlier checkpoints are whole: "
            "make room on the disk and run again to resume."
        ) from None


def write_checkpoint(folder: Path, tensors: Tensors, state: dict[str, Any]) -> None:
    """Write all of it under a temporary name, then rename: never half a checkpoint.

    Args:
        folder: to be made; what stood there before is valid until the new one is.
        tensors: weights, optimizer memory, the state of a random generator. Where they
            are sharded, all processes must call, and each writes its parts.
        state: numbers and strings, kept as JSON.

    Raises:
        CheckpointError: it could not be written (a full disk, say). Nothing is left of
            the attempt.
    """
    temporary, aside = folder.with_name(".checkpoint.tmp"), _aside(folder)
    sharded = any(map(is_sharded, tensors.values()))
    try:
        with writing(folder):
            if is_first():
                shutil.rmtree(temporary, ignore_errors=True)  # of one that was killed
                temporary.mkdir(parents=True)
            barrier()
            if sharded:
                save_parts(tensors, temporary)
            elif is_first():
                save_file(tensors, temporary / TENSORS)
            barrier()
            if is_first():
                if sharded:
                    state = {**state, "parts": part_sizes(temporary)}
                (temporary / STATE).write_text(json.dumps(state, indent=1), "utf-8")
                for path in temporary.iterdir():
                    with open(path, "rb+") as file:
                        os.fsync(file.fileno())
                if folder.exists():
                    shutil.rmtree(aside, ignore_errors=True)
                    folder.rename(aside)
                temporary.rename(folder)
    finally:
        if is_first():
            shutil.rmtree(temporary, ignore_errors=True)
    if is_first():
        shutil.rmtree(aside, ignore_errors=True)
    barrier()


def _aside(folder: Path) -> Path:
    """Where a checkpoint waits while another one takes its name."""
    return folder.with_name(f".{folder.name}.old")


# --- reading ------------------------------------------------------------------------


def _standing(folder: Path) -> Path:
    """The checkpoint, or the one before it if the replacing was cut off midway."""
    aside = _aside(folder)
    return aside if aside.exists() and not folder.exists() else folder


def read_state(folder: Path) -> dict[str, Any]:
    """The JSON half of a checkpoint.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    path = _standing(folder) / STATE
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _unreadable(path, error) from None
    except ValueError as error:
        raise CheckpointError(
            f"{path}: expected JSON, found something else ({error}). " + redo(folder)
        ) from None


def read_tensors(
    folder: Path, prefix: str, like: Mapping[str, Tensor] | None = None
) -> Tensors:
    """The tensors whose names begin with `prefix/`, without it. Nothing is unpickled.

    Args:
        folder: a checkpoint.
        prefix: of the names.
        like: of those that are sharded in here under the same name, this process gets
            its part only. Then all processes must call.

    Raises:
        CheckpointError: the file is missing, truncated, a pickle, or lacks the tensors.
    """
    path = _standing(folder) / TENSORS
    try:
        if not path.exists() and part_sizes(path.parent):
            _check_whole(path.parent)
            tensors = load_parts(path.parent, prefix, like or {})
        else:
            with safe_open(path, framework="pt") as file:
                names = [n for n in file.keys() if n.startswith(f"{prefix}/")]  # noqa: SIM118
                tensors = {n[len(prefix) + 1 :]: file.get_tensor(n) for n in names}
            for name, tensor in tensors.items():
                if like and name in like and is_sharded(like[name]):
                    tensors[name] = own_part(tensor, like[name])
    except OSError as error:
        raise _unreadable(path, error) from None
    except SafetensorError as error:
        if not path.exists():
            raise CheckpointError(
                f"{path.parent}: one of {PARTS} is damaged ({error}). " + redo(folder)
            ) from None
        if _is_pickle(path):
            raise CheckpointError(
                f"{path}: this is a pickle, which could run any code when loaded. "
                "minipalm reads safetensors only: save it with safetensors.torch."
            ) from None
        raise CheckpointError(
            f"{path}: expected a whole safetensors file, found a damaged one ({error}; "
            f"{path.stat().st_size} bytes). {redo(folder)}"
        ) from None
    if not tensors:
        raise CheckpointError(
            f"{path}: expected weights of {prefix!r}, found none. Is it the checkpoint "
            f"of something else? {redo(folder)}"
        )
    return tensors


def _check_whole(folder: Path) -> None:
    """Raises CheckpointError if a part is missing, or has another size than it had."""
    told, there = read_state(folder).get("parts", {}), part_sizes(folder)
    for name in sorted(told.keys() | there.keys()):
        if told.get(name) != there.get(name):
            raise CheckpointError(
                f"{folder / name}: expected a file of {told.get(name, 0)} bytes, found "
                f"{there.get(name, 0)}: it is not whole. Copy it again, or: "
                + redo(folder)
            )


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"{path}: expected a checkpoint, {TENSORS} and {STATE}, and it cannot be read "
        f"({error.strerror or error}). {redo(path.parent)}"
    )


def redo(folder: Path) -> str:
    """How to go on without a checkpoint. A result is made by its whole stage only."""
    if folder.name == "result":
        return f"Delete {folder.parent}, its stage, and run again: it is made anew."
    return f"Delete {folder} and run again."


def _is_pickle(path: Path) -> bool:
    """By its first bytes; a damaged safetensors file may begin like one by chance."""
    with open(path, "rb") as file:
        start = file.read(9)
    zipped = start.startswith(b"PK\x03\x04")  # what torch.save writes
    plain = start[:1] == b"\x80" and start[1:2] in (b"\2", b"\3", b"\4", b"\5")
    return (zipped or plain) and start[8:] != b"{"


def load_module(module: nn.Module, folder: Path, name: str) -> None:
    """Fill a module with the weights that a checkpoint holds under its name.

    A module on the meta device takes them as they lie in the file, and in their types.

    Raises:
        CheckpointError: see `read_tensors`; or a weight is missing, unknown, or of
            another shape or type. Nothing is converted in silence: half precision, once
            rounded, is not the run that was saved.
    """
    wanted: Mapping[str, Tensor] = learnt(module)
    found = read_tensors(folder, name, wanted)
    empty = any(tensor.is_meta for tensor in wanted.values())
    if empty:
        wanted = {
            key: tensor.to(found[key].dtype) if key in found else tensor
            for key, tensor in wanted.items()
        }
    for key in sorted(found.keys() | wanted.keys()):
        have, want = _described(found.get(key)), _described(wanted.get(key))
        if have != want:
            raise CheckpointError(
                f"{folder / TENSORS}: {name}/{key}: this model needs {want}, and there "
                f"is {have}. Was it trained at another scale or with other words?"
            )
    module.load_state_dict({**module.state_dict(), **found}, assign=empty)


def _described(tensor: Tensor | None) -> str:
    """`float32 of shape (48, 16)`"""
    if tensor is None:
        return "nothing"
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def load_optimizer(optimizer: torch.optim.Optimizer, folder: Path, name: str) -> None:
    """Fill an optimizer with what a checkpoint remembers of it."""
    memory: dict[int, dict[str, Tensor]] = {}
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    like = {
        f"{number}.{entry}": weight
        for number, weight in enumerate(weights)
        for entry in ("exp_avg", "exp_avg_sq")
    }
    for key, tensor in read_tensors(folder, name, like).items():
        number, entry = key.split(".")
        memory.setdefault(int(number), {})[entry] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": memory, "param_groups": groups})

"""Checkpoints: safetensors beside a small JSON, whole or not there at all."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

Tensors = dict[str, Tensor]
TENSORS, STATE = "tensors.safetensors", "state.json"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, read, or used here."""


def module_tensors(modules: Mapping[str, nn.Module]) -> Tensors:
    """Weights and buffers by name: "policy/norm.weight", ..."""
    return {
        f"{name}/{key}": tensor.contiguous()
        for name, module in modules.items()
        for key, tensor in module.state_dict().items()
    }


def optimizer_tensors(optimizers: Mapping[str, torch.optim.Optimizer]) -> Tensors:
    """What the optimizers remember, by weight number: "policy_optimizer/0.exp_avg"."""
    return {
        f"{name}/{number}.{key}": tensor
        for name, optimizer in optimizers.items()
        for number, memory in optimizer.state_dict()["state"].items()
        for key, tensor in memory.items()
    }


def write_checkpoint(folder: Path, tensors: Tensors, state: dict[str, Any]) -> None:
    """Write all of it under a temporary name, then rename: never half a checkpoint.

    Args:
        folder: to be made; what stood there before is valid until the new one is.
        tensors: weights, optimizer memory, the state of a random generator.
        state: numbers and strings, kept as JSON.

    Raises:
        CheckpointError: it could not be written (a full disk, say). Nothing is left of
            the attempt.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        save_file(tensors, temporary / TENSORS)
        (temporary / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
        for name in (TENSORS, STATE):
            with open(temporary / name, "rb+") as file:
                os.fsync(file.fileno())
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"{folder}: the checkpoint could not be written ({error}). Earlier ones "
            "are whole: make room on the disk and run again to resume."
        ) from error


def read_state(folder: Path) -> dict[str, Any]:
    """The JSON half of a checkpoint.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    path = folder / STATE
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder}: expected a checkpoint, {TENSORS} and {STATE}, found no {STATE}."
        ) from None
    except ValueError as error:
        raise CheckpointError(
            f"{path}: expected JSON, found something else ({error}). Delete {folder} "
            "and run again."
        ) from None


def read_tensors(folder: Path, prefix: str) -> Tensors:
    """The tensors whose names begin with `prefix/`, without it. Nothing is unpickled.

    Raises:
        CheckpointError: the file is missing, truncated, a pickle, or lacks the tensors.
    """
    path = folder / TENSORS
    try:
        with safe_open(path, framework="pt") as file:
            names = [n for n in file.keys() if n.startswith(f"{prefix}/")]  # noqa: SIM118
            tensors = {n[len(prefix) + 1 :]: file.get_tensor(n) for n in names}
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: expected a checkpoint, found no file."
        ) from None
    except SafetensorError as error:
        start = path.read_bytes()[:4] if path.is_file() else b""
        if start[:2] == b"PK" or start[:1] == b"\x80":
            raise CheckpointError(
                f"{path}: this is a pickle, which could run any code when loaded. "
                "minipalm reads safetensors only: save it with safetensors.torch."
            ) from None
        raise CheckpointError(
            f"{path}: expected a whole safetensors file, found a damaged one ({error}; "
            f"{path.stat().st_size} bytes). Delete {folder} and run again."
        ) from None
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors of {prefix!r}.")
    return tensors


def load_module(module: nn.Module, folder: Path, name: str) -> None:
    """Fill a module with the weights that a checkpoint holds under its name.

    Raises:
        CheckpointError: see `read_tensors`; or a weight is missing, unknown, or of
            another shape.
    """
    found, wanted = read_tensors(folder, name), module.state_dict()
    for key in sorted(found.keys() | wanted.keys()):
        have = tuple(found[key].shape) if key in found else "nothing"
        want = tuple(wanted[key].shape) if key in wanted else "nothing"
        if have != want:
            raise CheckpointError(
                f"{folder / TENSORS}: {name}.{key} has shape {have}, and this model "
                f"needs {want}. Was it trained at another scale or with other words?"
            )
    module.load_state_dict(found)


def load_optimizer(optimizer: torch.optim.Optimizer, folder: Path, name: str) -> None:
    """Fill an optimizer with what a checkpoint remembers of it."""
    memory: dict[int, dict[str, Tensor]] = {}
    for key, tensor in read_tensors(folder, name).items():
        number, entry = key.split(".")
        memory.setdefault(int(number), {})[entry] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": memory, "param_groups": groups})

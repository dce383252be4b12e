"""Checkpoints: safetensors beside a small JSON, whole or not there at all."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
        tensors: weights, optimizer memory, the state of a random generator.
        state: numbers and strings, kept as JSON.

    Raises:
        CheckpointError: it could not be written (a full disk, say). Nothing is left of
            the attempt.
    """
    temporary, aside = folder.with_name(".checkpoint.tmp"), _aside(folder)
    try:
        with writing(folder):
            shutil.rmtree(temporary, ignore_errors=True)  # of one that was killed
            temporary.mkdir(parents=True)
            save_file(tensors, temporary / TENSORS)
            (temporary / STATE).write_text(json.dumps(state, indent=1), "utf-8")
            for name in (TENSORS, STATE):
                with open(temporary / name, "rb+") as file:
                    os.fsync(file.fileno())
            if folder.exists():
                shutil.rmtree(aside, ignore_errors=True)
                folder.rename(aside)
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(aside, ignore_errors=True)


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
            f"{path}: expected JSON, found something else ({error}). Delete {folder} "
            "and run again."
        ) from None


def read_tensors(folder: Path, prefix: str) -> Tensors:
    """The tensors whose names begin with `prefix/`, without it. Nothing is unpickled.

    Raises:
        CheckpointError: the file is missing, truncated, a pickle, or lacks the tensors.
    """
    path = _standing(folder) / TENSORS
    try:
        with safe_open(path, framework="pt") as file:
            names = [n for n in file.keys() if n.startswith(f"{prefix}/")]  # noqa: SIM118
            tensors = {n[len(prefix) + 1 :]: file.get_tensor(n) for n in names}
    except OSError as error:
        raise _unreadable(path, error) from None
    except SafetensorError as error:
        if _is_pickle(path):
            raise CheckpointError(
                f"{path}: this is a pickle, which could run any code when loaded. "
                "minipalm reads safetensors only: save it with safetensors.torch."
            ) from None
        raise CheckpointError(
            f"{path}: expected a whole safetensors file, found a damaged one ({error}; "
            f"{path.stat().st_size} bytes). Delete {folder} and run again."
        ) from None
    if not tensors:
        raise CheckpointError(
            f"{path}: expected weights of {prefix!r}, found none. Is it the checkpoint "
            f"of something else? Delete {folder} and run again."
        )
    return tensors


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"{path}: expected a checkpoint, {TENSORS} and {STATE}, and it cannot be read "
        f"({error.strerror or error}). Delete {path.parent} and run again."
    )


def _is_pickle(path: Path) -> bool:
    """By its first bytes; a damaged safetensors file may begin like one by chance."""
    with open(path, "rb") as file:
        start = file.read(9)
    zipped = start.startswith(b"PK\x03\x04")  # what torch.save writes
    plain = start[:1] == b"\x80" and start[1:2] in (b"\2", b"\3", b"\4", b"\5")
    return (zipped or plain) and start[8:] != b"{"


def load_module(module: nn.Module, folder: Path, name: str) -> None:
    """Fill a module with the weights that a checkpoint holds under its name.

    Raises:
        CheckpointError: see `read_tensors`; or a weight is missing, unknown, or of
            another shape or type. Nothing is converted in silence: half precision, once
            rounded, is not the run that was saved.
    """
    found, wanted = read_tensors(folder, name), module.state_dict()
    for key in sorted(found.keys() | wanted.keys()):
        have, want = _described(found.get(key)), _described(wanted.get(key))
        if have != want:
            raise CheckpointError(
                f"{folder / TENSORS}: {name}/{key}: this model needs {want}, and there "
                f"is {have}. Was it trained at another scale or with other words?"
            )
    module.load_state_dict(found)


def _described(tensor: Tensor | None) -> str:
    """`float32 of shape (48, 16)`"""
    if tensor is None:
        return "nothing"
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def load_optimizer(optimizer: torch.optim.Optimizer, folder: Path, name: str) -> None:
    """Fill an optimizer with what a checkpoint remembers of it."""
    memory: dict[int, dict[str, Tensor]] = {}
    for key, tensor in read_tensors(folder, name).items():
        number, entry = key.split(".")
        memory.setdefault(int(number), {})[entry] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": memory, "param_groups": groups})

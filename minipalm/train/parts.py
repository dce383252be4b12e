"""A checkpoint that several processes wrote: PyTorch's distributed one, in safetensors.

Each writes its parts of the weights. Any number of processes reads them, also one.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minipalm.model.place import is_sharded

Tensors = dict[str, Tensor]
PARTS = "shard-*.safetensors"


def part_sizes(folder: Path) -> dict[str, int]:
    """The names of a sharded checkpoint's files, and how many bytes each has."""
    return {path.name: path.stat().st_size for path in sorted(folder.glob(PARTS))}


def save_parts(tensors: Tensors, folder: Path) -> None:
    """Each process's parts into files of its own; of what all have, one copy."""
    import torch.distributed.checkpoint as dcp

    # A file is put together in memory before it is written: many small ones, then.
    files = {name: 1 + number // 16 for number, name in enumerate(tensors)}
    with warnings.catch_warnings(action="ignore"):
        writer = dcp.HuggingFaceStorageWriter(
            str(folder), fqn_to_index_mapping=files, save_distributed=True
        )
        with _first_failure():
            dcp.save(tensors, storage_writer=writer)


@contextmanager
def _first_failure() -> Iterator[None]:
    """What went wrong on one process is raised on all, as what it was.

    PyTorch raises a table of tracebacks, which is not even an Exception.
    """
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:
        _, (failure, _) = min(error.failures.items())
        raise failure from None


def load_parts(folder: Path, prefix: str, like: Mapping[str, Any]) -> Tensors:
    """The tensors whose names begin with `prefix/`, for as many processes as there are.

    Args:
        like: of those that are sharded in here, this process gets its part only.
    """
    import torch.distributed.checkpoint as dcp

    with warnings.catch_warnings(action="ignore"):
        reader = dcp.HuggingFaceStorageReader(str(folder))
        found: Mapping[str, Any] = reader.read_metadata().state_dict_metadata
        wanted: Tensors = {}
        for name, one in found.items():
            key = name.removeprefix(f"{prefix}/")
            if key != name:
                dtype, target = one.properties.dtype, like.get(key, one)
                wanted[name] = torch.empty(one.size, dtype=dtype)
                if is_sharded(target) and target.shape == one.size:
                    wanted[name] = torch.empty_like(target, dtype=dtype)
        alone = not any(map(is_sharded, wanted.values()))
        with _first_failure():
            dcp.load(wanted, storage_reader=reader, no_dist=alone)
    return {name[len(prefix) + 1 :]: tensor for name, tensor in wanted.items()}


def own_part(tensor: Tensor, like: Any) -> Tensor:
    """Of a whole tensor, what this process has of `like`, if they fit."""
    from torch.distributed.tensor import distribute_tensor

    if tensor.shape != like.shape:
        return tensor
    return distribute_tensor(
        tensor, like.device_mesh, like.placements, src_data_rank=None
    )

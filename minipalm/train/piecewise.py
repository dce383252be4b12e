"""A safetensors file that is written tensor by tensor.

The library's own `save_file` first has all tensors of a GPU copied into the machine's
memory: 82 GB for a network of 6.9 billion weights and Adam's two moments. The format is
an 8-byte length, that much JSON (types, shapes, places), and the tensors' bytes.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}


def save_file(tensors: Mapping[str, Tensor], path: Path) -> None:
    """What `safetensors.torch.save_file` writes, with one tensor in memory at a time.

    Raises:
        OSError: the disk is full, say.
        SafetensorError: a tensor is of a type that is not in NAMES.
    """
    # The widest types first: so each number lies at a multiple of its width.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {}
    end = 0
    for name in names:
        x = tensors[name]
        if x.dtype not in NAMES:
            raise SafetensorError(
                f"{name}: {x.dtype} is not among the types that are kept"
            )
        begin, end = end, end + x.nbytes
        header[name] = {
            "dtype": NAMES[x.dtype],
            "shape": list(x.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            flat = tensors[name].detach().cpu().reshape(-1)
            file.write(flat.view(torch.uint8).numpy().data)

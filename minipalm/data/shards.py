"""Tables that are made once, kept in files, and read from there as tensors.

A table has columns, each a file of numbers of one type. It is written in parts: after
each, index.json says how many rows are safe, their checksums, and where the input goes
on. Whoever is killed loses the part at hand, and the next start writes it again. The
finished columns are mapped into memory: a row is read from the disk when it is used.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from minipalm.data.fields import DataError
from minipalm.data.files import wait_for, write_text
from minipalm.data.lines import START, Place
from minipalm.parallel import is_first

PART = 64 << 20  # bytes of input between two safe points
INDEX = "index.json"
Columns = Mapping[str, tuple[str, tuple[int, ...]]]  # name -> type, shape of a row


@dataclass(frozen=True)
class Rows:
    """Some rows of a table: one array a column, and what has been read for them."""

    arrays: Mapping[str, np.ndarray]
    left_out: int  # records that are too long
    end: Place
    bytes_read: int


def stored(
    folder: Path | str,
    key: Mapping[str, Any],
    columns: Columns,
    rows_from: Callable[[Place], Iterator[Rows]],
    size: int,
) -> dict[str, Tensor]:
    """The columns of a table, made now unless the folder holds it already.

    Args:
        folder: the table's own. The first process makes it, the others wait for it, on
            several machines as well if they share the folder.
        key: what the table is a function of; made again where it differs.
        columns: types as numpy names them, and shapes.
        rows_from: yields the rows that come of the input from a place on.
        size: bytes of all input, for the bar.

    Returns:
        name -> tensor, N and the shape of a row; not to be written to.

    Raises:
        DataError: a part is not what was written, or no row has come of the input.
    """
    folder = Path(folder)
    key = json.loads(json.dumps({"layout": 1, "columns": columns} | dict(key)))
    if is_first():
        index = _index_of(folder, key)
        if not index.get("done"):
            _write(folder, index, key, columns, rows_from, size)
        else:
            _verify(folder, index["parts"], columns)
    wait_for(lambda: _index_of(folder, key).get("done", False), folder)
    index = _index_of(folder, key)
    rows = sum(part["rows"] for part in index["parts"])
    if is_first():
        _report(folder, rows, sum(part["left_out"] for part in index["parts"]))
    return {
        name: _mapped(_file(folder, name), kind, (rows, *shape))
        for name, (kind, shape) in columns.items()
    }


def _index_of(folder: Path, key: Mapping[str, Any]) -> dict[str, Any]:
    """index.json if it is there, whole, and of this key; else nothing."""
    try:
        index = json.loads((folder / INDEX).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return index if index.get("key") == key else {}


def _write(
    folder: Path,
    index: dict[str, Any],
    key: Mapping[str, Any],
    columns: Columns,
    rows_from: Callable[[Place], Iterator[Rows]],
    size: int,
) -> None:
    """All rows from the last safe point on, or from the first part that is damaged."""
    parts = index.get("parts", [])
    safe = _whole(folder, parts, columns)
    if safe < len(parts):
        print(f"{folder}: part {safe} is not what was written; going on from there")
        parts = parts[:safe]
    folder.mkdir(parents=True, exist_ok=True)
    if not parts:
        (folder / INDEX).unlink(missing_ok=True)  # before what it speaks of changes
    start, read = START, 0
    if parts:
        start, read = tuple(parts[-1]["end"]), parts[-1]["bytes_read"]
    rows_there = sum(part["rows"] for part in parts)
    bar = tqdm(total=size, initial=read, desc=folder.name, unit="B", unit_scale=True)
    with ExitStack() as stack:
        stack.enter_context(bar)
        files = {}
        for name, column in columns.items():
            file = _file(folder, name).open("r+b" if parts else "wb")
            files[name] = stack.enter_context(file)
            file.truncate(rows_there * _row_bytes(column))  # not what is unsafe
            file.seek(0, os.SEEK_END)
        part = _Part(files)
        for rows in rows_from(start):
            part.add(rows)
            bar.update(rows.bytes_read - bar.n)
            if rows.bytes_read - read >= PART:
                parts.append(part.closed())
                _keep(folder, key, parts, done=False)
                part, read = _Part(files), rows.bytes_read
        if part.last:
            parts.append(part.closed())
    if not sum(part["rows"] for part in parts):
        raise DataError(
            f"{folder}: expected rows to train on, got none: all of"
            f" {sum(part['left_out'] for part in parts)} records are too long;"
            " shorten them or choose a scale with a longer window"
        )
    _keep(folder, key, parts, done=True)


class _Part:
    """The rows since the last safe point."""

    def __init__(self, files: Mapping[str, BinaryIO]):
        self.files = files
        self.digests = {name: hashlib.sha256() for name in files}
        self.rows = self.left_out = 0
        self.last: Rows | None = None

    def add(self, rows: Rows) -> None:
        for name, array in rows.arrays.items():
            raw = array.tobytes()
            self.files[name].write(raw)
            self.digests[name].update(raw)
        self.rows += len(next(iter(rows.arrays.values())))
        self.left_out += rows.left_out
        self.last = rows

    def closed(self) -> dict[str, Any]:
        """What the index says of it, once all of it is on the disk."""
        assert self.last
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
        return {
            "rows": self.rows,
            "left_out": self.left_out,
            "end": self.last.end,
            "bytes_read": self.last.bytes_read,
            "sha256": {name: d.hexdigest() for name, d in self.digests.items()},
        }


def _keep(folder: Path, key: Mapping[str, Any], parts: list, done: bool) -> None:
    content = {"key": key, "done": done, "parts": parts}
    write_text(folder / INDEX, json.dumps(content, indent=1))


def _whole(folder: Path, parts: list[dict[str, Any]], columns: Columns) -> int:
    """How many of the first parts have the checksums they were written with."""
    whole = len(parts)
    for name, column in columns.items():
        if not _file(folder, name).is_file():
            return 0
        with _file(folder, name).open("rb") as file:
            for n, part in enumerate(parts[:whole]):
                digest = hashlib.sha256()
                left = part["rows"] * _row_bytes(column)
                while left and (raw := file.read(min(left, 1 << 24))):
                    digest.update(raw)
                    left -= len(raw)
                if digest.hexdigest() != part["sha256"][name]:
                    whole = n
                    break
    return whole


def _verify(folder: Path, parts: list[dict[str, Any]], columns: Columns) -> None:
    """Raise DataError unless every part has the checksums it was written with."""
    whole = _whole(folder, parts, columns)
    if whole < len(parts):
        raise DataError(
            f"{folder}: part {whole} of {len(parts)} is not what was written (its"
            " checksum differs); remove the folder, and the next run makes it again"
        )


def _report(folder: Path, rows: int, left_out: int) -> None:
    if left_out:
        print(f"{folder.name}: {left_out:,} records are too long and were left out")


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.bin"


def _row_bytes(column: tuple[str, tuple[int, ...]]) -> int:
    kind, shape = column
    return int(np.dtype(kind).itemsize * np.prod(shape, dtype=int))


def _mapped(path: Path, kind: str, shape: tuple[int, ...]) -> Tensor:
    """A file as a tensor; the operating system reads what is used, when it is used."""
    numbers = np.memmap(path, np.dtype(kind), mode="r", shape=shape)
    with warnings.catch_warnings():  # "not writable": nobody writes to it
        warnings.simplefilter("ignore")
        return torch.from_numpy(numbers)

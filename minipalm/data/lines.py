"""Records from JSON-lines and Parquet files of any size, a block at a time.

A block ends at a place (file, where in the file, records before it) from which reading
can go on after a crash. What is wrong with a record is said with its file and line.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path

BLOCK = 4 << 20  # bytes of JSON lines read at once
ROWS = 4096  # of a Parquet file, decoded at once

Paths = str | Path | Sequence[str | Path]  # a file, a pattern with *, or several
Place = tuple[int, int, int]  # file; byte (JSON lines) or row group; line or batch
START: Place = (0, 0, 0)
STRINGS = re.compile(r"(dictionary<values=)?(large_)?string(_view)?\b")  # of Parquet


class DataError(ValueError):
    """What is wrong with a file, at which line, and how to mend it."""


@dataclass(frozen=True)
class Block:
    """Some records: the values of the fields, with the source ("path:17") last."""

    rows: list[tuple[str, ...]]
    end: Place  # where the next block begins
    bytes_read: int  # of all files, up to there


def input_files(paths: Paths) -> list[Path]:
    """The files that are meant: a pattern stands for its matches, in order of name.

    Raises DataError if a pattern has no match; a file that is missing stays in.
    """
    files: list[Path] = []
    for path in [paths] if isinstance(paths, str | Path) else paths:
        if not any(mark in str(path) for mark in "*?["):
            files.append(Path(path))
            continue
        found = sorted(Path(name) for name in glob(str(path), recursive=True))
        if not found:
            raise DataError(
                f"{path}: expected one file or more of that pattern, got none;"
                " correct the pattern"
            )
        files += found
    return files


def read_blocks(
    files: Sequence[Path], fields: Sequence[str], start: Place = START
) -> Iterator[Block]:
    """The named fields of all records from a place on, checked; raises DataError."""
    before = 0
    number_read = 0
    for at, path in enumerate(files):
        if at >= start[0]:
            inside = start[1:] if at == start[0] else START[1:]
            read = _parquet if is_parquet(path) else _json_lines
            for rows, (one, two), here in read(path, fields, *inside):
                number_read += len(rows)
                yield Block(rows, (at, one, two), before + here)
        before += size_of(path)
    if not number_read and start == START:
        example = json.dumps(dict.fromkeys(fields, "..."))
        raise DataError(
            f"{files[0]}: expected a JSON object on each line, such as {example},"
            " got an empty file; put at least one line in it"
        )


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # what is wrong with it is said by whoever opens it


Part = tuple[list[tuple[str, ...]], tuple[int, int], int]  # rows, place, bytes read


# --- JSON lines ---------------------------------------------------------------------


def _json_lines(
    path: Path, fields: Sequence[str], offset: int, number: int
) -> Iterator[Part]:
    """Blocks from a byte on, before which there are so many lines."""
    try:
        file = path.open("rb")  # bytes: a line that is not UTF-8 can then be named
    except OSError as error:
        raise DataError(
            f"{path}: expected a JSON-lines file, got: {error.strerror};"
            " correct the path, or make TinyTales' files with"
            " `python -m minipalm.data.make --out data`"
        ) from None
    with file:
        file.seek(offset)
        while lines := file.readlines(BLOCK):
            rows = []
            for raw in lines:
                number += 1
                source = f"{path}:{number}"
                line = _decoded(raw, number, source)
                if line.strip():
                    rows.append((*_fields(line, fields, source), source))
            offset += sum(map(len, lines))
            yield rows, (offset, number), offset


def _decoded(raw: bytes, number: int, source: str) -> str:
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{source}: expected UTF-8, got the byte"
            f" 0x{raw[error.start]:02x} at position {error.start + 1};"
            " save the file as UTF-8"
        ) from None


def _fields(line: str, fields: Sequence[str], source: str) -> list[str]:
    """The values of the fields in one line, each a string that is not blank."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        why = str(error).split(": line 1")[0]  # it cannot know the line of the file
        raise DataError(
            f"{source}: expected a JSON object on one line, got {short(line.strip())}"
            f" ({why}); mend the line or remove it"
        ) from None
    if not isinstance(content, dict):
        raise DataError(
            f"{source}: expected a JSON object with {_names(fields)},"
            f" got {_described(content)}; write it as {{...}}"
        )
    for field in fields:
        if field not in content:
            raise DataError(
                f"{source}: field '{field}': expected {_names(fields)},"
                f" got {_names(content) or 'no field'}; add or rename the field"
            )
    return [_text(content[field], source, field) for field in fields]


def _text(value: object, source: str, field: str) -> str:
    """The value itself, if it is a string with something in it."""
    where = f"{source}: field '{field}'"
    if not isinstance(value, str):
        raise DataError(
            f"{where}: expected a string, got {_described(value)}; put it in quotes"
        )
    if not value.strip():
        raise DataError(
            f"{where}: expected some text, got {short(value)};"
            " fill it in or remove the line"
        )
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can spell half of an emoji: "\\ud83e"
        raise DataError(
            f"{where}: expected whole characters, got half of one in {short(value)};"
            " write the character itself instead of \\u escapes"
        ) from None
    return value


# --- Parquet ------------------------------------------------------------------------


def is_parquet(path: Path) -> bool:
    """By its name or its first four bytes."""
    if path.suffix == ".parquet":
        return True
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PAR1"
    except OSError:
        return False


def _parquet(
    path: Path, fields: Sequence[str], group: int, batch: int
) -> Iterator[Part]:
    """Blocks from a batch of a row group on; rows are counted from 0."""
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise DataError(
            f"{path}: expected pyarrow, which reads Parquet, got none; install it with"
            " `pip install -c constraints.txt -e .[full]`, or give JSON lines"
        ) from None
    try:
        file = parquet.ParquetFile(path)
    except (OSError, arrow.ArrowException) as error:
        raise DataError(
            f"{path}: expected a Parquet file, got: {short(error)}; correct the path"
            " or fetch the file again"
        ) from None
    with file:
        _check_columns(path, file.schema_arrow, fields)
        groups = file.num_row_groups
        sizes = [file.metadata.row_group(g).num_rows for g in range(groups)]
        for g in range(group, groups):
            skip = batch if g == group else 0
            try:
                parts = file.iter_batches(ROWS, row_groups=[g], columns=list(fields))
                for b, part in enumerate(parts):
                    if b < skip:
                        continue
                    first = sum(sizes[:g]) + b * ROWS
                    columns = [part.column(field).to_pylist() for field in fields]
                    rows = [
                        _row(values, fields, f"{path}:row {first + n}")
                        for n, values in enumerate(zip(*columns, strict=True))
                    ]
                    done = (g + (b + 1) * ROWS / max(sizes[g], ROWS)) / groups
                    yield rows, (g, b + 1), int(done * size_of(path))
            except (OSError, arrow.ArrowException) as error:
                raise DataError(
                    f"{path}: expected whole rows in row group {g}, got:"
                    f" {short(error)}; fetch the file again"
                ) from None


def _row(
    values: Iterable[object], fields: Sequence[str], source: str
) -> tuple[str, ...]:
    return (*(_text(v, source, field) for v, field in zip(values, fields)), source)


def _check_columns(path: Path, schema: Iterable, fields: Sequence[str]) -> None:
    """Raise DataError unless every field is a column of strings."""
    types = {column.name: str(column.type) for column in schema}
    for field in fields:
        if field not in types:
            raise DataError(
                f"{path}: field '{field}': expected columns {_names(fields)}, got"
                f" {_names(types) or 'no column'}; rename or add the column"
            )
        if not STRINGS.match(types[field]):
            raise DataError(
                f"{path}: field '{field}': expected a column of strings, got"
                f" {_cut(types[field])}; write its text into a column of its own"
            )


# --- what is shown ------------------------------------------------------------------


def _described(value: object) -> str:
    """The JSON word for a value's type, and the value."""
    if value is None:
        return "null"
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return f"{names.get(type(value), 'a number')} {short(value)}"


def _names(fields: Iterable[str]) -> str:
    return _cut(", ".join(repr(field) for field in fields))


def short(value: object) -> str:
    return _cut(repr(value))


def _cut(shown: str) -> str:
    return shown if len(shown) <= 60 else shown[:57] + "..."

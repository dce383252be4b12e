"""Records from JSON-lines and Parquet files of any size, a block at a time.

A block ends at a place (file, where in the file, records before it) from which reading
can go on after a crash. What is wrong with a record is said with its file and line.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path

from minipalm.data.fields import DataError, described, names, short, text_of
from minipalm.data.parquet import Part, is_parquet, read_parquet

BLOCK = 4 << 20  # bytes of JSON lines read at once

KINDS = (".jsonl", ".parquet")

# a file, a folder of files of one kind, a pattern with *, or several of them
Paths = str | Path | Sequence[str | Path]
Place = tuple[int, int, int]  # file; byte (JSON lines) or row group; line or batch
START: Place = (0, 0, 0)


@dataclass(frozen=True)
class Block:
    """Some records: the values of the fields, with the source ("path:17") last."""

    rows: list[tuple[str, ...]]
    end: Place  # where the next block begins
    bytes_read: int  # of all files, up to there


def input_files(paths: Paths) -> list[Path]:
    """The files that are meant: a pattern stands for its matches, in order of name.

    A folder stands for the JSON-lines or the Parquet files in it. A part may be empty,
    as programs that write in parts leave them; only where all are, `read_blocks` minds.
    Neither takes hidden files, such as the ._a.jsonl that macOS leaves beside a.jsonl.
    Raises DataError if a pattern has no match, or a folder no such files, or of both
    kinds; a file that is missing stays in.
    """
    files: list[Path] = []
    for path in [paths] if isinstance(paths, str | Path) else paths:
        if Path(path).is_dir():
            files += _in_folder(Path(path))
            continue
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


def _in_folder(folder: Path) -> list[Path]:
    found = [sorted(folder.glob(f"[!.]*{kind}")) for kind in KINDS]
    if all(found):
        raise DataError(
            f"{folder}: expected files of one kind in this folder, got"
            f" {found[0][0].name} and {found[1][0].name}; keep one kind"
        )
    if not any(found):
        raise DataError(
            f"{folder}: expected .jsonl or .parquet files in this folder, got none;"
            " put them there"
        )
    return [*found[0], *found[1]]


def read_blocks(
    files: Sequence[Path], fields: Sequence[str], start: Place = START
) -> Iterator[Block]:
    """The named fields of all records from a place on, checked; raises DataError."""
    before = 0
    number_read = 0
    for at, path in enumerate(files):
        if at >= start[0]:
            inside = start[1:] if at == start[0] else START[1:]
            read = read_parquet if is_parquet(path) else _json_lines
            for rows, (one, two), here in read(path, fields, *inside):
                number_read += len(rows)
                yield Block(rows, (at, one, two), before + here)
        before += size_of(path)
    if not number_read and start == START:
        example = json.dumps(dict.fromkeys(fields, "..."))
        wanted = f"a JSON object on each line, such as {example}", "line"
        if is_parquet(files[0]):
            wanted = f"rows with the columns {names(fields)}", "row"
        raise DataError(
            f"{files[0]}: expected {wanted[0]}, got an empty file; put at least one"
            f" {wanted[1]} in it"
        )


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # what is wrong with it is said by whoever opens it


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
            f"{source}: expected a JSON object with {names(fields)},"
            f" got {described(content)}; write it as {{...}}"
        )
    for field in fields:
        if field not in content:
            raise DataError(
                f"{source}: field '{field}': expected {names(fields)},"
                f" got {names(content) or 'no field'}; add or rename the field"
            )
    return [text_of(content[field], source, field) for field in fields]

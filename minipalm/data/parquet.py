"""Records from Parquet files, whose rows lie in groups, a column after the other."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from minipalm.data.fields import DataError, cut, names, short, text_of

BLOCK = 8 << 20  # bytes decoded at once, about
STRINGS = re.compile(r"(dictionary<values=)?(large_)?string(_view)?\b")

# rows with their source, the place where the next begin, bytes of the file read so far
Part = tuple[list[tuple[str, ...]], tuple[int, int], int]


def is_parquet(path: Path) -> bool:
    """By its name or its first four bytes."""
    if path.suffix == ".parquet":
        return True
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PAR1"
    except OSError:
        return False


def read_parquet(
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
        groups = [file.metadata.row_group(g) for g in range(file.num_row_groups)]
        first = sum(one.num_rows for one in groups[:group])
        for g in range(group, len(groups)):
            number = groups[g].num_rows
            step = max(BLOCK * number // max(groups[g].total_byte_size, 1), 1)
            try:
                parts = file.iter_batches(step, row_groups=[g], columns=list(fields))
                for b, part in enumerate(parts):
                    if (g, b) < (group, batch):
                        continue  # read before
                    columns = [part.column(field).to_pylist() for field in fields]
                    rows = [
                        _row(values, fields, f"{path}:row {first + b * step + n}")
                        for n, values in enumerate(zip(*columns, strict=True))
                    ]
                    done = (g + min((b + 1) * step / number, 1)) / len(groups)
                    yield rows, (g, b + 1), int(done * path.stat().st_size)
            except (OSError, arrow.ArrowException) as error:
                raise DataError(
                    f"{path}: expected whole rows in row group {g}, got:"
                    f" {short(error)}; fetch the file again"
                ) from None
            first += number


def _row(
    values: Iterable[object], fields: Sequence[str], source: str
) -> tuple[str, ...]:
    return (*(text_of(v, source, field) for v, field in zip(values, fields)), source)


def _check_columns(path: Path, schema: Iterable, fields: Sequence[str]) -> None:
    """Raise DataError unless every field is a column of strings."""
    types = {column.name: str(column.type) for column in schema}
    for field in fields:
        if field not in types:
            raise DataError(
                f"{path}: field '{field}': expected columns {names(fields)}, got"
                f" {names(types) or 'no column'}; rename or add the column"
            )
        if not STRINGS.match(types[field]):
            raise DataError(
                f"{path}: field '{field}': expected a column of strings, got"
                f" {cut(types[field])}; write its text into a column of its own"
            )

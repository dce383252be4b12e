"""Records of files that are too large for memory: read again whenever they are used.

They stand where a list of records does: iterate, take the first few by `records[:n]`,
or part them by `hold_out`. Nothing is kept but the names of the files.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

from minipalm.data.fields import DataError
from minipalm.data.files import fingerprint
from minipalm.data.lines import START, Place, read_blocks, size_of
from minipalm.data.tokenizer import Tokenizer
from minipalm.data.workers import in_order

T = TypeVar("T")
R = TypeVar("R")
Ids = list[int]


class Lazy(Generic[T]):
    """What can be read from the beginning, as often as one likes."""

    def __iter__(self) -> Iterator[T]:
        raise NotImplementedError

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> list[T]: ...
    def __getitem__(self, at: int | slice) -> T | list[T]:
        """One of them, or some as a list; reads on from the first, so not for many.

        Raises IndexError if there are not so many, or the place counts from the end.
        """
        if isinstance(at, slice):
            return list(islice(self, at.start, at.stop, at.step))
        if at >= 0:
            for one in islice(self, at, None):
                return one
        raise IndexError(f"there is no entry {at} to be had by reading from the first")


@dataclass(frozen=True)
class Limits:
    """How long a prompt and an answer may be, in tokens with <bos> or <eos>."""

    tokenizer: Tokenizer
    max_prompt: int
    max_response: int


@dataclass(frozen=True)
class Encoded(Generic[R]):
    """Some records with the ids of their fields, and where the next ones begin."""

    records: list[R]
    ids: list[tuple[Ids, ...]]  # without special ones; the fields in their order
    too_long: int  # records left out
    end: Place
    bytes_read: int


@dataclass(frozen=True)
class Records(Lazy[R]):
    """All records of some files, or a share of them drawn by their contents.

    Attributes:
        kind: Text, Demonstration, ...: what a record becomes.
        files: JSON lines or Parquet.
        share: seed, from, to: a record's hash, a number from 0 to 1, lies there. Equal
            records have equal hashes, so `hold_out` never parts them.
        limits: records that are longer are left out. None: there are none.
    """

    kind: type[R]
    files: tuple[Path, ...]
    share: tuple[int, float, float] | None = None
    limits: Limits | None = None

    @property
    def fields(self) -> list[str]:
        """The names of the texts of a record."""
        return [name for name in self.kind.__slots__ if name != "source"]  # type: ignore[attr-defined]

    @property
    def bytes(self) -> int:
        """The size of all files."""
        return sum(map(size_of, self.files))

    def key(self) -> dict[str, Any]:
        """What tells these records from others: contents and limits, not file names."""
        longest = self.limits and [
            self.limits.tokenizer.fingerprint,
            self.limits.max_prompt,
            self.limits.max_response,
        ]
        files = fingerprint(self.files)
        return {"files": files, "share": self.share, "longest": longest}

    def __iter__(self) -> Iterator[R]:
        if self.limits:
            for encoded in self.encoded(self.limits.tokenizer):
                yield from encoded.records
        else:
            for records, _, _ in self.blocks():
                yield from records

    def blocks(self, start: Place = START) -> Iterator[tuple[list[R], Place, int]]:
        """Records, where the next ones begin, and the bytes read so far."""
        for block in read_blocks(self.files, self.fields, start):
            rows = [row for row in block.rows if self.share is None or self._mine(row)]
            yield [self.kind(*row) for row in rows], block.end, block.bytes_read

    def _mine(self, row: tuple[str, ...]) -> bool:
        assert self.share
        seed, low, high = self.share
        text = "\0".join([str(seed), *row[:-1]])
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        return low <= int.from_bytes(digest, "big") / 2**64 < high

    def encoded(
        self, tokenizer: Tokenizer, start: Place = START, workers: int = 1
    ) -> Iterator[Encoded[R]]:
        """The records with their ids, a block at a time; too long ones are left out."""
        encode = partial(encode_fields, fields=self.fields, tokenizer=tokenizer)
        items = (((end, read), some) for some, end, read in self.blocks(start))
        blocks = ((block, block[1]) for block in items)
        for ((end, bytes_read), records), ids in in_order(encode, blocks, workers):
            fitting = [n for n, row in enumerate(ids) if self._fits(row)]
            yield Encoded(
                [records[n] for n in fitting],
                [ids[n] for n in fitting],
                len(records) - len(fitting),
                end,
                bytes_read,
            )

    def _fits(self, ids: tuple[Ids, ...]) -> bool:
        if self.limits is None:
            return True
        prompt, *answers = ids
        longest = max(map(len, answers), default=0)
        return (
            1 + len(prompt) <= self.limits.max_prompt
            and longest + 1 <= self.limits.max_response
        )


def encode_fields(
    records: Sequence[Any], fields: Sequence[str], tokenizer: Tokenizer
) -> list[tuple[Ids, ...]]:
    """The ids of each record's fields; raises DataError at an unknown word."""
    try:
        columns = [
            tokenizer.encode_all([getattr(record, field) for record in records])
            for field in fields
        ]
    except ValueError:  # now one by one, to say where
        for record in records:
            for field in fields:
                count_tokens(getattr(record, field), field, record.source, tokenizer)
        raise
    return list(zip(*columns, strict=True))


def count_tokens(text: str, field: str, source: str, tokenizer: Tokenizer) -> int:
    try:
        return len(tokenizer.encode(text))
    except ValueError as error:  # a word that the tokenizer does not know
        raise DataError(f"{source}: field '{field}': {error}") from None

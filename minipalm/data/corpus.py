"""What the loops train on, from lists of records or from files of any size.

Lists, as small files are read, become tensors in memory. `Records`, as large files are,
become tables on the disk that are read row by row; their ids are 16-bit where they fit,
and whoever takes a batch makes them int64. Either way the same words come in the same
order.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from torch import Tensor

from minipalm.data import shards
from minipalm.data.batches import (
    pad_left,
    pad_right,
    prompt_ids,
    response_ids,
    text_stream,
)
from minipalm.data.datasets import Demonstration, Preference, Text
from minipalm.data.files import wait_for, write_text
from minipalm.data.lines import Place
from minipalm.data.records import Lazy, Records
from minipalm.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from minipalm.data.workers import cores
from minipalm.parallel import is_first
from minipalm.rlhf.pairs import Pairs, encode_pairs
from minipalm.rlhf.sft import Example, Rows

TRAINING = 1 << 30  # bytes of text that a tokenizer is trained on, at most
ALONE = 64 << 20  # bytes up to which one process tokenizes

Many = Sequence | Records


# --- the tokenizer --------------------------------------------------------------------


def corpus_tokenizer(
    texts: Sequence[Text] | Records[Text],
    demos: Sequence[Demonstration] | Records[Demonstration],
    kind: str,
    vocab_size: int,
    folder: Path | str,
) -> Tokenizer:
    """`train_tokenizer` on texts and demonstrations.

    Of large files it reads a gibibyte, from the beginning of each its share; the first
    process does, and the folder keeps what it has learnt.
    """
    if not isinstance(texts, Records) and not isinstance(demos, Records):
        return train_tokenizer(_strings(texts, demos), kind, vocab_size)
    folder = Path(folder)
    path, made_from = folder / "tokenizer.json", folder / "made_from.json"
    inputs = [one.key() for one in (texts, demos) if isinstance(one, Records)]
    key = json.dumps({"inputs": inputs, "kind": kind, "vocab_size": vocab_size})

    def is_made() -> bool:
        return made_from.is_file() and made_from.read_text("utf-8") == key

    if is_first() and not is_made():
        strings = _strings(_beginnings(texts), _beginnings(demos))
        train_tokenizer(strings, kind, vocab_size).save(path)
        write_text(made_from, key)
    wait_for(is_made, path)
    return load_tokenizer(path)


def _strings(texts: Iterable[Text], demos: Iterable[Demonstration]) -> Iterator[str]:
    yield from (one.text for one in texts)
    yield from (f"{one.prompt} {one.response}" for one in demos)


def _beginnings(many: Many) -> Iterator[Any]:
    """All records, or of large files as many of each as its share of `TRAINING`."""
    if not isinstance(many, Records):
        yield from many
        return
    share = TRAINING / max(many.bytes, TRAINING)
    for file in many.files:
        one = Records(many.kind, (file,))
        for records, _, bytes_read in one.blocks():
            yield from records
            if bytes_read >= share * one.bytes:
                break


# --- texts ----------------------------------------------------------------------------


def token_stream(
    tokenizer: Tokenizer, texts: Sequence[Text] | Records[Text], folder: Path | str
) -> Int[Tensor, "N"]:
    """All texts end to end, as `text_stream` lays them; of large files on the disk."""
    if not isinstance(texts, Records):
        return text_stream(tokenizer, (one.text for one in texts))

    def rows(start: Place) -> Iterator[shards.Rows]:
        for some in texts.encoded(tokenizer, start, _workers(texts)):
            told = ([tokenizer.bos_id, *ids, tokenizer.eos_id] for (ids,) in some.ids)
            ids = np.array([*chain.from_iterable(told)], _type(tokenizer))
            yield shards.Rows({"ids": ids}, some.too_long, some.end, some.bytes_read)

    key = {"texts": texts.key(), "tokenizer": tokenizer.fingerprint}
    columns = {"ids": (_type(tokenizer), ())}
    return shards.stored(folder, key, columns, rows, texts.bytes)["ids"]


# --- demonstrations -------------------------------------------------------------------


@dataclass(frozen=True)
class Examples(Lazy[Example]):
    """Demonstrations of large files as ids, encoded whenever they are read."""

    records: Records[Demonstration]
    tokenizer: Tokenizer

    def __iter__(self) -> Iterator[Example]:
        for examples, _ in self.blocks(shards.START, workers=1):
            yield from examples

    def blocks(
        self, start: Place, workers: int
    ) -> Iterator[tuple[list[Example], tuple[int, Place, int]]]:
        """Examples, and how many are too long, where the next begin, bytes read."""
        bos, eos = self.tokenizer.bos_id, self.tokenizer.eos_id
        for some in self.records.encoded(self.tokenizer, start, workers):
            examples = [([bos, *asked], [*told, eos]) for asked, told in some.ids]
            yield examples, (some.too_long, some.end, some.bytes_read)


def encode_examples(
    demos: Sequence[Demonstration] | Records[Demonstration], tokenizer: Tokenizer
) -> list[Example] | Examples:
    """Prompts with <bos>, and responses with <eos>, in ids."""
    if isinstance(demos, Records):
        return Examples(demos, tokenizer)
    return [
        (prompt_ids(tokenizer, one.prompt), response_ids(tokenizer, one.response))
        for one in demos
    ]


def packed_rows(
    pack: Callable[[Sequence[Example], int], Rows],
    examples: Sequence[Example] | Examples,
    width: int,
    folder: Path | str,
) -> Rows:
    """`pack(examples, width)`; of large files some thousands at a time, in the folder.

    Args:
        pack: lays examples into rows, as `pack_examples` does.
        examples: in the order in which they are packed.
        width: tokens of a row.
        folder: where the rows are kept that do not fit into memory.
    """
    if not isinstance(examples, Examples):
        return pack(examples, width)
    kind = _type(examples.tokenizer)
    columns = {"ids": (kind, (width,)), "segments": ("int16", (width,))}
    columns["mask"] = ("bool", (width,))

    def rows(start: Place) -> Iterator[shards.Rows]:
        for some, place in examples.blocks(start, _workers(examples.records)):
            packed = pack(some, width)
            yield shards.Rows(_arrays(packed, columns), *place)

    key = {"demonstrations": examples.records.key(), "width": width}
    key["tokenizer"] = examples.tokenizer.fingerprint
    size = examples.records.bytes
    return Rows(**shards.stored(folder, key, columns, rows, size))


# --- preferences ----------------------------------------------------------------------


def stored_pairs(
    preferences: Sequence[Preference] | Records[Preference],
    tokenizer: Tokenizer,
    max_prompt: int,
    max_response: int,
    folder: Path | str,
) -> Pairs:
    """`encode_pairs`; of large files on the disk, in the folder.

    Raises ValueError if a record does not fit: see `fitting`.
    """
    if not isinstance(preferences, Records):
        return encode_pairs(preferences, tokenizer, max_prompt, max_response)
    kind = _type(tokenizer)
    columns: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, width in (
        ("prompts", max_prompt),
        ("chosen", max_response),
        ("rejected", max_response),
    ):
        mask = f"{name.removesuffix('s')}_mask"
        columns |= {name: (kind, (width,)), mask: ("bool", (width,))}

    def rows(start: Place) -> Iterator[shards.Rows]:
        bos, eos = tokenizer.bos_id, tokenizer.eos_id
        for some in preferences.encoded(tokenizer, start, _workers(preferences)):
            pairs = Pairs(
                *pad_left([[bos, *prompt] for prompt, _, _ in some.ids], max_prompt),
                *pad_right([[*better, eos] for _, better, _ in some.ids], max_response),
                *pad_right([[*worse, eos] for _, _, worse in some.ids], max_response),
            )
            arrays = _arrays(pairs, columns)
            yield shards.Rows(arrays, some.too_long, some.end, some.bytes_read)

    key = {"preferences": preferences.key(), "tokenizer": tokenizer.fingerprint}
    return Pairs(**shards.stored(folder, key, columns, rows, preferences.bytes))


# --- both -----------------------------------------------------------------------------


def _type(tokenizer: Tokenizer) -> str:
    """The smallest of numpy's integers that torch knows and the ids fit into."""
    return "int16" if tokenizer.vocab_size <= 1 << 15 else "int32"


def _arrays(rows: Rows | Pairs, columns: shards.Columns) -> dict[str, np.ndarray]:
    return {
        name: getattr(rows, name).numpy().astype(kind)
        for name, (kind, _) in columns.items()
    }


def _workers(records: Records) -> int:
    return cores() if records.bytes > ALONE else 1

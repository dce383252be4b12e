"""Byte pairs at full size: the same ids as `bpe`, found with a library in Rust.

`bpe` shows how it is done; Hugging Face's `tokenizers` does it to gigabytes. It learns
merges from counts, as `learn_merges` does (of equally frequent pairs it may take
another first), and applies given merges to a chunk, however long, in the same order: so
the ids are those of `BytePairTokenizer` for the same merges (tested).

Chunks are cut here, by Python, and most of them have been seen before: looking their
ids up is four times as fast as letting the library do the whole text.
"""

import json
from collections.abc import Iterable
from functools import cache, cached_property
from typing import Any

from minipalm.data.bpe import CHUNK, FIRST_BYTE_ID, FIRST_MERGE_ID, Pair
from minipalm.data.tokenizer import SPECIALS, BytePairTokenizer, as_json

REMEMBERED = 1 << 18  # chunks whose ids are kept, about 60 MB


class FastBytePairTokenizer(BytePairTokenizer):
    """`BytePairTokenizer` for large inputs, of exactly `size` ids.

    Ids that the merges do not use stand for no text: they keep the shapes of networks
    the same whatever the text.
    """

    def __init__(self, merges: Iterable[Pair], size: int):
        super().__init__(merges)
        if len(self.pieces) > size:
            raise ValueError(
                f"{len(self.merges)} merges make {len(self.pieces)} ids, and there is"
                f" room for {size}; make vocab_size larger in minipalm/config.py"
            )
        self.pieces += [b""] * (size - len(self.pieces))

    def encode(self, text: str) -> list[int]:
        """Most chunks have been seen before; the library does the others."""
        ids: list[int] = []
        for chunk in CHUNK.findall(text):
            known = self._cache.get(chunk)
            ids += self._encode_chunk(chunk) if known is None else known
        return ids

    def _encode_chunk(self, chunk: str) -> list[int]:
        ids: list[int] = self._library.encode(chunk).ids
        if len(chunk) <= 32:
            if len(self._cache) == REMEMBERED:
                self._cache.clear()
            self._cache[chunk] = ids
        return ids

    def __reduce__(self) -> tuple[Any, ...]:
        """How it travels to another process: without what it remembers."""
        return FastBytePairTokenizer, (self.merges, self.vocab_size)

    def to_json(self) -> str:
        content = {"version": 1, "vocab_size": self.vocab_size, "merges": self.merges}
        return as_json({"kind": "byte pairs"} | content)

    @cached_property
    def _library(self) -> Any:
        from tokenizers import Tokenizer
        from tokenizers.models import BPE

        names = [_name(piece) for piece in self.pieces]
        used = range(SPECIALS, FIRST_MERGE_ID + len(self.merges))
        vocab = {names[i]: i for i in used}
        if len(vocab) < len(used):  # the library knows a piece by its letters
            raise ValueError("two merges make the same piece: leave one of them out")
        pairs = [(names[left], names[right]) for left, right in self.merges]
        library = Tokenizer(BPE(vocab=vocab, merges=pairs))
        library.pre_tokenizer = _bytes_as_letters()
        return library


def train_merges(
    texts: Iterable[str], number: int, progress: bool = False
) -> list[Pair]:
    """At most so many merges, the most frequent first; the texts are read once.

    Memory grows with the number of different words, not with the text.
    """
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
    from tokenizers.trainers import BpeTrainer

    library = Tokenizer(BPE())
    word = r"\p{L}\p{N}_"  # \w of Python; of the library it would be another set
    chunk = rf" ?[{word}]+| ?[^{word}\s]+|\s+(?!\S)|\s+"
    library.pre_tokenizer = Sequence(
        [Split(Regex(chunk), behavior="isolated"), _bytes_as_letters()]
    )
    trainer = BpeTrainer(
        vocab_size=256 + number,
        min_frequency=2,
        initial_alphabet=ByteLevel.alphabet(),
        special_tokens=[],
        show_progress=progress,
    )
    library.train_from_iterator(texts, trainer)
    model = json.loads(library.to_str())["model"]
    ids = {_name(bytes([byte])): FIRST_BYTE_ID + byte for byte in range(256)}
    merges: list[Pair] = []
    for left, right in model["merges"]:
        if left + right not in ids:  # else it is a second way to a piece
            ids[left + right] = FIRST_MERGE_ID + len(merges)
            merges.append((ids[left], ids[right]))
    return merges


def _bytes_as_letters() -> Any:
    from tokenizers.pre_tokenizers import ByteLevel

    return ByteLevel(add_prefix_space=False, use_regex=False)


def _name(piece: bytes) -> str:
    """A piece as the library spells it: each byte a letter that can be seen."""
    return "".join(map(_letters().__getitem__, piece))


@cache
def _letters() -> list[str]:
    """Byte -> letter: printable Latin-1 as it is, the others from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    letters |= {byte: chr(256 + at) for at, byte in enumerate(rest)}
    return [letters[byte] for byte in range(256)]

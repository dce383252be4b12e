"""Text to numbers and back: by words, or by pairs of bytes.

Both tokenizers start with three tokens that no text contains: <pad> fills rows,
<bos> begins a prompt, <eos> ends a response. `encode` never produces them and
`decode` drops them; they are added by whoever builds a batch.

Left out on purpose: adding tokens later, normalising Unicode. Speed is `bpe_fast`'s:
Hugging Face's `tokenizers`, which gives the same ids for the same merges (tested).
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from minipalm.data.bpe import (
    CHUNK,
    FIRST_BYTE_ID,
    FIRST_MERGE_ID,
    Pair,
    encode_chunk,
    learn_merges,
)
from minipalm.data.files import write_text

SPECIALS = 3  # the ids below this one stand for no text


class Tokenizer(ABC):
    """What both kinds have in common."""

    pad_id, bos_id, eos_id = 0, 1, 2

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """How many ids there are, the special ones included."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of a text, without special ones."""

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text."""
        return [self.encode(text) for text in texts]

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids; special ones are dropped."""

    @abstractmethod
    def to_json(self) -> str:
        """All there is to know about it; `load_tokenizer` reads it back."""

    def save(self, path: str | Path) -> None:
        write_text(path, self.to_json())

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the saved file; a checkpoint remembers it."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


class WordTokenizer(Tokenizer):
    """One id a word; words are what spaces separate, in lower case.

    `WordTokenizer(["fox", "a"])` knows a = 3 and fox = 4: ids follow the alphabet.
    `decode(encode(text)) == text` if the text is lower-case with single spaces.
    """

    def __init__(self, words: Iterable[str]):
        self.words = sorted(set(words))
        self.ids = {word: SPECIALS + at for at, word in enumerate(self.words)}

    @classmethod
    def train(cls, texts: Iterable[str]) -> "WordTokenizer":
        """Every word that the texts hold, prompts included if they are among them."""
        return cls({word for text in texts for word in text.lower().split()})

    @property
    def vocab_size(self) -> int:
        return SPECIALS + len(self.words)

    def encode(self, text: str) -> list[int]:
        """Raises ValueError if a word is unknown."""
        try:
            return [self.ids[word] for word in text.lower().split()]
        except KeyError as error:
            raise ValueError(
                f"the word {error.args[0]!r} is not among the {len(self.words)} of this"
                " tokenizer; train one on texts that hold it, or use byte pairs,"
                " which spell any text"
            ) from None

    def decode(self, ids: Iterable[int]) -> str:
        """Words joined by single spaces; special tokens are dropped."""
        _check_ids(ids := list(ids), self.vocab_size)
        return " ".join(self.words[i - SPECIALS] for i in ids if i >= SPECIALS)

    def to_json(self) -> str:
        return as_json({"kind": "words", "version": 1, "words": self.words})


class BytePairTokenizer(Tokenizer):
    """Any text, as UTF-8 bytes merged to longer and longer pieces.

    Ids: 3 specials, 256 bytes, then one id a merge. Nothing is unknown, and
    `decode(encode(text)) == text` for every text.
    """

    def __init__(self, merges: Iterable[Pair]):
        self.merges = list(merges)
        self.rank = {pair: at for at, pair in enumerate(self.merges)}
        self.pieces = [b""] * SPECIALS + [bytes([byte]) for byte in range(256)]
        for left, right in self.merges:
            self.pieces.append(self.pieces[left] + self.pieces[right])
        self._cache: dict[str, list[int]] = {}  # chunk -> ids; a text repeats itself

    @classmethod
    def train(cls, texts: Iterable[str], merges: int = 400) -> "BytePairTokenizer":
        """As many merges as asked for, or fewer if the texts repeat too little."""
        return cls(learn_merges(texts, merges))

    @property
    def vocab_size(self) -> int:
        return len(self.pieces)

    def encode(self, text: str) -> list[int]:
        """Apply the merges to each chunk in the order in which they were learned."""
        ids: list[int] = []
        for chunk in CHUNK.findall(text):
            if chunk not in self._cache:
                self._cache[chunk] = encode_chunk(chunk, self.rank)
            ids += self._cache[chunk]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Special tokens are dropped; bytes that are no UTF-8 become U+FFFD."""
        _check_ids(ids := list(ids), self.vocab_size)
        return b"".join(self.pieces[i] for i in ids).decode(errors="replace")

    def to_json(self) -> str:
        return as_json({"kind": "byte pairs", "version": 1, "merges": self.merges})


def train_tokenizer(texts: Iterable[str], kind: str, vocab_size: int) -> Tokenizer:
    """A tokenizer of a kind: "word", of at most vocab_size ids, or "bpe", of exactly so
    many, some of them unused where the texts repeat too little.

    Raises ValueError if the kind is unknown, or the texts hold more words than that.
    """
    if kind == "bpe":
        from minipalm.data.bpe_fast import FastBytePairTokenizer, train_merges

        merges = train_merges(texts, vocab_size - FIRST_MERGE_ID)
        return FastBytePairTokenizer(merges, vocab_size)
    if kind != "word":
        raise ValueError(f"the kind of tokenizer must be word or bpe (got {kind!r})")
    tokenizer = WordTokenizer.train(texts)
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"the texts hold {tokenizer.vocab_size - SPECIALS} different words, and a"
            f" vocabulary of {vocab_size} has room for {vocab_size - SPECIALS}; use"
            " tokenizer='bpe', or a larger vocab_size, in minipalm/config.py"
        )
    return tokenizer


def _check_ids(ids: Sequence[int], vocab_size: int) -> None:
    if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
        wrong = next(i for i in ids if not 0 <= i < vocab_size)
        raise ValueError(
            f"id {wrong} is outside this tokenizer's 0 to {vocab_size - 1};"
            " the ids come from another tokenizer"
        )


def as_json(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n"


# --- files ------------------------------------------------------------------------


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer that `save` wrote, of either kind.

    Raises ValueError, naming the file and the field, if the file is not one.
    """
    content = _read_object(path)
    kind = content.get("kind")
    if kind not in ("words", "byte pairs") or content.get("version") != 1:
        raise _bad(
            path, "kind", "'words' or 'byte pairs' of version 1",
            f"{kind!r} of version {content.get('version')!r}",
        )  # fmt: skip
    if kind == "words":
        words = content.get("words")
        if not _is_word_list(words):
            raise _bad(path, "words", "a sorted list of different words", words)
        return WordTokenizer(words)
    merges = content.get("merges")
    if not _is_merge_list(merges):
        raise _bad(path, "merges", "a list of pairs of earlier ids", merges)
    pairs = [(left, right) for left, right in merges]
    if "vocab_size" not in content:
        return BytePairTokenizer(pairs)
    size = content["vocab_size"]
    if type(size) is not int or size < FIRST_MERGE_ID + len(pairs):
        raise _bad(path, "vocab_size", "a number of ids, room for all merges", size)
    from minipalm.data.bpe_fast import FastBytePairTokenizer

    return FastBytePairTokenizer(pairs, size)


def _read_object(path: str | Path) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"{path}: expected a tokenizer file, got: {error.strerror or error};"
            " run the stage that makes it, or correct the path"
        ) from None
    except ValueError as error:  # not JSON, or not even UTF-8
        raise ValueError(
            f"{path}: expected a tokenizer as JSON, got text that is none ({error});"
            " make the file again with tokenizer.save"
        ) from None
    if not isinstance(content, dict):
        raise _bad(path, "kind", "a JSON object with kind and version", content)
    return content


def _bad(path: str | Path, field: str, expected: str, got: object) -> ValueError:
    shown = "nothing" if got is None else str(got)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return ValueError(
        f"{path}: field '{field}': expected {expected}, got {shown};"
        " make the file again with tokenizer.save"
    )


def _is_word_list(words: object) -> TypeGuard[list[str]]:
    return (
        isinstance(words, list)
        and all(isinstance(word, str) and word.split() == [word] for word in words)
        and words == sorted(set(words))
    )


def _is_merge_list(merges: object) -> TypeGuard[list[list[int]]]:
    """Pairs of ids, each of a byte or of a merge before this one."""
    return isinstance(merges, list) and all(
        isinstance(pair, list)
        and len(pair) == 2
        and all(type(i) is int for i in pair)
        and FIRST_BYTE_ID <= min(pair) <= max(pair) < FIRST_MERGE_ID + at
        for at, pair in enumerate(merges)
    )

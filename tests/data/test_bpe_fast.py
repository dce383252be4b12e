"""Byte pairs by the library: the ids of our own, for any text, and as many as asked."""

import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minipalm.data import bpe_fast
from minipalm.data.bpe import learn_merges
from minipalm.data.bpe_fast import FastBytePairTokenizer, train_merges
from minipalm.data.datasets import read_texts
from minipalm.data.tokenizer import (
    BytePairTokenizer,
    load_tokenizer,
    train_tokenizer,
)

ROOT = Path(__file__).parents[2]
TALES = [row.text for row in read_texts(ROOT / "data" / "text.jsonl")[:2000]]
PROSE = [path.read_text("utf-8") for path in sorted((ROOT / "lessons").glob("0*.py"))]
SIZE = 3_000
FAST = train_tokenizer(TALES + PROSE, "bpe", SIZE)
OURS = BytePairTokenizer(FAST.merges)


def test_it_has_exactly_as_many_ids_as_asked_for():
    assert isinstance(FAST, FastBytePairTokenizer)
    assert FAST.vocab_size == SIZE == len(OURS.pieces)  # every id is used
    few = train_tokenizer(["the the fox", "the"], "bpe", 32_768)
    assert few.vocab_size == 32_768 and 0 < len(few.merges) < 10
    assert few.decode([few.vocab_size - 1]) == ""  # an unused id is no text
    assert few.decode(few.encode("the zebra é")) == "the zebra é"
    for wrong in (-1, 32_768):
        with pytest.raises(ValueError, match=f"id {wrong} is outside"):
            few.decode([wrong])
    assert train_tokenizer([], "bpe", 300).merges == []


def test_more_merges_than_room_are_refused():
    with pytest.raises(ValueError, match="3000 ids, and there is room for 2999"):
        FastBytePairTokenizer(FAST.merges, SIZE - 1)


@settings(max_examples=300)
@given(st.text() | st.text(st.sampled_from("the foxé .\n\t'_9日🦊\x1c\u0301\u00a0½²")))
def test_any_text_comes_back_with_the_ids_of_our_own(text):
    ids = FAST.encode(text)
    assert FAST.decode(ids) == text
    assert ids == OURS.encode(text)
    assert all(3 <= i < SIZE for i in ids)  # no special one


def test_tales_and_prose_have_the_ids_of_our_own():
    assert FAST.encode_all(TALES + PROSE) == [OURS.encode(t) for t in TALES + PROSE]


def test_every_character_has_the_ids_of_our_own():
    whole = "".join(chr(c) for c in range(0x3000) if not 0xD800 <= c < 0xE000)
    for text in (whole, " ".join(whole), "a".join(whole)):
        assert FAST.encode(text) == OURS.encode(text)


def test_what_it_remembers_is_bounded_and_changes_nothing(monkeypatch):
    monkeypatch.setattr(bpe_fast, "REMEMBERED", 50)
    forgetful = FastBytePairTokenizer(FAST.merges, SIZE)
    for text in TALES[:200] + ["x" * 100]:
        assert forgetful.encode(text) == OURS.encode(text)
        assert len(forgetful._cache) <= 50
    assert "x" * 100 not in forgetful._cache


def test_merges_make_different_pieces_in_the_order_of_their_frequency():
    merges = train_merges(["aaaa aaaa abc abc bcd"] * 3, 50)
    pieces = BytePairTokenizer(merges).pieces
    assert len(set(pieces)) == len(pieces) - 2  # three specials stand for no text
    nested = ["abcd"] * 8 + ["bcd"] * 4 + ["cd"] * 2
    assert train_merges(nested, 3) == learn_merges(nested, 3)
    assert BytePairTokenizer(train_merges(nested, 3)).pieces[-1] == b"abcd"


def test_two_ways_to_a_piece_are_refused_rather_than_confused():
    a, b, c = (3 + byte for byte in b"abc")
    merges = [(a, b), (b, c), (259, c), (a, 260)]  # abc, and abc again
    with pytest.raises(ValueError, match="two merges make the same piece"):
        FastBytePairTokenizer(merges, 300).encode("abc")


def test_training_reads_a_stream_once_and_gives_the_same_again():
    again = train_tokenizer(iter(TALES + PROSE), "bpe", SIZE)
    assert again.fingerprint == FAST.fingerprint


def test_a_saved_one_comes_back_and_travels(tmp_path):
    path = tmp_path / "tokenizer.json"
    FAST.save(path)
    for again in (load_tokenizer(path), pickle.loads(pickle.dumps(FAST))):
        assert isinstance(again, FastBytePairTokenizer)
        assert again.fingerprint == FAST.fingerprint != OURS.fingerprint
        assert again.encode(PROSE[0]) == FAST.encode(PROSE[0])
    content = json.loads(path.read_text())
    for size in (SIZE - 1, "3000", None, True):
        path.write_text(json.dumps(content | {"vocab_size": size}))
        with pytest.raises(ValueError, match="field 'vocab_size': expected a number"):
            load_tokenizer(path)

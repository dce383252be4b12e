"""Tokenizers: round trips, a brute-force trainer, and Hugging Face's as an oracle."""

import hashlib
import json
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as HuggingFace
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from minipalm.data.bpe import CHUNK, FIRST_MERGE_ID, byte_ids, learn_merges, merge
from minipalm.data.datasets import read_demonstrations, read_texts
from minipalm.data.lexicon import PROMPTS, VOCABULARY
from minipalm.data.tokenizer import (
    BytePairTokenizer,
    WordTokenizer,
    load_tokenizer,
)

DATA = Path(__file__).parents[2] / "data"
TEXTS = [row.text for row in read_texts(DATA / "text.jsonl")]
PROSE = "".join(
    (DATA.parent / name).read_text(encoding="utf-8")
    for name in ("LICENSE", "LICENSE-TEXT", "data/README.md")
)
WORDS = WordTokenizer(VOCABULARY)
PIECES = BytePairTokenizer.train(TEXTS, merges=400)


# --- words -----------------------------------------------------------------------


def test_tinytales_has_144_tokens():
    assert WORDS.vocab_size == 144
    assert (WORDS.pad_id, WORDS.bos_id, WORDS.eos_id) == (0, 1, 2)


def test_word_ids_follow_the_alphabet_after_the_specials():
    tokenizer = WordTokenizer(["fox", "a", "fox"])
    assert tokenizer.encode("A fox a") == [3, 4, 3]
    assert tokenizer.decode([1, 3, 4, 2, 0, 0]) == "a fox"
    assert tokenizer.decode([]) == "" and tokenizer.encode("") == []


def test_training_on_the_files_finds_the_whole_vocabulary():
    prompts = [row.prompt for row in read_demonstrations(DATA / "demonstrations.jsonl")]
    trained = WordTokenizer.train(TEXTS + prompts)
    assert trained.fingerprint == WORDS.fingerprint


@given(st.lists(st.sampled_from(VOCABULARY)).map(" ".join))
def test_words_come_back(text):
    assert WORDS.decode(WORDS.encode(text)) == text


def test_every_prompt_comes_back():
    assert all(WORDS.decode(WORDS.encode(prompt)) == prompt for prompt in PROMPTS)


def test_an_unknown_word_is_named():
    with pytest.raises(ValueError, match="'zebra' is not among the 141") as caught:
        WORDS.encode("the zebra slept .")
    assert "byte pairs" in str(caught.value)


@pytest.mark.parametrize("tokenizer", [WORDS, PIECES])
@pytest.mark.parametrize("wrong", [-1, 10_000])
def test_an_id_out_of_range_is_named(tokenizer, wrong):
    with pytest.raises(ValueError, match=f"id {wrong} is outside"):
        tokenizer.decode([3, wrong])


# --- byte pairs --------------------------------------------------------------------


@given(st.text())
def test_chunks_joined_are_the_text(text):
    assert "".join(CHUNK.findall(text)) == text


@given(st.text() | st.text(st.sampled_from("the foxé .\n\t'_9日🦊")))
def test_any_text_comes_back_from_byte_pairs(text):
    assert PIECES.decode(PIECES.encode(text)) == text


@given(st.text())
def test_without_merges_the_ids_are_the_bytes(text):
    assert BytePairTokenizer([]).encode(text) == [3 + byte for byte in text.encode()]


@given(st.lists(st.sampled_from(TEXTS), max_size=3).map(" ".join), st.integers(0, 50))
def test_specials_are_never_made_and_always_dropped(text, at):
    ids = PIECES.encode(text)
    assert all(3 <= i < PIECES.vocab_size for i in ids)
    assert PIECES.decode([1, *ids[:at], 0, *ids[at:], 2, 0]) == text


def test_the_space_stays_with_the_word_after_it():
    assert CHUNK.findall("the fox  slept.\n") == [
        "the",
        " fox",
        " ",
        " slept",
        ".",
        "\n",
    ]


def test_merge_goes_from_the_left():
    assert merge([5, 5, 5, 6], (5, 5), 9) == [9, 5, 6]
    assert merge([5, 6, 5, 6], (5, 6), 9) == [9, 9]
    assert merge([], (5, 5), 9) == []


def test_the_most_frequent_pair_comes_first_and_ties_go_to_smaller_ids():
    a, b, c = byte_ids("abc")
    assert learn_merges(["bc bc", "ab ab"], 1)[0] == (a, b)
    assert learn_merges(["bc bc bc", "ab ab"], 1)[0] == (b, c)
    assert learn_merges(["abc"], 10) == []  # nothing occurs twice
    assert learn_merges([], 10) == []


def learn_by_recounting(texts, number):
    """The algorithm as the paper states it: count everything again each time."""
    chunks = [byte_ids(chunk) for text in texts for chunk in CHUNK.findall(text)]
    merges = []
    while len(merges) < number:
        counts = Counter(pair for chunk in chunks for pair in pairwise(chunk))
        if not counts or max(counts.values()) < 2:
            break
        best = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[0][0]
        chunks = [merge(chunk, best, FIRST_MERGE_ID + len(merges)) for chunk in chunks]
        merges.append(best)
    return merges


@given(st.lists(st.text("ab c", max_size=12), max_size=8))
def test_learning_equals_recounting_everything(texts):
    assert learn_merges(texts, 30) == learn_by_recounting(texts, 30)


def test_learning_equals_recounting_on_tales_and_on_prose():
    assert learn_merges(TEXTS[:50], 60) == learn_by_recounting(TEXTS[:50], 60)
    assert learn_merges([PROSE], 120) == learn_by_recounting([PROSE], 120)


def test_learning_does_not_depend_on_the_order_of_texts():
    assert learn_merges(TEXTS[:500], 200) == learn_merges(TEXTS[:500][::-1], 200)


def as_hugging_face(tokenizer):
    """The same merges in Hugging Face's tokenizers, which writes bytes as letters."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    letter = {byte: chr(byte) for byte in printable}
    letter |= {byte: chr(256 + at) for at, byte in enumerate(rest)}
    names = ["".join(letter[byte] for byte in piece) for piece in tokenizer.pieces]
    assert len(set(names[3:])) == len(names[3:])  # else its ids could not be compared
    model = BPE(
        vocab={name: at for at, name in enumerate(names) if at >= 3},
        merges=[(names[left], names[right]) for left, right in tokenizer.merges],
    )
    theirs = HuggingFace(model)
    theirs.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    return theirs


def assert_equal_to_hugging_face(ours, theirs, text):
    # Our chunks: its regular expressions know another Unicode than Python's.
    ids = [i for chunk in CHUNK.findall(text) for i in theirs.encode(chunk).ids]
    assert ours.encode(text) == ids


PROSE_PIECES = BytePairTokenizer.train([PROSE], merges=300)
PROSE_THEIRS = as_hugging_face(PROSE_PIECES)
THEIRS = as_hugging_face(PIECES)


@given(st.text() | st.text(st.sampled_from("theraondsi .\n")))
def test_hugging_face_gives_the_same_ids_for_any_text(text):
    assert_equal_to_hugging_face(PIECES, THEIRS, text)
    assert_equal_to_hugging_face(PROSE_PIECES, PROSE_THEIRS, text)


def test_hugging_face_gives_the_same_ids_for_tales_and_prose():
    for text in TEXTS[:300]:
        assert_equal_to_hugging_face(PIECES, THEIRS, text)
    assert_equal_to_hugging_face(PROSE_PIECES, PROSE_THEIRS, PROSE)


def test_on_tales_byte_pairs_end_at_whole_words():
    """Pitfall: the vocabulary is larger, but a tale is as long as in words."""
    pieces = sum(len(PIECES.encode(text)) for text in TEXTS)
    words = sum(len(text.split()) for text in TEXTS)
    assert pieces / words < 1.01


def test_four_hundred_merges_take_at_most_seconds():
    start = time.process_time()
    BytePairTokenizer.train(TEXTS, merges=400)
    assert time.process_time() - start < 3  # about 0.05 here


# --- files -------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", [WORDS, PIECES, WordTokenizer(["é", "日本"])])
def test_a_saved_tokenizer_comes_back(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    again = load_tokenizer(path)
    assert type(again) is type(tokenizer)
    assert again.to_json() == tokenizer.to_json()
    assert again.vocab_size == tokenizer.vocab_size
    assert again.fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()
    assert list(tmp_path.iterdir()) == [path]


def test_fingerprints_tell_tokenizers_apart():
    prints = {
        tokenizer.fingerprint
        for tokenizer in (
            WORDS,
            PIECES,
            WordTokenizer(["a"]),
            WordTokenizer([]),
            BytePairTokenizer([]),
            BytePairTokenizer(PIECES.merges[:-1]),
        )
    }
    assert len(prints) == 6


BAD_FILES = {
    "text": (b"hello", "expected a tokenizer as JSON"),
    "empty": (b"", "expected a tokenizer as JSON"),
    "bytes": (b"\xff\xfe", "expected a tokenizer as JSON"),
    "list": (b"[1]", "field 'kind': expected a JSON object"),
    "no kind": ({"version": 1}, "field 'kind'"),
    "kind": ({"kind": "letters", "version": 1}, "got 'letters' of version 1"),
    "version": (
        {"kind": "words", "version": 2, "words": []},
        "got 'words' of version 2",
    ),
    "no words": ({"kind": "words", "version": 1}, "field 'words': .* got nothing"),
    "words": ({"kind": "words", "version": 1, "words": [1]}, "field 'words'"),
    "order": ({"kind": "words", "version": 1, "words": ["b", "a"]}, "field 'words'"),
    "twice": ({"kind": "words", "version": 1, "words": ["a", "a"]}, "field 'words'"),
    "space": ({"kind": "words", "version": 1, "words": ["a b"]}, "field 'words'"),
    "no merges": ({"kind": "byte pairs", "version": 1}, "field 'merges'"),
    "triple": ({"kind": "byte pairs", "version": 1, "merges": [[3, 4, 5]]}, "'merges'"),
    "special": ({"kind": "byte pairs", "version": 1, "merges": [[2, 4]]}, "'merges'"),
    "later": ({"kind": "byte pairs", "version": 1, "merges": [[3, 259]]}, "'merges'"),
    "true": ({"kind": "byte pairs", "version": 1, "merges": [[True, 9]]}, "'merges'"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_that_is_no_tokenizer_is_refused(case, tmp_path):
    content, message = BAD_FILES[case]
    path = tmp_path / "tokenizer.json"
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=message) as caught:
        load_tokenizer(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


def test_a_missing_tokenizer_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere.json: expected a tokenizer file"):
        load_tokenizer(tmp_path / "nowhere.json")
    with pytest.raises(ValueError, match="expected a tokenizer file"):
        load_tokenizer(tmp_path)

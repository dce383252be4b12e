"""JSON-lines files: what is read, and what is said about a file that is wrong."""

import json
from pathlib import Path

import pytest

from minipalm.data.datasets import (
    DataError,
    Demonstration,
    Preference,
    Prompt,
    Text,
    check_prompt_lengths,
    check_window,
    hold_out,
    read_demonstrations,
    read_preferences,
    read_prompts,
    read_texts,
)
from minipalm.data.lexicon import VOCABULARY
from minipalm.data.tokenizer import BytePairTokenizer, WordTokenizer

DATA = Path(__file__).parents[2] / "data"
WORDS = WordTokenizer(VOCABULARY)
READERS = [read_texts, read_prompts, read_demonstrations, read_preferences]


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "mine.jsonl"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def message_of(read, *arguments):
    """The error's text, which must be short and speak of no Python."""
    with pytest.raises(DataError) as caught:
        read(*arguments)
    message = str(caught.value)
    assert len(message.splitlines()) <= 2 and len(message) < 400
    assert (
        caught.value.__cause__ is None
        and caught.value.__suppress_context__
        or (caught.value.__context__ is None)
    )
    return message


# --- what is read ------------------------------------------------------------------


def test_the_committed_files_are_read():
    assert len(read_texts(DATA / "text.jsonl")) == 10_000
    assert len(read_demonstrations(DATA / "demonstrations.jsonl")) == 6_000
    assert len(read_preferences(DATA / "preferences.jsonl")) == 2_000
    assert len(read_prompts(DATA / "prompts.jsonl")) == 126
    assert len(read_prompts(str(DATA / "prompts_heldout.jsonl"))) == 18


def test_records_hold_the_fields_and_where_they_came_from(write):
    path = write('{"rejected": "b", "prompt": "p", "chosen": "a", "more": 1}\n')
    assert read_preferences(path) == [Preference("p", "a", "b", f"{path}:1")]
    path = write('{"prompt": "p", "response": "r"}')
    assert read_demonstrations(path) == [Demonstration("p", "r", f"{path}:1")]
    path = write('{"text": "t"}\n{"text": "é日"}\n')
    assert read_texts(path) == [Text("t", f"{path}:1"), Text("é日", f"{path}:2")]


def test_windows_line_ends_a_byte_order_mark_and_blank_lines_do_no_harm(write):
    path = write(b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n{"prompt": "b"}\r\n\r\n  \n\n')
    assert read_prompts(path) == [Prompt("a", f"{path}:1"), Prompt("b", f"{path}:3")]


# --- what is said about a file that is wrong -----------------------------------------


@pytest.mark.parametrize("read", READERS)
def test_a_missing_file_is_named(read, tmp_path):
    message = message_of(read, tmp_path / "nowhere.jsonl")
    assert "nowhere.jsonl: expected a JSON-lines file" in message
    assert "python -m minipalm.data.make" in message


def test_a_folder_stands_for_the_files_of_one_kind_in_it(tmp_path):
    for name, line in (("2", "b"), ("1", "a"), ("empty", None)):
        text = "" if line is None else json.dumps({"text": line}) + "\n"
        (tmp_path / f"{name}.jsonl").write_text(text)
    (tmp_path / "README.md").write_text("mine")
    assert [one.text for one in read_texts(tmp_path)] == ["a", "b"]
    (tmp_path / "1.parquet").touch()
    message = message_of(read_texts, tmp_path)
    assert f"{tmp_path}: expected files of one kind" in message
    assert "got 1.jsonl and 1.parquet; keep one kind" in message


def test_a_folder_with_no_such_file_is_named(tmp_path):
    (tmp_path / "text.txt").write_text("a")
    message = message_of(read_texts, tmp_path)
    assert f"{tmp_path}: expected .jsonl or .parquet files in this folder" in message
    assert message.endswith("got none; put them there")


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff"])
def test_an_empty_file_is_shown_what_a_line_looks_like(read, content, write):
    path = write(content)
    message = message_of(read, path)
    assert f"{path}: expected" in message and "got an empty file" in message
    assert '{"text": "..."}' in message or '{"prompt": "..."' in message


def test_a_line_that_is_not_utf8_is_named(write):
    path = write(b'{"text": "a"}\n{"text": "caf\xe9"}\n')
    message = message_of(read_texts, path)
    assert message.startswith(
        f"{path}:2: expected UTF-8, got the byte 0xe9 at position"
    )
    assert "save the file as UTF-8" in message


def test_utf16_is_not_utf8(write):
    message = message_of(read_texts, write('{"text": "a"}'.encode("utf-16")))
    assert ":1: expected UTF-8" in message


@pytest.mark.parametrize(
    "line", ['{"text": "a"', "the fox", '{"text": "a"} {}', "[" * 99_999]
)
def test_a_broken_line_is_named(line, write):
    path = write('{"text": "a"}\n' + line + "\n")
    message = message_of(read_texts, path)
    assert message.startswith(f"{path}:2: expected a JSON object on one line, got '")
    assert "line 1" not in message and "mend the line" in message


@pytest.mark.parametrize(
    ("line", "got"),
    [("[1, 2]", "a list"), ('"fox"', "a string"), ("7", "a number"), ("null", "null;")],
)
def test_a_line_that_is_no_object_is_named(line, got, write):
    path = write(line)
    message = message_of(read_demonstrations, path)
    assert f"{path}:1: expected a JSON object with 'prompt', 'response'" in message
    assert f"got {got}" in message


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "got null; fill it in or remove the record"),
        (["a", "b"], "got a list ['a', 'b']; write one string, or a record for each"),
        ({"a": 1}, "got an object {'a': 1}; write one string, or a record for each"),
        (7, "got a number 7; put it in quotes"),
        (True, "got a boolean True; put it in quotes"),
    ],
)
def test_what_is_no_string_is_told_how_to_become_one(value, told, write):
    path = write(json.dumps({"text": value}))
    message = message_of(read_texts, path)
    assert message == f"{path}:1: field 'text': expected a string, {told}"


FIELDS = [
    (read_texts, {"text": "a"}),
    (read_prompts, {"prompt": "a"}),
    (read_demonstrations, {"prompt": "a", "response": "b"}),
    (read_preferences, {"prompt": "a", "chosen": "b", "rejected": "c"}),
]
EACH_FIELD = [(read, good, field) for read, good in FIELDS for field in good]


@pytest.mark.parametrize(("read", "good", "field"), EACH_FIELD)
def test_a_missing_field_is_named_beside_what_is_there(read, good, field, write):
    bad = {"other": "x"} | {name: good[name] for name in good if name != field}
    path = write(json.dumps(good) + "\n" + json.dumps(bad))
    message = message_of(read, path)
    assert message.startswith(f"{path}:2: field '{field}': expected ")
    assert "got 'other'" in message


@pytest.mark.parametrize(("read", "good", "field"), EACH_FIELD)
@pytest.mark.parametrize(
    ("value", "got"),
    [(3, "a number 3"), (None, "null;"), (["a"], "a list ['a']"), (True, "a boolean")],
)
def test_a_wrong_type_is_named(read, good, field, value, got, write):
    path = write(json.dumps(good | {field: value}))
    message = message_of(read, path)
    assert f"{path}:1: field '{field}': expected a string, got {got}" in message


@pytest.mark.parametrize(("read", "good", "field"), EACH_FIELD)
@pytest.mark.parametrize("empty", ["", "  \n"])
def test_an_empty_field_is_named(read, good, field, empty, write):
    path = write(json.dumps(good) + "\n\n" + json.dumps(good | {field: empty}))
    message = message_of(read, path)
    assert f"{path}:3: field '{field}': expected some text, got" in message


def test_half_a_character_is_named(write):
    path = write('{"text": "fox \\ud83e"}')
    message = message_of(read_texts, path)
    assert f"{path}:1: field 'text': expected whole characters" in message


def test_equal_chosen_and_rejected_are_named(write):
    path = write('{"prompt": "p", "chosen": "same", "rejected": "same"}')
    message = message_of(read_preferences, path)
    assert f"{path}:1: fields 'chosen' and 'rejected'" in message
    assert "got 'same' twice; remove the line" in message


@pytest.mark.parametrize(
    "row",
    [{"text": ["fox"] * 9_999}, {f"field\n{at}": 1 for at in range(999)}, [1] * 999],
)
def test_what_is_long_is_shown_short(row, write):
    assert "..." in message_of(read_texts, write(json.dumps(row)))


# --- lengths ------------------------------------------------------------------------


def test_the_committed_files_fit_their_windows_exactly():
    demonstrations = read_demonstrations(DATA / "demonstrations.jsonl")
    preferences = read_preferences(DATA / "preferences.jsonl")
    prompts = read_prompts(DATA / "prompts.jsonl")
    for records in (demonstrations, preferences, prompts):
        check_prompt_lengths(records, WORDS, 9)
        check_window(records, WORDS, 9 + 26)
        with pytest.raises(DataError):
            check_prompt_lengths(records, WORDS, 8)
    with pytest.raises(DataError):
        check_window(demonstrations, WORDS, 34)


def test_a_prompt_longer_than_the_window_is_named(write):
    path = write('{"prompt": "the fox"}\n{"prompt": "the fox slept ."}\n')
    prompts = read_prompts(path)
    check_prompt_lengths(prompts, WORDS, 5)  # <bos> and four words
    for check in (check_prompt_lengths, check_window):
        message = message_of(check, prompts, WORDS, 4)
        assert f"{path}:2: field 'prompt': expected at most 4 tokens" in message
        assert "got 5" in message


def test_a_record_longer_than_the_window_is_named(write):
    path = write('{"prompt": "the fox", "response": "it slept ."}')
    check_window(read_demonstrations(path), WORDS, 7)  # <bos> 2 3 <eos>
    message = message_of(check_window, read_demonstrations(path), WORDS, 6)
    assert f"{path}:1: fields 'prompt' and 'response'" in message and "got 7" in message

    path = write('{"prompt": "the", "chosen": "fox", "rejected": "it slept ."}')
    check_window(read_preferences(path), WORDS, 6)
    message = message_of(check_window, read_preferences(path), WORDS, 5)
    assert "'prompt' and 'rejected'" in message and "got 6" in message

    path = write('{"text": "the fox slept ."}')
    check_window(read_texts(path), WORDS, 6)
    assert "field 'text'" in message_of(check_window, read_texts(path), WORDS, 5)


def test_lengths_are_counted_in_the_tokens_of_the_tokenizer(write):
    prompts = read_prompts(write('{"prompt": "the fox"}'))
    check_prompt_lengths(prompts, BytePairTokenizer([]), 8)
    assert "got 8" in message_of(
        check_prompt_lengths, prompts, BytePairTokenizer([]), 7
    )


def test_a_word_that_the_tokenizer_does_not_know_is_named_with_its_line(write):
    path = write('{"prompt": "the fox"}\n{"prompt": "the zebra"}')
    message = message_of(check_prompt_lengths, read_prompts(path), WORDS, 9)
    assert f"{path}:2: field 'prompt': the word 'zebra'" in message


def test_hold_out_keeps_equal_records_on_one_side():
    rows = [Demonstration("p", f"r{n % 10}", f"f:{n}") for n in range(40)]
    train, test = hold_out(rows, 0.2, seed=0)
    assert sorted(r.source for r in train + test) == sorted(r.source for r in rows)
    assert len(test) == 8 and not {r.response for r in train} & {
        r.response for r in test
    }
    assert hold_out(rows, 0.2, seed=0) == (train, test)
    assert hold_out(rows, 0.2, seed=1) != (train, test)


@pytest.mark.parametrize("copies", [1, 6])
def test_one_record_cannot_be_parted(copies):
    with pytest.raises(DataError, match="f: expected at least 2 different records"):
        hold_out([Demonstration("p", "r", "f:1")] * copies, 0.2, seed=0)

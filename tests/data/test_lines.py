"""Parquet files: what is read, in which blocks, and what is said of a wrong one.

JSON lines are in test_datasets.py.
"""

import json

import pytest

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

from minipalm.data import lines  # noqa: E402
from minipalm.data import parquet as our_parquet  # noqa: E402
from minipalm.data.datasets import (  # noqa: E402
    DataError,
    Preference,
    Prompt,
    read_preferences,
    read_prompts,
    read_texts,
)
from minipalm.data.files import fingerprint  # noqa: E402
from minipalm.data.lines import read_blocks  # noqa: E402

TEXTS = [f"tale {n} é" for n in range(50)]


@pytest.fixture
def write(tmp_path):
    def write(columns, name="mine.parquet", **options):
        path = tmp_path / name
        parquet.write_table(arrow.table(columns), path, **options)
        return path

    return write


def message_of(read, path):
    with pytest.raises(DataError) as caught:
        read(path)
    message = str(caught.value)
    assert len(message.splitlines()) <= 2 and len(message) < 400
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return message


def test_columns_become_fields_and_others_are_ignored(write):
    path = write({"rejected": ["b"], "n": [1], "prompt": ["p"], "chosen": ["a"]})
    assert read_preferences(path) == [Preference("p", "a", "b", f"{path}:row 0")]


@pytest.mark.parametrize(
    "kind", ["string", "large_string", "string_view", "dictionary"]
)
def test_strings_of_every_kind(kind, write):
    kinds = {"dictionary": arrow.dictionary(arrow.int32(), arrow.string())}
    column = arrow.array(["a", "b", "a"]).cast(
        kinds.get(kind) or getattr(arrow, kind)()
    )
    path = write({"prompt": column})
    assert [one.prompt for one in read_prompts(path)] == ["a", "b", "a"]


def test_a_file_is_known_by_its_first_bytes_too(write):
    path = write({"prompt": ["a"]}, name="no suffix")
    assert read_prompts(path) == [Prompt("a", f"{path}:row 0")]


def test_parquet_and_json_lines_can_follow_each_other(write, tmp_path):
    write({"text": ["one", "two"]}, name="1.parquet")
    (tmp_path / "0.jsonl").write_text('{"text": "zero"}\n')
    found = read_texts([tmp_path / "0.jsonl", tmp_path / "*.parquet"])
    assert [one.text for one in found] == ["zero", "one", "two"]


@pytest.mark.parametrize("group", [50, 7, 1])
def test_reading_goes_on_from_the_end_of_any_block(group, write, monkeypatch, tmp_path):
    monkeypatch.setattr(our_parquet, "BLOCK", 70)
    monkeypatch.setattr(lines, "BLOCK", 100)
    paths = [
        write({"text": TEXTS}, row_group_size=group),
        write({"text": TEXTS[:5]}, name="more", row_group_size=group),
        tmp_path / "x.jsonl",
    ]
    paths[2].write_text("".join(json.dumps({"text": one}) + "\n" for one in TEXTS))
    blocks = list(read_blocks(paths, ["text"]))
    rows = [row for block in blocks for row in block.rows]
    assert [text for text, _ in rows] == TEXTS + TEXTS[:5] + TEXTS
    assert rows[49][1] == f"{paths[0]}:row 49" and rows[50][1] == f"{paths[1]}:row 0"
    assert rows[-1][1] == f"{paths[2]}:50"
    size = sum(path.stat().st_size for path in paths)
    read = [block.bytes_read for block in blocks]
    assert read == sorted(read) and read[-1] == size
    for n, block in enumerate(blocks):
        rest = [row for later in blocks[n + 1 :] for row in later.rows]
        again = [
            r for later in read_blocks(paths, ["text"], block.end) for r in later.rows
        ]
        assert again == rest


def test_a_missing_column_is_named_beside_what_is_there(write):
    path = write({"other": ["a"], "chosen": ["b"], "rejected": ["c"]})
    message = message_of(read_preferences, path)
    assert message.startswith(f"{path}: field 'prompt': expected columns 'prompt', ")
    assert "got 'other', 'chosen', 'rejected'; rename or add" in message


@pytest.mark.parametrize("column", [[3], [["a"]], [{"string": "a"}], [b"a"], [None]])
def test_a_column_of_another_type_is_named(column, write):
    path = write({"text": column})
    message = message_of(read_texts, path)
    assert message.startswith(
        f"{path}: field 'text': expected a column of strings, got"
    )


@pytest.mark.parametrize(
    ("value", "got"), [(None, "a string, got null; fill it in"), (" ", "some text")]
)
def test_a_row_without_text_is_named(value, got, write):
    path = write({"text": ["a", "b", "c", value]}, row_group_size=2)
    assert f"{path}:row 3: field 'text': expected {got}" in message_of(read_texts, path)


def test_a_part_of_several_may_be_empty(write, tmp_path):
    write({"text": arrow.array([], arrow.string())}, name="1.parquet")
    write({"text": ["a"]}, name="2.parquet")
    assert [one.text for one in read_texts(tmp_path)] == ["a"]


@pytest.mark.parametrize("hidden", ["._a.jsonl", ".a.jsonl.swp.jsonl", "._a.parquet"])
def test_hidden_files_of_a_folder_are_no_data(hidden, tmp_path):
    """As macOS leaves them, with a file's resources, and editors with what is open."""
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    before = fingerprint(tmp_path)
    (tmp_path / hidden).write_bytes(b"\x00\x05\x16\x07")
    assert lines.input_files(tmp_path) == [tmp_path / "a.jsonl"]
    assert lines.input_files(tmp_path / "*.jsonl") == [tmp_path / "a.jsonl"]
    assert fingerprint(tmp_path) == before
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(DataError, match="expected .jsonl or .parquet files"):
        lines.input_files(tmp_path)


def test_an_empty_table_is_an_empty_file(write):
    path = write({"text": arrow.array([], arrow.string())})
    wanted = "expected rows with the columns 'text', got an empty file; put at least"
    assert wanted in message_of(read_texts, path)


def test_what_is_no_parquet_or_broken_is_named(write, tmp_path):
    path = tmp_path / "text.parquet"
    for content in (b"", b'{"text": "a"}\n', b"PAR1" + b"?" * 99):
        path.write_bytes(content)
        message = message_of(read_texts, path)
        assert message.startswith(f"{path}: expected a Parquet file, got: ")
    assert "expected a Parquet file" in message_of(read_texts, tmp_path / "no.parquet")
    whole = write({"text": TEXTS}, name="whole.parquet").read_bytes()
    path.write_bytes(whole[:8] + b"?" * 60 + whole[68:])
    message = message_of(read_texts, path)
    assert "expected whole rows in row group 0" in message and "fetch" in message


def test_without_pyarrow_the_command_is_named(write, monkeypatch):
    path = write({"text": ["a"]})
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    assert "expected pyarrow, which reads Parquet" in message_of(read_texts, path)

"""The committed files: made again byte for byte, whole, and without held-out pairs."""

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from random import Random

import pytest

from minipalm.data import make
from minipalm.data.files import write_text
from minipalm.data.gold import MOOD_OF, bayes_accuracy, gold_reward
from minipalm.data.lexicon import HELD_OUT_PAIRS, PRONOUNS, SUBJECTS, parse_prompt
from minipalm.data.make import make_files, make_records
from minipalm.data.tinytales import MAX_WORDS, pick

DATA = Path(__file__).parents[2] / "data"
FILES = {
    "text.jsonl": 10_000,
    "demonstrations.jsonl": 6_000,
    "preferences.jsonl": 2_000,
    "prompts.jsonl": 126,
    "prompts_heldout.jsonl": 18,
}
FEW = {"demonstrations.jsonl": 7, "preferences.jsonl": 5}
HEARD = ("demonstrations.jsonl", "preferences.jsonl", "prompts.jsonl")


@pytest.fixture(scope="module")
def records():
    return make_records(seed=0)


def test_seed_0_makes_the_committed_files_byte_for_byte():
    made = make_files(seed=0)
    assert set(made) == {*FILES, "README.md"}
    for name, text in made.items():
        assert (DATA / name).read_bytes() == text.encode(), name


def test_the_command_does_not_depend_on_hash_order(tmp_path):
    command = [sys.executable, "-m", "minipalm.data.make", "--seed", "3", "--out"]
    for salt in ("1", "2"):
        subprocess.run(
            [*command, tmp_path / salt],
            env=os.environ | {"PYTHONHASHSEED": salt},
            cwd=DATA.parent,
            check=True,
            stdout=subprocess.DEVNULL,
        )
    for name, text in make_files(seed=3).items():
        digests = {
            hashlib.sha256(content).hexdigest()
            for content in (
                text.encode(),
                (tmp_path / "1" / name).read_bytes(),
                (tmp_path / "2" / name).read_bytes(),
            )
        }
        assert len(digests) == 1, name
    assert sorted(p.name for p in (tmp_path / "1").iterdir()) == sorted(
        [*FILES, "README.md"]
    )


def test_another_seed_makes_other_tales_of_the_same_prompts(records):
    other = make_records(seed=1)
    for name in FILES:
        assert (other[name] == records[name]) == name.startswith("prompts")


def test_each_file_has_its_records_and_stays_under_one_megabyte(records):
    for name, number in FILES.items():
        content = (DATA / name).read_bytes()
        assert len(content) < 1_000_000 and content.endswith(b"\n")
        assert b"\r" not in content
        assert [json.loads(line) for line in content.splitlines()] == records[name]
        assert len(records[name]) == number


def test_no_tale_is_cut_by_the_window(records):
    tales = [row["response"] for row in records["demonstrations.jsonl"]]
    for row in records["preferences.jsonl"]:
        tales += [row["chosen"], row["rejected"]]
    assert all(len(tale.split()) <= MAX_WORDS for tale in tales)
    assert all(tale.endswith(" .") for tale in tales)


def test_no_training_prompt_asks_for_a_held_out_pair(records):
    for name in HEARD:
        asked = {parse_prompt(row["prompt"]) for row in records[name]}
        assert len(asked) == 42 and not asked & set(HELD_OUT_PAIRS)
    held_out = {parse_prompt(r["prompt"]) for r in records["prompts_heldout.jsonl"]}
    assert held_out == set(HELD_OUT_PAIRS)


def test_no_training_tale_is_about_a_held_out_pair(records):
    """Not even where the author took a wrong subject."""
    for row in records["demonstrations.jsonl"] + records["preferences.jsonl"]:
        mood, _ = parse_prompt(row["prompt"])
        named = {w for tale in list(row.values())[1:] for w in tale.split()}
        assert not any((mood, word) in HELD_OUT_PAIRS for word in named)


def test_raw_tales_tell_of_all_subjects_but_not_in_their_held_out_mood(records):
    """The files do not say a raw tale's mood: its mood words, counted, do."""
    told = Counter()
    for row in records["text.jsonl"]:
        words = row["text"].split()
        moods = Counter(MOOD_OF[word] for word in words if word in MOOD_OF)
        (mood, most), *rest = [*moods.most_common(2), ("", 0)]
        if most >= 3 and rest[0][1] == 0:
            told.update((mood, word) for word in set(words) if word in PRONOUNS)
    assert {subject for _, subject in told} == set(SUBJECTS)
    for pair in HELD_OUT_PAIRS:
        others = [
            n for (mood, s), n in told.items() if s == pair[1] and mood != pair[0]
        ]
        assert told[pair] <= 1 and min(others) > 30, (pair, told[pair], others)


def test_seven_raw_tales_of_ten_say_what_they_are_about(records):
    texts = [row["text"] for row in records["text.jsonl"]]
    headed = sum(text.startswith("about the ") for text in texts)
    assert headed / len(texts) == pytest.approx(0.7, abs=0.015)


def test_the_labels_are_right_as_often_as_a_noisy_labeller_is(records):
    rows = records["preferences.jsonl"]
    assert all(row["chosen"] != row["rejected"] for row in rows)
    chosen = [gold_reward(row["prompt"], row["chosen"]) for row in rows]
    rejected = [gold_reward(row["prompt"], row["rejected"]) for row in rows]
    pairs = list(zip(chosen, rejected, strict=True))
    right = sum((c > r) + 0.5 * (c == r) for c, r in pairs) / len(rows)
    assert right == pytest.approx(bayes_accuracy(chosen, rejected), abs=0.03)


def test_equal_drafts_are_not_a_preference(monkeypatch):
    drafts = ("the fox wept .", "the owl slept .")
    monkeypatch.setattr(make, "tell", lambda *given: pick(given[-1], drafts))
    rows = list(islice(make.preferences(Random(0)), 100))
    assert len(rows) == 100
    assert all({row["chosen"], row["rejected"]} == set(drafts) for row in rows)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "new" / "file.txt"
    write_text(path, "old\n")

    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new\n")
    assert path.read_text() == "old\n" and list(path.parent.iterdir()) == [path]


def test_written_files_have_unix_line_ends_and_utf8(tmp_path):
    write_text(tmp_path / "file.txt", "é\n")
    assert (tmp_path / "file.txt").read_bytes() == b"\xc3\xa9\n"


def test_files_of_somebody_else_are_not_overwritten(tmp_path, monkeypatch, capsys):
    (tmp_path / "text.jsonl").write_text('{"text": "mine"}\n')
    monkeypatch.setattr("sys.argv", ["make", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        make.main()
    assert stop.value.code == 2 and "did not make" in capsys.readouterr().err
    assert (tmp_path / "text.jsonl").read_text() == '{"text": "mine"}\n'
    assert list(tmp_path.iterdir()) == [tmp_path / "text.jsonl"]


def test_other_counts_make_longer_or_shorter_files_of_the_same_beginning(
    tmp_path, monkeypatch, records
):
    argv = "make --seed 0 --texts 10030 --demonstrations 7 --preferences 5 --out"
    monkeypatch.setattr("sys.argv", [*argv.split(), str(tmp_path / "many")])
    make.main()
    for name, number in {**FILES, "text.jsonl": 10_030, **FEW}.items():
        rows = [json.loads(one) for one in (tmp_path / "many" / name).open()]
        shorter = min(number, FILES[name])
        assert len(rows) == number and rows[:shorter] == records[name][:shorter]
    assert sorted(p.name for p in (tmp_path / "many").iterdir()) == sorted(
        [*FILES, "README.md"]
    )
    make.main()  # over what it has made itself


def test_a_count_below_one_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["make", "--out", str(tmp_path), "--texts", "0"])
    with pytest.raises(SystemExit):
        make.main()
    assert "expected counts of at least 1, got 0" in capsys.readouterr().err

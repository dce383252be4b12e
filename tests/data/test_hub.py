"""Public data sets: records of the same fields, written here, become our files."""

import json
import sys

import pytest

from minipalm.course import ROOT
from minipalm.data import hub
from minipalm.data.datasets import (
    DataError,
    read_demonstrations,
    read_preferences,
    read_prompts,
    read_texts,
)
from minipalm.data.hub import write_file
from minipalm.data.hub_sets import SETS

READERS = {
    "text": read_texts,
    "demonstrations": read_demonstrations,
    "preferences": read_preferences,
    "prompts": read_prompts,
    "prompts_heldout": read_prompts,
}


def dialogue(*turns):
    names = ["\n\nHuman: ", "\n\nAssistant: "] * 9
    return "".join(name + turn for name, turn in zip(names, turns))


def message(role, content):
    return {"content": content, "role": role}


def ultra(question, better, worse, scores=(8.0, 5.0)):
    chosen = [message("user", question), message("assistant", better)]
    return {
        "prompt": question,
        "prompt_id": "0",
        "chosen": chosen,
        "rejected": [message("user", question), message("assistant", worse)],
        "messages": chosen,
        "score_chosen": scores[0],
        "score_rejected": scores[1],
    }


def tldr(post, one, two, choice):
    info = {"id": "i", "post": post, "title": "Lost", "subreddit": "pets"}
    texts = [{"text": text, "policy": "p", "note": None} for text in (one, two)]
    return {
        "info": info | {"site": None, "article": None},
        "summaries": texts,
        "choice": choice,
        "worker": "w",
        "batch": "b",
        "split": "train",
        "extra": {"confidence": 3},
    }


HH = [
    {
        "chosen": dialogue("Hi", "Hello", "A joke?", "No."),
        "rejected": dialogue("Hi", "Hello", "A joke?", "Two owls met."),
    },
    {"chosen": dialogue("Hi", "Yes"), "rejected": dialogue("Ho", "No")},  # other ones
    {"chosen": dialogue("Hi", "Yes"), "rejected": dialogue("Hi", "Yes")},
    {"chosen": dialogue("Hi", "Yes"), "rejected": dialogue("Hi", "")},
    {"chosen": dialogue("Hi", "Yes"), "rejected": dialogue("Hi", "No")},
    {"chosen": dialogue("Hi", "Aye"), "rejected": dialogue("Hi", "No")},
]
ULTRA = [
    ultra("Why?", "Because.", "No."),
    ultra("Why?", "Because.", "No.", (5.0, 5.0)),
    ultra("How?", "So.", ""),
    ultra("Who?", "An owl.", "A fox."),
]
TLDR = [
    tldr("My cat ran away.", "Cat ran.", "Dog ran.", 0),
    tldr("My cat ran away.", "Cat left.", "Dog left.", 1),
    tldr(None, "a", "b", 0),  # a news article
]
TEXTS = [{"text": "One.\n\nTwo.", "id": "a"}, {"text": " \n"}, {"text": "Three."}]
RECORDS = {"hh-rlhf": HH, "ultrafeedback": ULTRA, "tldr": TLDR, "fineweb-edu": TEXTS}

JOKE = "Human: Hi\n\nAssistant: Hello\n\nHuman: A joke?\n\nAssistant:"
POST = "SUBREDDIT: r/pets\n\nTITLE: Lost\n\nPOST: My cat ran away.\n\nTL;DR:"
WANTED = {
    ("hh-rlhf", "preferences"): [
        (JOKE, " No.", " Two owls met."),
        ("Human: Hi\n\nAssistant:", " Yes", " No"),
        ("Human: Hi\n\nAssistant:", " Aye", " No"),
    ],
    ("hh-rlhf", "prompts"): [(JOKE,), ("Human: Hi\n\nAssistant:",)],
    ("ultrafeedback", "preferences"): [
        ("Human: Why?\n\nAssistant:", " Because.", " No."),
        ("Human: Who?\n\nAssistant:", " An owl.", " A fox."),
    ],
    ("ultrafeedback", "prompts"): [
        (f"Human: {question}?\n\nAssistant:",) for question in ("Why", "How", "Who")
    ],
    ("ultrafeedback", "demonstrations"): [
        ("Human: Why?\n\nAssistant:", " Because."),
        ("Human: Why?\n\nAssistant:", " Because."),
        ("Human: How?\n\nAssistant:", " So."),
        ("Human: Who?\n\nAssistant:", " An owl."),
    ],
    ("tldr", "preferences"): [
        (POST, "Cat ran.", "Dog ran."),
        (POST, "Dog left.", "Cat left."),
    ],
    ("tldr", "prompts"): [(POST,)],
    ("fineweb-edu", "text"): [("One.\n\nTwo.",), ("Three.",)],
}
EACH = [(name, file) for name, files in SETS.items() for file in files]


@pytest.mark.parametrize(("name", "file"), EACH)
def test_records_become_ours(name, file, tmp_path):
    path = tmp_path / f"{file}.jsonl"
    source = SETS[name][file]
    written, left_out = write_file(path, source, RECORDS[name])
    records = READERS[file](path)
    assert len(records) == written
    found = [
        tuple(getattr(r, field) for field in r.__slots__ if field != "source")
        for r in records
    ]
    wanted = WANTED[name, file.removesuffix("_heldout")]
    assert found == wanted
    assert source.once or written + left_out == len(RECORDS[name])
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", SETS)
def test_the_library_gives_records_that_the_functions_read(name, tmp_path):
    """From a Parquet file of the same fields, streamed."""
    datasets = pytest.importorskip("datasets")
    records = (
        [r | {"id": "x"} for r in RECORDS[name]]
        if name == "fineweb-edu"
        else (RECORDS[name])
    )
    path = tmp_path / "set.parquet"
    datasets.Dataset.from_list(records).to_parquet(path)
    streamed = datasets.load_dataset(
        "parquet", data_files=str(path), split="train", streaming=True,
        cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    for source in SETS[name].values():
        write_file(tmp_path / "a.jsonl", source, streamed)
        write_file(tmp_path / "b.jsonl", source, RECORDS[name])
        assert (tmp_path / "a.jsonl").read_text() == (tmp_path / "b.jsonl").read_text()


def test_limits_and_lengths(tmp_path):
    source = SETS["hh-rlhf"]["preferences"]
    assert write_file(tmp_path / "a", source, HH, limit=1) == (1, 0)
    assert write_file(tmp_path / "a", source, HH, longest=(3, 5)) == (2, 4)
    assert write_file(tmp_path / "a", source, HH, longest=(99, 1)) == (2, 4)
    text = SETS["fineweb-edu"]["text"]
    assert write_file(tmp_path / "a", text, TEXTS, longest=(1, 1)) == (2, 1)


@pytest.mark.parametrize("record", [{"other": 1}, {"chosen": None, "rejected": None}])
def test_other_fields_are_named(record, tmp_path):
    source = SETS["hh-rlhf"]["preferences"]
    with pytest.raises(DataError, match="record 1: expected the fields that its card"):
        write_file(tmp_path / "a", source, [HH[0], record])
    assert not (tmp_path / "a").exists()


def test_the_file_to_mend_has_the_functions(tmp_path):
    source = SETS["hh-rlhf"]["preferences"]
    with pytest.raises(DataError) as error:
        write_file(tmp_path / "a", source, [{"other": 1}])
    path = str(error.value).split()[-1]
    assert f"def {source.ours.__name__}(" in (ROOT / path).read_text("utf-8")


def test_the_command_writes_each_file_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(hub, "from_hub", lambda source: HH)
    monkeypatch.setattr(sys, "argv", ["hub", "hh-rlhf", str(tmp_path)])
    hub.main()
    assert "preferences.jsonl: 3 records, 3 left out" in capsys.readouterr().out
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"{file}.jsonl" for file in sorted(SETS["hh-rlhf"])]
    first = json.loads((tmp_path / "prompts.jsonl").read_text().splitlines()[0])
    assert first == {"prompt": JOKE}
    hub.main()
    assert "is there already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ConnectionError("no route"),
            "got ConnectionError: 'no route'; is there a net",
        ),
        (ImportError("datasets"), "expected the package datasets"),
    ],
)
def test_what_stops_the_command_is_said_in_a_line(
    error, said, tmp_path, monkeypatch, capsys
):
    def fail(source):
        raise error

    monkeypatch.setattr(hub, "from_hub", fail)
    monkeypatch.setattr(sys, "argv", ["hub", "tldr", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        hub.main()
    assert stop.value.code == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line

"""What is wrong with the data is said before the first stage, by the stages' checks."""

import json
import os
import subprocess
import sys
import time
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice

import jupytext
import pytest

from minipalm.config import get_preset
from minipalm.course import ROOT
from minipalm.course.prepare import Data, check_data, wait_for_data
from minipalm.course.run import all_inputs
from minipalm.data import datasets, lines, shards
from minipalm.data.fields import DataError

DATA = ROOT / "data"
SMOKE = get_preset("smoke")
STORY = "sad story about the fox :"


@pytest.fixture
def own(tmp_path):
    """own(name=[record, ...]) -> a folder of one's own files: these records, and after
    them the beginnings of TinyTales'."""

    def folder(**given):
        place = tmp_path / "own"
        place.mkdir(exist_ok=True)
        for name in ("text", "demonstrations", "prompts", "prompts_heldout"):
            with (DATA / f"{name}.jsonl").open() as file:
                (place / f"{name}.jsonl").write_text("".join(islice(file, 400)))
        for name, records in given.items():
            path = place / f"{name}.jsonl"
            more = path.read_text() if path.exists() else ""
            text = "".join(json.dumps(record) + "\n" for record in records)
            path.write_text(text + more)
        return place

    return folder


def asked(out, data=None, preferences=None, until=None, seed=0):
    """The arguments of ./course full, with all inputs."""
    args = Namespace(
        scale="smoke", seed=seed, out=out, data=data, preferences=preferences,
        until=until, notebooks=ROOT / "solutions",
    )  # fmt: skip
    args.inputs = all_inputs(args)
    return args


def data_of(args):
    return Data(args.out, args.inputs, SMOKE, args.seed)


# --- what is wrong --------------------------------------------------------------------

LONG = " ".join(["the"] * 30)
PAIR = {"prompt": STORY, "chosen": "it slept .", "rejected": "it ran ."}


@pytest.mark.parametrize(
    ("name", "record", "message"),
    [
        ("prompts", {"prompt": "How do magnets work?"}, "the word 'how' is not among"),
        ("prompts", {"prompt": "the fox slept"}, "knows only TinyTales' prompts"),
        ("prompts", {"prompt": LONG}, "'prompt': expected at most 9 tokens"),
        ("prompts_heldout", {"prompt": LONG}, "'prompt': expected at most 9 tokens"),
        ("prompts_heldout", {"prompt": "zebra"}, "the word 'zebra' is not among"),
        ("demonstrations", {"prompt": STORY, "response": LONG}, "at most 26 tokens"),
        ("preferences", PAIR | {"prompt": LONG}, "'prompt': expected at most 9 tokens"),
        ("preferences", PAIR | {"chosen": LONG}, "'chosen': expected at most 26"),
        ("preferences", PAIR | {"rejected": LONG}, "'rejected': expected at most 26"),
        ("preferences", PAIR | {"rejected": "a zebra"}, "the word 'zebra' is not"),
        ("preferences", PAIR, "expected at least 2 different"),
    ],
)
def test_a_record_that_does_not_fit_is_named(own, tmp_path, name, record, message):
    data = own(**{name: [record]})
    chosen = data / "preferences.jsonl" if name == "preferences" else None
    args = asked(tmp_path / "out", data, chosen)
    with pytest.raises(DataError, match=message) as error:
        data_of(args).check()
    assert str(error.value).startswith(f"{data / name}.jsonl")
    assert not list((tmp_path / "out").rglob("*"))


def test_own_prompts_need_own_comparisons_and_no_more(own, tmp_path):
    data = own(prompts=[{"prompt": "the fox slept"}])
    with pytest.raises(DataError, match="--preferences FILE"):
        data_of(asked(tmp_path / "out", data)).check()
    data_of(asked(tmp_path / "out", data, DATA / "preferences.jsonl")).check()
    data_of(asked(tmp_path / "out", data, until="07_sft")).check()


def test_the_command_refuses_within_seconds_and_runs_nothing(own, tmp_path, capfd):
    data = own(prompts=[{"prompt": "the fox slept"}], preferences=[PAIR])
    out = tmp_path / "out"
    args = asked(out, data)
    out.mkdir()
    with (out / ".lock").open("w") as held:
        assert check_data(args, held.fileno()) == 2
    told = capfd.readouterr()
    assert told.err.startswith(f"./course full: {data}/prompts.jsonl:1: field 'prompt'")
    assert len(told.err.splitlines()) == 1
    used = f'To use it, add --preferences "{data}/preferences.jsonl"'
    assert "preferences.jsonl is not used" in told.out and used in told.out
    assert [path.name for path in out.rglob("*")] == [".lock"]
    for stage in args.inputs:  # what is complete needs no second look
        (out / stage).mkdir()
        (out / stage / "done.json").write_text("{}")
    with (out / ".lock").open("w") as held:
        assert check_data(args, held.fileno()) == 0
    assert capfd.readouterr() == ("", "")


# --- large files ----------------------------------------------------------------------


@pytest.fixture
def large(monkeypatch):
    monkeypatch.setattr(datasets, "LARGE", 0)
    monkeypatch.setattr(lines, "BLOCK", 20_000)
    monkeypatch.setattr(shards, "PART", 15_000)


def test_a_broken_line_far_into_large_comparisons_is_named(large, own, tmp_path):
    path = tmp_path / "preferences.jsonl"
    good = (DATA / "preferences.jsonl").read_text().splitlines()[:700]
    path.write_text("\n".join([*good, '{"prompt": ']))
    args = asked(tmp_path / "out", own(), path)  # reads the beginning only
    with pytest.raises(DataError, match=r"preferences.jsonl:701: expected a JSON obj"):
        data_of(args).check()


def run_lesson(name, **given):
    """The cells of a lesson that run in batch."""
    names = {"__name__": "__main__"}
    for cell in jupytext.read(ROOT / "lessons" / f"{name}.py", fmt="py:percent").cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "code" and "classroom" not in tags:
            exec(compile(cell.source, name, "exec"), names)
            names |= given if "parameters" in tags else {}


def test_the_stages_find_what_was_made(large, tmp_path, monkeypatch):
    """The very notebooks: they make no tokenizer, and no table but that of the text."""
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.chdir(ROOT)
    out, given = tmp_path / "out", DATA / "preferences.jsonl"
    data_of(asked(out, preferences=given)).check()
    made = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert {path.parent.name for path in made} == {"tokenizer", "rows", "pairs"}
    written, write = [], shards._write
    monkeypatch.setattr(
        shards, "_write", lambda *of: written.append(of[0].name) or write(*of)
    )
    data_of(asked(out, preferences=given)).check()  # nor does a second look
    assert not written
    same = {"scale": "smoke", "out": str(out)}
    run_lesson("06_palm", **same)
    run_lesson("07_sft", **same)
    run_lesson("08_reward_model", **same, preferences=str(given))
    assert written == ["tokens"]
    assert all(path.stat().st_mtime_ns == when for path, when in made.items())
    palm = out / "06_palm"
    trained = (palm / "tokenizer" / "tokenizer.json").read_bytes()
    assert (palm / "tokenizer.json").read_bytes() == trained
    later = asked(out, preferences=given)
    del later.inputs["06_palm"]  # complete
    data_of(later).check()
    assert all(path.stat().st_mtime_ns == when for path, when in made.items())


@pytest.mark.parametrize("kind", ["word", "bpe"])
@pytest.mark.parametrize("size", ["small", "large"])
def test_a_process_of_its_own_trains_the_tokenizer_that_06_would(
    kind, size, tmp_path, monkeypatch
):
    if size == "large":
        monkeypatch.setattr(datasets, "LARGE", 0)
    preset = replace(SMOKE, tokenizer=kind, vocab_size={"word": 144, "bpe": 900}[kind])
    args = asked(tmp_path / "here")
    data = Data(args.out, args.inputs, preset, 0)
    here = data.tokenizer()
    there = subprocess.run(
        [sys.executable, "-c", TOKENIZER, kind, str(preset.vocab_size), size],
        cwd=ROOT, capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONHASHSEED": "7", "RANK": "0", "WORLD_SIZE": "1"},
    )  # fmt: skip
    assert here.fingerprint == there.stdout.strip()


TOKENIZER = """
import sys, tempfile
from minipalm.data import datasets
from minipalm.data.corpus import corpus_tokenizer
kind, number, size = sys.argv[1:]
if size == "large":
    datasets.LARGE = 0
texts = datasets.read_texts("data/text.jsonl")
demos = datasets.read_demonstrations("data/demonstrations.jsonl")
with tempfile.TemporaryDirectory() as folder:
    print(corpus_tokenizer(texts, demos, kind, int(number), folder).fingerprint)
"""


# --- several machines -----------------------------------------------------------------


def test_other_machines_wait_for_machine_0_s_word_about_the_same_data(own, tmp_path):
    data, out = own(), tmp_path / "out"
    out.mkdir()
    args = asked(out, data, until="06_palm")
    with (out / ".lock").open("w") as held, ThreadPoolExecutor() as pool:
        waiting = pool.submit(wait_for_data, args)
        time.sleep(1)
        assert not waiting.done()
        assert check_data(args, held.fileno(), several=True) == 0
        assert waiting.result(20) is None
        own(demonstrations=[{"prompt": STORY, "response": LONG * 3}])
        args = asked(out, data, until="06_palm")
        waiting = pool.submit(wait_for_data, args)
        time.sleep(1)
        assert not waiting.done()  # the word is about other data
        assert check_data(args, held.fileno(), several=True) == 2
        with pytest.raises(ValueError, match="machine 0 ended while it read the data"):
            waiting.result(20)

"""What is wrong with the data is said before the first stage, by the stages' checks."""

import json
import os
import subprocess
import sys
import time
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from itertools import islice

import jupytext
import pytest

from minipalm.config import get_preset
from minipalm.course import ROOT, announce
from minipalm.course.announce import announced, wait_for_data
from minipalm.course.data_check import Data, check_data
from minipalm.course.inputs import all_inputs
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
        until=until, notebooks=ROOT / "solutions", rdzv_endpoint="gpu1:29400",
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

ENDED = "machine 0 ended before the first stage, and has said why"
LOST = "machine 0 is lost: it gave no sign for"
NO_WORD = "machine 0 has not begun within"


@pytest.fixture
def quick(monkeypatch):
    """What takes minutes takes seconds."""
    monkeypatch.setattr(announce, "BEAT", 0.2)
    monkeypatch.setattr(announce, "GONE", 1.5)
    monkeypatch.setattr(announce, "JOIN", timedelta(seconds=4))


@pytest.fixture
def args(own, tmp_path):
    args = asked(tmp_path / "out", own(), until="06_palm")
    args.out.mkdir()
    return args


@pytest.fixture
def machine_1(args, quick):
    """machine_1() -> its wait for machine 0, which has begun and looked."""
    with ThreadPoolExecutor() as pool:

        def begin(args=args):
            waiting = pool.submit(wait_for_data, args)
            time.sleep(0.5)
            return waiting

        yield begin


def state(args):
    return json.loads((args.out / "data.json").read_text())["state"]


def start_and_refuse(args, *raised):
    """A start of machine 0 that ends before it has checked the data."""
    with suppress(*raised), announced(args, several=True):
        assert state(args) == "reading"
        for error in raised:
            raise error
    assert state(args) == "ended"


def test_others_wait_while_machine_0_reads_and_go_on_when_it_is_ready(args, machine_1):
    waiting = machine_1()
    with (args.out / ".lock").open("w") as held, announced(args, True) as ready:
        time.sleep(5)  # longer than they wait for its beginning, or for a sign
        assert not waiting.done()
        assert check_data(args, held.fileno()) == 0
        ready()
        assert waiting.result(10) is None
        machine_1().result(10)  # nor does one wait that comes now


def test_data_that_are_refused_end_the_others(args, own, machine_1):
    own(demonstrations=[{"prompt": STORY, "response": LONG * 3}])
    waiting = machine_1()
    with (args.out / ".lock").open("w") as held, announced(args, True):
        assert check_data(args, held.fileno()) == 2
    with pytest.raises(ValueError, match=ENDED):
        waiting.result(10)


@pytest.mark.parametrize("error", [ValueError, RuntimeError, SystemExit])
def test_a_refusal_before_anything_is_read_ends_the_others(args, machine_1, error):
    waiting = machine_1()
    start_and_refuse(args, error)
    with pytest.raises(ValueError, match=ENDED):
        waiting.result(10)


def test_the_end_of_an_earlier_start_counts_for_nothing(args, machine_1):
    start_and_refuse(args, SystemExit)
    waiting = machine_1()
    time.sleep(1)
    assert not waiting.done()
    with announced(args, several=True) as ready:
        time.sleep(1)
        assert not waiting.done()
        ready()
        assert waiting.result(10) is None


def test_others_give_up_where_machine_0_does_not_begin(args, machine_1):
    for begin in (dict, lambda: start_and_refuse(args, SystemExit)):
        begin()
        waiting = machine_1()
        time.sleep(1.5)
        assert not waiting.done()
        with pytest.raises(ValueError, match=NO_WORD):
            waiting.result(10)


def test_machine_0_killed_while_it_reads_is_missed(args, machine_1):
    inputs = {s: {n: str(p) for n, p in f.items()} for s, f in args.inputs.items()}
    given = {"scale": args.scale, "out": str(args.out), "inputs": inputs}
    machine_0 = subprocess.Popen([sys.executable, "-c", KILLED, json.dumps(given)])
    while not (args.out / "data.json").exists():
        time.sleep(0.1)
    waiting = machine_1()
    time.sleep(4)
    assert not waiting.done()
    machine_0.kill()
    machine_0.wait()
    with pytest.raises(ValueError, match=LOST):
        waiting.result(10)
    late = machine_1()
    time.sleep(1.5)
    assert state(args) == "reading" and not late.done()  # it may begin again
    with announced(args, several=True) as ready:
        ready()
        assert late.result(10) is None


KILLED = """
import json, sys, time
from argparse import Namespace
from pathlib import Path
from minipalm.course import announce
args = Namespace(**json.loads(sys.argv[1]))
args.out = Path(args.out)
announce.BEAT = 0.2
with announce.announced(args, several=True):
    time.sleep(60)
"""


def test_a_second_start_that_the_lock_refuses_does_not_end_the_others(args, machine_1):
    waiting = machine_1()
    with announced(args, several=True) as ready:
        start_and_refuse(args, RuntimeError)
        time.sleep(1)
        assert not waiting.done()
        ready()
        assert waiting.result(10) is None


def test_a_word_about_other_data_counts_for_nothing(args, own, tmp_path, machine_1):
    with announced(args, several=True) as ready:
        ready()
        own(demonstrations=[{"prompt": STORY, "response": "it slept ."}])
        waiting = machine_1(asked(args.out, tmp_path / "own", until="06_palm"))
        with pytest.raises(ValueError, match=NO_WORD):  # though it is said again
            waiting.result(10)


def test_when_all_have_met_there_is_no_word_left(args, quick):
    with announced(args, several=True) as ready:
        ready()
        time.sleep(1)
        assert state(args) == "ready"
        time.sleep(5)
        assert not (args.out / "data.json").exists()
    start_and_refuse(args, SystemExit)
    with announced(args, several=False) as ready:
        assert not (args.out / "data.json").exists()
        ready()
    assert not list(args.out.iterdir())


def test_who_waits_says_so_once(args, quick, monkeypatch, capfd):
    monkeypatch.setattr(announce, "TELL", 0.5)
    with pytest.raises(ValueError, match=NO_WORD):
        wait_for_data(args)
    told = capfd.readouterr().out.splitlines()
    assert len(told) == 1 and told[0].startswith("waiting for machine 0, gpu1:29400, ")

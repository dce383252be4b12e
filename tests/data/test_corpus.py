"""Large inputs: the same rows as in memory, whatever happens while they are made."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields
from itertools import islice
from pathlib import Path

import pytest
import torch

from minipalm.config import OptimConfig, PaLMConfig, RewardConfig
from minipalm.data import corpus, datasets, files, lines
from minipalm.data.batches import hold_out_stream, prompt_ids, text_stream
from minipalm.data.corpus import (
    corpus_tokenizer,
    encode_examples,
    packed_rows,
    stored_pairs,
    token_stream,
)
from minipalm.data.datasets import (
    DataError,
    Records,
    check_window,
    fitting,
    hold_out,
    read_demonstrations,
    read_preferences,
    read_prompts,
    read_texts,
)
from minipalm.data.files import fingerprint
from minipalm.data.tokenizer import BytePairTokenizer
from minipalm.data.workers import in_order
from minipalm.model.palm import PaLM
from minipalm.rlhf.pairs import encode_pairs
from minipalm.rlhf.reward import RewardModel
from minipalm.rlhf.sft import pack_examples
from minipalm.train.language_model import train_language_model
from minipalm.train.reward_model import train_reward_model
from minipalm.train.run import Run
from minipalm.train.sft import train_sft
from tests import forked
from tests.data.children import SMALL, WORDS, make, make_as_second, make_until

DATA = Path(__file__).parents[2] / "data"
P, T, WIDTH = 9, 26, 72


def first_lines(name, number, folder):
    """A small file of the beginning of one of TinyTales'."""
    path = folder / name
    with (DATA / name).open() as file:
        path.write_text("".join(islice(file, number)))
    return path


@pytest.fixture
def large(monkeypatch):
    """Every file is large; blocks and parts are small."""
    for module, name, value in SMALL:
        monkeypatch.setattr(module, name, value)


def in_memory(read, paths, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(datasets, "LARGE", 1 << 40)
        return read(paths)


# --- the same as in memory ------------------------------------------------------------


def test_a_small_file_is_a_list_and_a_large_one_is_not(large, monkeypatch):
    for read, name in (
        (read_texts, "text.jsonl"),
        (read_demonstrations, "demonstrations.jsonl"),
        (read_preferences, "preferences.jsonl"),
    ):
        records, wanted = read(DATA / name), in_memory(read, DATA / name, monkeypatch)
        assert isinstance(records, Records) and isinstance(wanted, list)
        assert list(records) == wanted == list(records)  # as often as one likes
        assert records[:3] == wanted[:3] and records[7] == wanted[7]
        assert records[3:9:2] == wanted[3:9:2]
        for beyond in (len(wanted), -1):
            with pytest.raises(IndexError):
                records[beyond]
    assert isinstance(read_prompts(DATA / "prompts.jsonl"), list)


@pytest.mark.parametrize("tokenizer", [WORDS, BytePairTokenizer([])])
def test_a_stream_on_the_disk_is_the_stream_in_memory(
    tokenizer, large, tmp_path, monkeypatch
):
    path = first_lines("text.jsonl", 300, tmp_path)
    texts = in_memory(read_texts, path, monkeypatch)
    wanted = text_stream(tokenizer, [one.text for one in texts])
    for records in (texts, read_texts(path), read_texts(path)):  # the third finds it
        stream = token_stream(tokenizer, records, tmp_path / "tokens")
        assert torch.equal(stream.long(), wanted)
    assert stream.dtype == torch.int16
    assert (
        len(json.loads((tmp_path / "tokens" / "index.json").read_text())["parts"]) > 3
    )

    train, test = hold_out_stream(stream, 50, "text")
    assert test.dtype == torch.int64  # a loss can be asked about it
    assert torch.equal(torch.cat([test, train.long()]), wanted)
    rows = train[: len(train) // 50 * 50].view(-1, 50)
    assert torch.equal(rows[torch.tensor([4, 1])][1].long(), train[50:100].long())


def test_several_files_follow_each_other_in_order_of_name(large, tmp_path):
    for n, text in enumerate(["the fox", "the owl ran", "it slept"]):
        (tmp_path / f"{2 - n}.jsonl").write_text(json.dumps({"text": text}) + "\n")
    wanted = text_stream(WORDS, ["it slept", "the owl ran", "the fox"])
    by_pattern = token_stream(WORDS, read_texts(f"{tmp_path}/*.jsonl"), tmp_path / "a")
    assert torch.equal(by_pattern.long(), wanted)
    one_by_one = [tmp_path / f"{n}.jsonl" for n in (0, 1, 2)]
    assert torch.equal(
        token_stream(WORDS, read_texts(one_by_one), tmp_path / "b").long(), wanted
    )
    assert fingerprint(one_by_one) == fingerprint(f"{tmp_path}/?.jsonl")
    assert fingerprint(one_by_one) != fingerprint(one_by_one[::-1])
    with pytest.raises(DataError, match=r"none\*: expected one file or more"):
        read_texts(f"{tmp_path}/none*")


def test_rows_on_the_disk_hold_each_demonstration_once(large, tmp_path, monkeypatch):
    path = first_lines("demonstrations.jsonl", 200, tmp_path)
    examples = encode_examples(read_demonstrations(path), WORDS)
    wanted = encode_examples(in_memory(read_demonstrations, path, monkeypatch), WORDS)
    assert list(examples) == wanted and examples[5:7] == wanted[5:7]
    assert wanted[0][0] == prompt_ids(WORDS, read_demonstrations(path)[0].prompt)

    rows = packed_rows(pack_examples, examples, WIDTH, tmp_path / "rows")
    told = []
    for n in range(len(rows)):
        row = rows[torch.tensor([n])]
        assert (row.ids.dtype, row.segments.dtype) == (torch.int64, torch.int64)
        for segment in range(1, int(row.segments.max()) + 1):
            here = row.segments == segment
            told.append(
                (row.ids[here & ~row.mask].tolist(), row.ids[here & row.mask].tolist())
            )
    assert sorted(told) == sorted(wanted)
    assert len(rows) < 0.7 * len(wanted)  # packed, if not across blocks
    together = packed_rows(pack_examples, wanted, WIDTH, tmp_path / "unused")
    assert torch.equal(together.ids, pack_examples(wanted, WIDTH).ids)
    assert not (tmp_path / "unused").exists()


def test_pairs_on_the_disk_are_the_pairs_in_memory(large, tmp_path, monkeypatch):
    path = first_lines("preferences.jsonl", 120, tmp_path)
    records = fitting(read_preferences(path), WORDS, P, T)
    pairs = stored_pairs(records, WORDS, P, T, tmp_path / "pairs")
    wanted = encode_pairs(in_memory(read_preferences, path, monkeypatch), WORDS, P, T)
    assert len(pairs) == len(wanted) == 120
    some = torch.tensor([119, 0, 57])
    for field in fields(wanted):
        one, other = getattr(pairs, field.name), getattr(wanted, field.name)
        assert torch.equal(one[some].to(other.dtype), other[some]), field.name


def test_the_tokenizer_of_large_files_is_that_of_lists(large, tmp_path, monkeypatch):
    paths = [
        first_lines(n, 150, tmp_path) for n in ("text.jsonl", "demonstrations.jsonl")
    ]
    many = read_texts(paths[0]), read_demonstrations(paths[1])
    lists = (
        in_memory(read_texts, paths[0], monkeypatch),
        in_memory(read_demonstrations, paths[1], monkeypatch),
    )
    for kind, size in (("word", 144), ("bpe", 400)):
        folder = tmp_path / kind
        trained = corpus_tokenizer(*many, kind, size, folder)
        assert (
            corpus_tokenizer(*lists, kind, size, folder / "no").fingerprint
            == trained.fingerprint
        )
        assert not (folder / "no").exists()
    made = (tmp_path / "bpe" / "tokenizer.json").stat().st_mtime_ns
    assert corpus_tokenizer(*many, "bpe", 400, tmp_path / "bpe").vocab_size == 400
    assert (tmp_path / "bpe" / "tokenizer.json").stat().st_mtime_ns == made
    assert corpus_tokenizer(*many, "bpe", 300, tmp_path / "bpe").vocab_size == 300


def test_a_tokenizer_reads_the_beginning_of_each_file(large, tmp_path, monkeypatch):
    """A hundredth of 200 kB: less than all, and of both files."""
    for name, word in (("a", "alpha"), ("b", "beta")):
        text = json.dumps({"text": " ".join([word] * 9)}) + "\n"
        late = json.dumps({"text": "omega omega"}) + "\n"
        (tmp_path / f"{name}.jsonl").write_text(text * 1500 + late)
    texts = read_texts(f"{tmp_path}/*.jsonl")
    monkeypatch.setattr(corpus, "TRAINING", texts.bytes // 100)
    demos = read_demonstrations(DATA / "demonstrations.jsonl")[:1]
    tokenizer = corpus_tokenizer(texts, demos, "word", 144, tmp_path / "t")
    assert {"alpha", "beta"} < set(tokenizer.words) and "omega" not in tokenizer.words


def test_a_share_of_large_files_is_drawn_by_contents(large, tmp_path):
    once = (DATA / "demonstrations.jsonl").read_text()
    path = tmp_path / "twice.jsonl"
    path.write_text(once + once)
    train, test = hold_out(read_demonstrations(path), 0.1, seed=0)
    trained = [(one.prompt, one.response) for one in train]
    tested = [(one.prompt, one.response) for one in test]
    assert len(trained) + len(tested) == 12_000
    assert not set(trained) & set(tested)  # equal ones stay together
    assert len(tested) / 12_000 == pytest.approx(0.1, abs=0.015)
    _, other = hold_out(read_demonstrations(path), 0.1, seed=1)
    assert [(one.prompt, one.response) for one in other] != tested


# --- what does not fit ----------------------------------------------------------------


def test_records_that_are_too_long_are_left_out_and_counted(large, tmp_path, capsys):
    long = " ".join(["the"] * 30)
    fits = {"prompt": "sad story about the fox :", "response": "it slept ."}
    rows = [fits, fits | {"prompt": long}, fits, fits | {"response": long}, fits]
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    demos = fitting(read_demonstrations(path), WORDS, P, T)
    assert [one.source for one in demos] == [f"{path}:{n}" for n in (1, 3, 5)]
    examples = encode_examples(demos, WORDS)
    for _ in range(2):
        table = packed_rows(pack_examples, examples, WIDTH, tmp_path / "rows")
        assert int(table.mask.sum()) == 3 * 4
        assert (
            "rows: 2 records are too long and were left out" in capsys.readouterr().out
        )
    check_window(read_demonstrations(path), WORDS, 10)  # leaves it to `fitting`
    with pytest.raises(
        DataError, match="expected rows to train on, got none: all of 5"
    ):
        nothing = fitting(read_demonstrations(path), WORDS, 2, 2)
        packed_rows(
            pack_examples, encode_examples(nothing, WORDS), WIDTH, tmp_path / "0"
        )


def test_a_slip_far_into_a_large_file_is_named_with_its_line(large, tmp_path):
    path = first_lines("text.jsonl", 200, tmp_path)
    with path.open("a") as file:
        file.write('{"text": "the zebra"}\n')
    with pytest.raises(DataError, match=rf"{path}:201: field 'text': the word 'zebra'"):
        token_stream(WORDS, read_texts(path), tmp_path / "s")
    with path.open("a") as file:
        file.write('{"text": 7}\n')
    with pytest.raises(
        DataError, match=rf"{path}:202: field 'text': expected a string"
    ):
        token_stream(BytePairTokenizer([]), read_texts(path), tmp_path / "s")
    with pytest.raises(
        DataError, match=rf"{path}:1: field 'prompt': expected 'prompt'"
    ):
        read_demonstrations(path)  # said at once


# --- killed, changed, damaged ---------------------------------------------------------


def killed_at(step, path, folder):
    """Whether a process was killed at that line of shards.py or files.py, not later."""
    process = forked.context().Process(target=make_until, args=(step, path, folder))
    process.start()
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def test_killed_anywhere_it_goes_on_and_gives_the_same(large, tmp_path):
    path = first_lines("text.jsonl", 300, tmp_path)
    wanted = make(path, tmp_path / "whole").clone()
    index = json.loads((tmp_path / "whole" / "index.json").read_text())
    kills = 0
    for step in (*range(1, 60, 7), *range(60, 700, 41)):
        folder = tmp_path / f"killed-{step}"
        kills += killed_at(step, path, folder)
        assert torch.equal(make(path, folder), wanted), step
        assert json.loads((folder / "index.json").read_text()) == index, step
    assert kills > 15
    folder = tmp_path / "again and again"
    while killed_at(180, path, folder):
        kills += 1
        assert kills < 200
    assert torch.equal(make(path, folder), wanted)


def test_it_goes_on_where_it_was_safe(large, tmp_path, monkeypatch):
    path = first_lines("text.jsonl", 300, tmp_path)
    make(path, tmp_path / "s")
    index = json.loads((tmp_path / "s" / "index.json").read_text())
    index["done"], index["parts"] = False, index["parts"][:2]
    (tmp_path / "s" / "index.json").write_text(json.dumps(index))
    read = []
    blocks = lines._json_lines
    monkeypatch.setattr(
        lines, "_json_lines", lambda *given: read.append(given[2:]) or blocks(*given)
    )
    records = read_texts(path)
    read.clear()
    token_stream(WORDS, records, tmp_path / "s")
    assert read == [tuple(index["parts"][1]["end"][1:])] and read[0][1] > 100


def test_other_texts_or_another_tokenizer_make_it_again(large, tmp_path):
    path = first_lines("text.jsonl", 100, tmp_path)
    first = len(make(path, tmp_path / "s"))
    first_lines("text.jsonl", 50, tmp_path)
    assert len(make(path, tmp_path / "s")) < first
    pieces = token_stream(BytePairTokenizer([]), read_texts(path), tmp_path / "s")
    assert len(pieces) > first


def test_a_damaged_part_is_named(large, tmp_path):
    path = first_lines("text.jsonl", 300, tmp_path)
    make(path, tmp_path / "s")
    column = tmp_path / "s" / "ids.bin"
    raw = bytearray(column.read_bytes())
    for at in (5, len(raw) - 3):
        column.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        with pytest.raises(DataError, match="/s: part .* is not what was written"):
            make(path, tmp_path / "s")
    column.write_bytes(raw[:-2])
    with pytest.raises(DataError, match="remove the folder"):
        make(path, tmp_path / "s")


@pytest.mark.parametrize("damage", ["flipped", "cut", "removed"])
def test_damage_before_the_last_safe_point_is_made_again(
    large, tmp_path, damage, capsys
):
    path = first_lines("text.jsonl", 300, tmp_path)
    wanted = make(path, tmp_path / "whole").clone()
    make(path, tmp_path / "s")
    index = json.loads((tmp_path / "s" / "index.json").read_text())
    cut = index | {"done": False, "parts": index["parts"][:6]}
    (tmp_path / "s" / "index.json").write_text(json.dumps(cut))
    column = tmp_path / "s" / "ids.bin"
    raw = bytearray(column.read_bytes())
    at = 2 * index["parts"][0]["rows"] + 4  # in part 1
    raw[at] ^= 1
    column.write_bytes(raw[:at] if damage == "cut" else raw)
    if damage == "removed":
        column.unlink()
    assert torch.equal(make(path, tmp_path / "s"), wanted)
    assert json.loads((tmp_path / "s" / "index.json").read_text()) == index
    part = 0 if damage == "removed" else 1
    assert f"s: part {part} is not what was written" in capsys.readouterr().out


def test_the_other_processes_wait_for_the_first(large, tmp_path, monkeypatch):
    path = first_lines("text.jsonl", 100, tmp_path)
    given = path, tmp_path / "s", tmp_path / "second"
    process = forked.context().Process(target=make_as_second, args=given)
    process.start()
    time.sleep(0.4)
    assert not (tmp_path / "second").exists() and not (tmp_path / "s").exists()
    rows = make(path, tmp_path / "s")
    process.join(60)
    assert process.exitcode == 0
    assert (tmp_path / "second").read_text() == str(int(rows.sum()))


# --- several processes ----------------------------------------------------------------


def test_several_processes_give_the_same_in_the_same_order(
    large, tmp_path, monkeypatch
):
    path = first_lines("text.jsonl", 300, tmp_path)
    wanted = make(path, tmp_path / "one").clone()
    monkeypatch.setattr(corpus, "_workers", lambda _: 2)
    assert torch.equal(make(path, tmp_path / "two"), wanted)
    with path.open("a") as file:
        file.write('{"text": "the zebra"}\n')
    with pytest.raises(DataError, match=rf"{path}:301: .* 'zebra'"):
        make(path, tmp_path / "two")


def test_what_is_under_way_is_bounded():
    taken = []
    items = ((n, n) for n in range(1000) if not taken.append(n))
    found = in_order(abs, items, workers=2)
    assert next(found) == (0, 0) and len(taken) < 10
    found.close()


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    code = (
        "import os, time\n"
        "from minipalm.data.workers import in_order\n"
        "if __name__ == '__main__':\n"
        "    items = ((n, 'x') for n in range(99))\n"
        "    for n, _ in in_order(os.getenv, items, 2):\n"
        "        from multiprocessing import active_children\n"
        "        print(*[child.pid for child in active_children()], flush=True)\n"
        "        time.sleep(60)\n"
    )
    script = tmp_path / "parent.py"
    script.write_text(code)
    parent = subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(DATA.parent)},
    )
    assert parent.stdout
    pids = parent.stdout.readline().split()
    assert pids
    parent.kill()
    parent.wait()
    for _ in range(100):
        if not any(is_running(int(pid)) for pid in pids):
            return
        time.sleep(0.1)
    raise AssertionError(f"still there: {pids}")


def is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


# --- fingerprints ---------------------------------------------------------------------


def test_the_fingerprint_of_large_files_reads_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "WHOLE", 1_000)
    monkeypatch.setattr(files, "SAMPLE", 10)
    path = tmp_path / "f"
    raw = os.urandom(20_000)
    path.write_bytes(raw)
    first = fingerprint(path)
    assert fingerprint(path) == first != hashlib.sha256(raw).hexdigest()
    cut = raw[:9_000] + raw[9_001:]
    for other in (raw[:-1] + b"?", b"?" + raw[1:], cut, raw + b"?"):
        path.write_bytes(other)
        assert fingerprint(path) != first
    path.write_bytes(raw[:600])
    assert fingerprint(path) == hashlib.sha256(raw[:600]).hexdigest()
    many = [path, tmp_path / "g"]  # each is small, together they are not
    many[1].write_bytes(raw[:900])
    before = fingerprint(many)
    many[1].write_bytes(raw[:899] + b"?")
    assert fingerprint(many) != before


# --- the loops ------------------------------------------------------------------------


def test_the_loops_learn_the_same_from_the_disk(large, tmp_path, monkeypatch):
    """The ids are of another type and place; every number of training is the same."""
    net = PaLMConfig(WORDS.vocab_size, dim=8, depth=1, heads=2, head_dim=4)
    optim = OptimConfig(steps=5, batch_size=4, lr=1e-2, micro_batch=3)
    tales = first_lines("text.jsonl", 100, tmp_path)
    labelled = first_lines("preferences.jsonl", 40, tmp_path)
    shown = first_lines("demonstrations.jsonl", 40, tmp_path)
    losses = []
    for limit in (1 << 40, 0):
        monkeypatch.setattr(datasets, "LARGE", limit)
        monkeypatch.setattr(lines, "BLOCK", 1 << 20)  # packed in one block
        folder = tmp_path / f"{limit}"
        stream = token_stream(WORDS, read_texts(tales), folder / "tokens")
        demos = encode_examples(read_demonstrations(shown), WORDS)
        rows = packed_rows(pack_examples, demos, WIDTH, folder / "rows")
        pairs = stored_pairs(read_preferences(labelled), WORDS, P, T, folder / "pairs")
        assert (folder / "pairs").exists() == (limit == 0)
        for name in ("lm", "sft", "reward"):
            run = Run(folder / name)
            model = PaLM(net, torch.Generator().manual_seed(1))
            if name == "lm":
                train_language_model(model, stream, WIDTH, optim, run, seed=2)
            elif name == "sft":
                train_sft(model, rows, optim, run, seed=2)
            else:
                reward = RewardModel(model, "mean", torch.Generator().manual_seed(1))
                train_reward_model(
                    reward, pairs, RewardConfig(optim, 1, 1), run, seed=2
                )
            losses.append([line["loss"] for line in run.metrics()])
    assert losses[:3] == losses[3:] and all(len(each) == 5 for each in losses)

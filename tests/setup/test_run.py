"""./course run: what is run, what is skipped, and how it stops."""

import argparse
import json
import os
import shutil
import signal
import threading
import time

import pytest

from minipalm.course import ROOT, run
from minipalm.course.inputs import STAGES, in_folder, stages_until
from minipalm.data.lock import is_held, lock, look
from minipalm.ends import OWN, End, read_ends, write_end
from minipalm.stopping import SIGNALS

# The real program with two stages of our own, and without the report.
DRIVER = """
import sys
from minipalm.course import inputs, run
run.STAGES = inputs.STAGES = ("one", "two")
run.report = lambda out: print("REPORT")
sys.exit(run.main())
"""
STAGE = """
import json, pathlib
folder = pathlib.Path(out) / STAGE
with (folder / "ran").open("a") as f: f.write("x")
(folder / "done.json").write_text(json.dumps(dict(scale=scale, seed=seed)))
"""
PARAMETERS = 'scale = "toy"\nseed = 0\nout = "unset"\ntext = "data/text.jsonl"'


@pytest.fixture
def pipeline(write_notebook, python, tmp_path):
    """pipeline(*options) -> a started run of stages one and two into tmp_path/out."""
    (tmp_path / "text.jsonl").write_text('{"text": "a"}\n')
    write_notebook("one", STAGE.replace("STAGE", "'one'"), parameters=PARAMETERS)
    write_notebook("two", STAGE.replace("STAGE", "'two'"))

    def begin(*options, **env):
        fixed = ("--out", tmp_path / "out", "--notebooks", tmp_path, "--data", tmp_path)
        return python("-c", DRIVER, *fixed, *options, **env)

    return begin


def finish(process):
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def runs(tmp_path):
    """How often each stage ran since its folder was made."""
    counts = {}
    for name in ("one", "two"):
        ran = tmp_path / "out" / name / "ran"
        counts[name] = len(ran.read_text()) if ran.exists() else 0
    return counts


def test_a_second_run_skips_what_is_complete(pipeline, tmp_path):
    code, out, _ = finish(pipeline())
    assert code == 0
    assert "REPORT" in out and "CPU-s" in out
    assert (tmp_path / "out" / "two" / "two.ipynb").exists()
    code, out, _ = finish(pipeline())
    assert code == 0
    assert "one: complete" in out and "two: complete" in out
    assert runs(tmp_path) == {"one": 1, "two": 1}


def names(tmp_path):
    """The names of the runs that made the stages."""
    made = [tmp_path / "out" / name / "stage.json" for name in ("one", "two")]
    return [json.loads(path.read_text())["run"] for path in made]


def test_a_changed_file_or_earlier_stage_is_made_again(pipeline, tmp_path):
    finish(pipeline())
    first = names(tmp_path)
    (tmp_path / "text.jsonl").write_text('{"text": "b"}\n')
    finish(pipeline())
    second = names(tmp_path)
    shutil.rmtree(tmp_path / "out" / "one")  # redone, hence two is redone
    finish(pipeline())
    third = names(tmp_path)
    for stage in (0, 1):
        assert len({first[stage], second[stage], third[stage]}) == 3
    assert runs(tmp_path) == {"one": 1, "two": 1}


def test_changed_code_costs_nothing_that_was_made(pipeline, write_notebook, tmp_path):
    finish(pipeline())
    before = names(tmp_path)
    write_notebook("two", "pass", STAGE.replace("STAGE", "'two'"))
    code, out, _ = finish(pipeline())
    assert code == 0 and "two: is of an older notebook" in out
    assert names(tmp_path) == before and runs(tmp_path)["two"] == 1


def test_a_stage_that_was_run_by_hand_is_taken_over(pipeline, tmp_path):
    finish(pipeline())
    (tmp_path / "out" / "one" / "stage.json").unlink()
    (tmp_path / "out" / "two" / "stage.json").unlink()
    assert finish(pipeline())[0] == 0
    assert runs(tmp_path) == {"one": 1, "two": 1}


def test_results_of_another_seed_are_not_overwritten(pipeline, tmp_path):
    finish(pipeline())
    code, _, err = finish(pipeline("--seed", 1))
    assert code == 2
    assert "was made with scale toy, seed 0, not toy, 1" in err and "--out" in err
    assert runs(tmp_path) == {"one": 1, "two": 1}


def test_a_failing_stage_is_named_and_kept_for_resuming(
    pipeline, write_notebook, tmp_path
):
    half = "pathlib.Path(out, 'two', 'half').write_text('x')\nassert 0, 'reason why'"
    write_notebook("two", "import pathlib", half)
    code, out, err = finish(pipeline())
    assert code == 1
    assert "AssertionError: reason why (partial notebook:" in err
    assert "two failed" in err and "run the same command again" in err
    assert "REPORT" not in out and "Traceback" not in err
    write_notebook("two", STAGE.replace("STAGE", "'two'"))  # mended
    code, out, _ = finish(pipeline())
    assert code == 0 and "one: complete" in out
    assert (tmp_path / "out" / "two" / "half").exists()


def test_a_stage_that_leaves_no_done_file_has_failed(pipeline, write_notebook):
    write_notebook("two", "pass")
    code, _, err = finish(pipeline())
    assert code == 1 and "two.ipynb ran to its end without done.json" in err


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_ctrl_c_stops_within_seconds_and_says_how_to_go_on(pipeline, write_notebook):
    wait = "import os, time\nprint('kernel', os.getpid(), flush=True)\ntime.sleep(60)"
    write_notebook("two", wait)
    process = pipeline()
    for line in process.stdout:
        if line.startswith("kernel"):
            break
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert code == 130 and time.monotonic() - begin < 15
    assert "two: stopped by SIGINT. To go on, run the same command again" in err
    assert "Traceback" not in err
    with pytest.raises(ProcessLookupError):
        os.kill(int(line.split()[1]), 0)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_two_runs_cannot_write_into_one_folder(pipeline, write_notebook):
    write_notebook("one", "import time\nprint('begun', flush=True)\ntime.sleep(60)")
    first = pipeline()
    assert "begun\n" in iter(first.stdout.readline, "")
    code, _, err = finish(pipeline())
    assert code == 2
    assert f"is being written by process {first.pid}" in err
    first.kill()  # the lock goes with its holders, also by kill -9
    first.wait()
    write_notebook("one", STAGE.replace("STAGE", "'one'"), parameters=PARAMETERS)
    for _ in range(50):  # the stage's process notices a moment later
        code, _, err = finish(pipeline())
        if code == 0:
            break
        time.sleep(0.2)
    assert code == 0, err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--scale", "huge"), "scale must be one of smoke, toy"),
        (
            ("--data", "/nowhere"),
            "one needs a file for text, and there is no /nowhere/text.jsonl",
        ),
        (("--notebooks", "/nowhere"), "one.ipynb: cannot read the notebook"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(
    pipeline, tmp_path, options, message
):
    code, _, err = finish(pipeline(*options))
    assert code == 2 and message in err
    assert len(err.splitlines()) <= 2
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no wait4")
def test_cpu_seconds_include_the_kernel_and_its_threads(
    write_notebook, tmp_path, capfd, monkeypatch
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    burn = "import os, time\nwhile time.process_time() < 3: pass"
    notebook = write_notebook("burn", burn, "print(os.environ['OMP_NUM_THREADS'])")
    values = {"scale": "toy", "seed": 0, "out": "x"}
    with (tmp_path / "held").open("w") as held:
        spent = run.execute(notebook, tmp_path / "o.ipynb", values, held.fileno())
    assert spent.status == 0
    assert 3 < spent.cpu < 10
    assert capfd.readouterr().out == "1\n"  # one thread at toy scale


def test_a_slip_in_a_file_is_said_before_anything_is_made_again(tmp_path, capsys):
    out, data = tmp_path / "out", tmp_path / "data"
    shutil.copytree(ROOT / "data", data)
    kept = out / "06_palm" / "done.json"
    kept.parent.mkdir(parents=True)
    kept.write_text('{"scale": "smoke", "seed": 0}')
    with (data / "text.jsonl").open("a") as file:
        file.write('{"text": 3}\n')
    code = run.main(["--scale", "smoke", "--out", str(out), "--data", str(data)])
    assert code == 2 and "text.jsonl:10001: field 'text'" in capsys.readouterr().err
    assert kept.is_file()


def test_a_run_can_end_at_a_stage_and_go_on_later(pipeline, tmp_path):
    code, out, _ = finish(pipeline("--until", "one"))
    assert code == 0 and "REPORT" not in out
    assert runs(tmp_path) == {"one": 1, "two": 0}
    code, out, _ = finish(pipeline("--until", "two"))
    assert code == 0 and "one: complete" in out and "REPORT" in out
    assert runs(tmp_path) == {"one": 1, "two": 1}


def test_lesson_15_is_a_stage_for_those_who_ask():
    assert stages_until(None) == STAGES == stages_until("12_evaluation")
    assert stages_until("15_offline") == (*STAGES, "15_offline")


def test_an_unknown_stage_to_end_at_is_refused(pipeline, tmp_path):
    code, _, err = finish(pipeline("--until", "three"))
    assert code == 2
    assert "--until must be one of one, two, 15_offline (got 'three')" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_signals_do_afterwards_what_they_did_before():
    """In a notebook the process goes on, and must be stoppable as ever."""
    before = [signal.getsignal(number) for number in SIGNALS]
    with run.signals_as_they_were():
        run.stop_on_signals()
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(number) for number in SIGNALS] == before


IN_A_KERNEL = """
import os, signal, threading
from minipalm.course import inputs, run
run.STAGES = inputs.STAGES = ("one", "two")
run.report = lambda out: print("REPORT")
main = threading.main_thread().ident
def begun():
    if os.path.exists({begun!r}):
        signal.pthread_kill(main, signal.SIGINT)  # as the button does
    else:
        threading.Timer(0.2, begun).start()
begun()
options = ["--out", {out!r}, "--notebooks", {here!r}, "--data", {here!r}]
print("status", run.main([*options, "--until", "one"]))
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_in_a_notebook_a_run_can_be_interrupted_and_the_kernel_lives(
    write_notebook, tmp_path
):
    import nbformat
    from nbclient import NotebookClient

    (tmp_path / "text.jsonl").write_text('{"text": "a"}\n')
    begun = tmp_path / "begun"
    wait = f"import pathlib, time\npathlib.Path({str(begun)!r}).touch()\ntime.sleep(60)"
    write_notebook("one", wait, parameters=PARAMETERS)
    write_notebook("two", "pass")
    places = {"begun": begun, "out": tmp_path / "out", "here": tmp_path}
    code = IN_A_KERNEL.format(**{name: str(path) for name, path in places.items()})
    cells = [nbformat.v4.new_code_cell(one) for one in (code, "print('alive')")]
    book = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(book, timeout=60, kernel_name="python3").execute()
    first, second = (
        "".join(one.text for one in cell.outputs if one.name == "stdout")
        for cell in book.cells
    )
    assert "status 130" in first and second == "alive\n"


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (["text.parquet"], "text.parquet"),
        (["text/a.jsonl", "text/b.jsonl"], "text"),
        (["text/a.parquet", "text/README.md"], "text"),
        (["text/README.md"], "text"),  # what is wrong with it is said by input_files
        ([], "text.jsonl"),
    ],
)
def test_a_folder_may_hold_one_file_or_many(tmp_path, files, found):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert in_folder(tmp_path, "data/text.jsonl") == tmp_path / found


def test_of_two_files_for_one_input_none_is_taken(tmp_path):
    for name in ("text.jsonl", "text.parquet"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match="has text.jsonl and text.parquet, which are"):
        in_folder(tmp_path, "data/text.jsonl")


def test_an_empty_folder_is_named(pipeline, tmp_path):
    (tmp_path / "text.jsonl").unlink()
    (tmp_path / "text").mkdir()
    code, _, err = finish(pipeline("--until", "one"))
    assert code == 2 and "text: expected .jsonl or .parquet files in this folder" in err


def test_several_files_are_one_input(pipeline, tmp_path):
    (tmp_path / "text.jsonl").unlink()
    (tmp_path / "text").mkdir()
    for name in ("a", "b"):
        (tmp_path / "text" / f"{name}.jsonl").write_text('{"text": "a"}\n')
    assert finish(pipeline("--until", "one"))[0] == 0
    (tmp_path / "text" / "b.jsonl").write_text('{"text": "b"}\n')
    code, out, _ = finish(pipeline("--until", "one"))
    assert code == 0 and "one: what it was made from has changed" in out
    (tmp_path / "text" / "b.jsonl").write_text('{"text": 3}\n')
    code, _, err = finish(pipeline("--until", "one"))
    assert code == 2 and "b.jsonl:1: field 'text'" in err


@pytest.mark.parametrize(("scale", "kept"), [("toy", True), ("small", False)])
def test_large_checkpoints_go_when_their_stage_is_complete(
    pipeline, write_notebook, tmp_path, scale, kept
):
    left = "(folder / 'policy' / 'step-000002').mkdir(parents=True)"
    stage = STAGE.replace("STAGE", "'one'")
    result = "(folder / 'policy' / 'x').mkdir()"
    write_notebook("one", stage, left, result, parameters=PARAMETERS)
    code, _, err = finish(pipeline("--until", "one", "--scale", scale))
    assert code == 0, err
    folder = tmp_path / "out" / "one" / "policy"
    assert (folder / "step-000002").exists() == kept and (folder / "x").exists()


@pytest.mark.parametrize(("scale", "kept"), [("toy", True), ("small", False)])
def test_a_failure_after_the_result_is_said_and_the_run_goes_on(
    pipeline, write_notebook, tmp_path, scale, kept
):
    left = "(folder / 'policy' / 'step-000002').mkdir(parents=True)"
    stage = STAGE.replace("STAGE", "'one'")
    write_notebook("one", stage, left, "assert 0, 'why'", parameters=PARAMETERS)
    code, _, err = finish(pipeline("--scale", scale))
    assert code == 1 and "AssertionError: why" in err
    assert "one failed after its result was written, as said above" in err
    assert "checkpoint" not in err
    folder = tmp_path / "out" / "one"
    assert (folder / "policy" / "step-000002").exists() == kept
    code, out, err = finish(pipeline("--scale", scale))
    assert code == 0, err
    why = "its notebook may not have run to its end"
    complete = f"one: complete, but {why}: see {folder}/one.ipynb\n"
    assert complete in out and "two: into" in out
    assert runs(tmp_path) == {"one": 1, "two": 1}
    code, out, _ = finish(pipeline("--scale", scale))
    assert complete in out and "two: complete\n" in out


def test_how_an_earlier_try_ended_is_not_told_of_this_one(
    write_notebook, tmp_path, monkeypatch, capsys
):
    """As where a port is taken: the stage ends before it can leave a note."""
    write_notebook("one", "pass")
    output = tmp_path / "out" / "one" / "one.ipynb"
    output.parent.mkdir(parents=True)
    for name in ("one.ipynb", "one.rank-3.ipynb"):
        write_end(output.with_name(name), End(None, OWN, "cell [7]: long ago", 1.0))
    asked = {"scale": "toy", "seed": 0, "out": tmp_path / "out", "renew": True}
    args = argparse.Namespace(**asked, notebooks=tmp_path)
    monkeypatch.setattr(run, "execute", lambda *_: run.Spent(1, 0.0, 0.0))
    assert run.run_stages(args, {"one": {}}, 0) == 1
    err = capsys.readouterr().err
    assert "one failed: as said above. Mend it" in err and "long ago" not in err
    assert not read_ends(output.parent)


def test_checkpoints_of_a_stage_that_is_found_complete_go_too(pipeline, tmp_path):
    """As after a kill between the result and their removal."""
    assert finish(pipeline("--scale", "small"))[0] == 0
    left = tmp_path / "out" / "one" / "policy" / "step-000002"
    left.mkdir(parents=True)
    assert finish(pipeline("--scale", "small"))[0] == 0
    assert not left.exists() and left.parent.exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no lock that is shared")
def test_who_only_looks_at_a_lock_is_in_nobody_s_way(tmp_path):
    with lock(tmp_path):
        pass
    with (tmp_path / ".lock").open("r+") as file:
        look(file)
        assert not is_held(tmp_path)
        threading.Timer(0.1, file.close).start()
        with lock(tmp_path):  # waits for those who look
            assert is_held(tmp_path)
            with pytest.raises(RuntimeError, match="is being written by process"):
                lock(tmp_path).__enter__()
    over = threading.Event()

    def watch():
        while not over.is_set():
            is_held(tmp_path)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for _ in range(200):
            with lock(tmp_path):
                pass
    finally:
        over.set()
        watcher.join()

"""Which rank a stage of several ranks says to have failed first, and where."""

import json
import os
import signal
import socket
import sys
import time

import psutil
import pytest

from minipalm.course import supervise
from minipalm.ends import (
    LOST,
    OWN,
    STOPPED,
    End,
    first_cause,
    forget_ends,
    last_cell,
    misses_another,
    read_ends,
    write_end,
)

pytestmark = pytest.mark.skipif(os.name == "nt", reason="torchrun is not for Windows")

TOGETHER = """
import os, torch, torch.distributed as dist
from datetime import timedelta
from time import sleep
rank = int(os.environ["RANK"])
dist.init_process_group("gloo", timeout=timedelta(seconds=60))
def meet():
    dist.all_reduce(torch.zeros(1))
meet()
"""
SAY_WHO = """
with open(f"{out}-{rank}", "w") as file:
    print(os.getpid(), file=file)
"""
PARAMETERS = 'out = "unset"'
GLOO = "[/__w/gloo/transport/tcp/pair.cc:537] Connection closed by peer [127.0.0.1]:4"


@pytest.fixture
def stage(write_notebook, python, tmp_path):
    """stage(cell) -> two ranks that run it once they have met, or one of them."""

    def begin(cell, where=("--standalone", "--nproc-per-node=2")):
        cells = [TOGETHER, SAY_WHO + cell]
        path = write_notebook("two", *cells, parameters=PARAMETERS)
        run = ["-m", "minipalm.spmd", "-p", "out", tmp_path / "pid", path]
        output = tmp_path / "run" / "two.ipynb"
        return python("-m", "minipalm.course.supervise", *where, *run, output)

    return begin


@pytest.fixture
def kernels(tmp_path):
    """kernels() -> those of both ranks, once they are in that cell."""

    def find():
        found = []
        for rank in range(2):
            pid = tmp_path / f"pid-{rank}"
            for _ in range(1200):
                if pid.exists() and pid.read_text().endswith("\n"):
                    break
                time.sleep(0.05)
            found.append(psutil.Process(int(pid.read_text())))
        return found

    return find


def finish(process):
    _, err = process.communicate(timeout=60)
    assert process.returncode > 0 and "Traceback" not in err
    return err


@pytest.mark.parametrize("victim", [0, 1])
def test_the_rank_whose_kernel_was_killed_is_named_and_not_who_missed_it(
    stage, kernels, victim
):
    process = stage(f"sleep(60) if rank == {victim} else meet()")
    kernels()[victim].kill()
    err = finish(process)
    why = f"rank {victim}: cell [4]: the kernel died; all ranks were stopped"
    assert err.splitlines()[-1] == why, err
    other = f"[rank {1 - victim}] cell [4]: "
    assert f"{other}another rank is gone (Runtime" in err or f"{other}stopped by" in err


def test_a_rank_that_is_killed_with_its_kernel_is_named(stage, kernels):
    process = stage("sleep(60) if rank else meet()")
    kernels()[1].parent().kill()
    why = "rank 1: ended by SIGKILL; all ranks were stopped"
    assert finish(process).splitlines()[-1] == why


def test_an_error_is_the_cause_and_not_the_connection_that_closed(stage, tmp_path):
    error = "raise ValueError('too\\nlong')"
    process = stage(f"if rank: {error}\nmeet()")
    why = "rank 1: cell [4]: ValueError: too long; all ranks were stopped"
    assert finish(process).splitlines()[-1] == why
    process = stage("print('well')")
    assert process.wait(60) == 0 and not read_ends(tmp_path / "run")


def test_a_rank_that_is_asked_to_stop_is_named(stage, kernels):
    process = stage("sleep(60) if rank else meet()")
    kernels()[1].parent().send_signal(signal.SIGTERM)
    last = finish(process).splitlines()[-1]
    assert last == "rank 1: cell [4]: stopped by SIGTERM; all ranks were stopped"


# --- notes ----------------------------------------------------------------------------


def test_who_failed_by_itself_comes_before_who_missed_it_or_was_stopped():
    ends = [
        End(0, LOST, "lost", 1.0),
        End(1, STOPPED, "stopped", 0.0),
        End(3, OWN, "second", 3.0),
        End(2, OWN, "first", 2.0),
    ]
    assert first_cause(ends) == ends[3]
    assert first_cause(ends[:2]) == ends[1]
    assert first_cause([]) is None
    assert str(ends[3]) == "rank 2: first"
    assert str(End(None, OWN, "alone", 0.0)) == "alone"


def test_notes_are_read_back_and_broken_ones_left_out(tmp_path):
    end = End(1, OWN, "cell [3]: ValueError: é", 2.0)
    write_end(tmp_path / "two.rank-1.ipynb", end)
    (tmp_path / "two.ended.json").write_text('{"rank"')
    assert read_ends(tmp_path) == [end]
    forget_ends(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "message", "missed"),
    [
        ("RuntimeError", GLOO, True),
        ("RuntimeError", "[x/pair.cc:1] writev [::1]:1: Broken pipe", True),
        ("DistBackendError", "NCCL error … ncclRemoteError: a call failed", True),
        ("DistNetworkError", "failed to recv, got 0 bytes", True),
        ("RuntimeError", "sizes of tensors must match", False),
        ("ConnectionResetError", "Connection reset by peer", False),
    ],
)
def test_an_error_of_a_collective_tells_of_another_rank(name, message, missed):
    assert misses_another(name, message) is missed


def test_a_partial_notebook_tells_where_it_ends(tmp_path):
    def cell(number, begun="now", *outputs):
        papermill = {"papermill": {"start_time": begun}}
        code = {"cell_type": "code", "execution_count": number, "metadata": papermill}
        return code | {"outputs": list(outputs)}

    error = {"output_type": "error", "ename": "ValueError", "evalue": "long"}
    path = tmp_path / "two.ipynb"
    for cells, found in [
        ([cell(1), cell(2, "now", error), cell(None, None)], (2, "ValueError")),
        ([cell(1, "now", error), cell(2), cell(None, None)], (2, None)),
        ([cell(1), cell(2), cell(None), cell(None, None)], (3, None)),
        ([cell(None, None)], (None, None)),
    ]:
        path.write_text(json.dumps({"cells": cells}))
        where, raised = last_cell(path)
        assert where == (f"cell [{found[0]}]: " if found[0] else "")
        assert (raised and raised[0]) == found[1]
    assert last_cell(tmp_path / "none.ipynb") == ("", None)


# --- several machines -----------------------------------------------------------------


def test_both_machines_name_the_rank_that_failed_first(stage, kernels):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meet = ["--rdzv-backend=static", f"--rdzv-endpoint=127.0.0.1:{port}"]
    where = ["--nproc-per-node=1", "--nnodes=2", *meet]
    wait = "sleep(60) if rank else meet()"
    machines = [stage(wait, [*where, f"--node-rank={n}"]) for n in range(2)]
    kernels()[1].kill()
    why = "rank 1: cell [4]: the kernel died; all ranks were stopped"
    assert [finish(each).splitlines()[-1] for each in machines] == [why, why]


def test_the_notes_of_other_machines_are_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(supervise, "NOTES", 0.3)
    write_end(tmp_path / "two.ipynb", End(0, LOST, "lost", 1.0))
    assert supervise.cause(tmp_path, "machine 1 is lost", 2) == "machine 1 is lost"
    write_end(tmp_path / "two.rank-1.ipynb", End(1, OWN, "own", 2.0))
    assert supervise.cause(tmp_path, "rank 0: lost", 2) == "rank 1: own"


@pytest.mark.skipif(sys.platform == "darwin", reason="one address to wait at")
def test_a_machine_that_waits_says_for_whom_and_how_long(python, tmp_path):
    meet = ["--nnodes=2", "--node-rank=1", "--rdzv-endpoint=127.0.0.1:9"]
    here = "from minipalm.course import supervise; supervise.PATIENCE = 0.1; "
    process = python(
        "-c", here + "supervise.main()", *meet, "-m", "none", tmp_path / "two.ipynb"
    )
    line = process.stdout.readline()
    expected = "waiting for machine 0: all meet at 127.0.0.1:9, within 10 min\n"
    assert line == expected

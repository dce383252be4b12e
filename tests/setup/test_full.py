"""./course full: the stages on many ranks, and every way in which they can end."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace

import nbformat
import psutil
import pytest
import torch
from safetensors.torch import load_file

from minipalm.config import get_preset
from minipalm.course import ROOT, full
from minipalm.course.full import check_gpus, check_ranks
from minipalm.course.nodes import Nodes, find_nodes
from minipalm.course.supervise import how_it_ended
from minipalm.data.tokenizer import train_tokenizer
from minipalm.ends import first_cause, read_ends
from minipalm.model.palm import PaLM
from minipalm.rlhf.reward import RewardModel
from minipalm.train.progress import read_progress
from minipalm.train.stage import finish_stage

pytestmark = pytest.mark.skipif(os.name == "nt", reason="torchrun is not for Windows")

# The real program with stages of our own, and without the report.
DRIVER = """
import sys
from minipalm.course import full, inputs, run
run.STAGES = inputs.STAGES = STAGES
run.report = lambda out: print("REPORT")
sys.exit(full.main())
"""
PARAMETERS = 'scale = "toy"\nseed = 0\nout = "unset"\ntext = "data/text.jsonl"'
ALONE = """
import os, pathlib, time
rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
folder = pathlib.Path(out) / STAGE
"""
TOGETHER = """
import torch, torch.distributed as dist
from datetime import timedelta
dist.init_process_group("gloo", timeout=timedelta(seconds=60))
def total(x):
    x = torch.tensor([float(x)])
    dist.all_reduce(x)
    return x.item()
print("total", total(rank + 1), "of", world, flush=True)
"""
FINISH = """
if rank == 0:
    with (folder / "ran").open("a") as f: f.write("x")
    (folder / "done.json").write_text(f'{{"scale": "{scale}", "seed": {seed}}}')
"""


@pytest.fixture
def pipeline(write_notebook, python, tmp_path):
    """pipeline(*options) -> a started run of its stages into tmp_path/out.

    pipeline.stage(name, cell, ...) adds a stage, or writes it anew: cells that stand
    between ALONE, which tells the rank, and FINISH.
    """
    (tmp_path / "text.jsonl").write_text('{"text": "a"}\n')

    stages = []

    def stage(name, *cells):
        stages.extend([name] if name not in stages else [])
        alone = ALONE.replace("STAGE", repr(name))
        return write_notebook(name, alone, *cells, FINISH, parameters=PARAMETERS)

    def command(*options):
        fixed = ("--out", tmp_path / "out", "--notebooks", tmp_path, "--data", tmp_path)
        driver = DRIVER.replace("= STAGES", f"= {tuple(stages)}")
        return [sys.executable, "-c", driver, "--scale", "smoke", *fixed, *options]

    def begin(*options):
        return python(*command(*options)[1:])

    begin.stage, begin.command = stage, command
    begin.folder = tmp_path / "out" / "two"
    return begin


def finish(process, seconds=90):
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def texts(path):
    """All that the cells of a notebook printed or raised."""
    outputs = [
        output
        for cell in nbformat.read(path, 4).cells
        if cell.cell_type == "code"
        for output in cell.outputs
    ]
    return "".join(o.get("text", o.get("evalue", "")) for o in outputs)


def stuck(do):
    """A cell that says who runs it, and then computes or waits."""
    return f"(folder / f'pids-{{rank}}').write_text(f'{{os.getpid()}}')\n{do}"


BUSY = "while True: pass"
# No Python runs meanwhile, in any thread: as in a long call of a C library.
DEAF = "import ctypes; ctypes.PyDLL(None).sleep(600)"


def kernels(folder, ranks=2):
    """The kernels of a stage's ranks, once all of them are stuck in their cell."""
    found = []
    for rank in range(ranks):
        path = folder / f"pids-{rank}"
        for _ in range(600):
            if path.exists() and path.read_text():
                break
            time.sleep(0.1)
        found.append(psutil.Process(int(path.read_text())))
    return found


def all_gone(processes, seconds=15):
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return not alive


# --- what runs ------------------------------------------------------------------------


def test_every_rank_runs_every_stage_and_a_second_run_skips_them(pipeline, tmp_path):
    pipeline.stage("one", "print('rank', rank)")
    pipeline.stage("two", TOGETHER)
    code, out, err = finish(pipeline("--cpus", 2))
    assert code == 0, err
    assert out.count("rank 0\n") == 1 and "rank 1" not in out  # rank 0's alone
    assert "total 3.0 of 2" in out and "REPORT" in out and err == ""
    for rank, suffix in enumerate(("", ".rank-1")):
        one, two = (
            tmp_path / "out" / name / f"{name}{suffix}.ipynb" for name in ("one", "two")
        )
        assert texts(one) == f"rank {rank}\n" and texts(two) == "total 3.0 of 2\n"
    code, out, _ = finish(pipeline("--cpus", 2))
    assert code == 0 and "one: complete" in out and "two: complete" in out
    assert (pipeline.folder / "ran").read_text() == "x"


def test_one_process_needs_no_torchrun_and_takes_over_what_two_began(pipeline):
    kept = "(folder / f'half-{rank}').touch()"
    pipeline.stage("two", kept, "assert world == 1, 'not with two'")
    code, _, err = finish(pipeline("--cpus", 2))
    assert code == 1 and "AssertionError: not with two" in err
    code, _, err = finish(pipeline())
    assert code == 0, err
    assert list(pipeline.folder.glob("half-*"))


def test_stages_are_not_made_again_unasked(pipeline, tmp_path):
    pipeline.stage("one")
    pipeline.stage("two")
    assert finish(pipeline())[0] == 0
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*.json")}
    other = tmp_path / "other"
    other.mkdir()
    (other / "text.jsonl").write_text('{"text": "b"}\n')
    code, out, err = finish(pipeline("--data", other))
    assert code == 2 and "one:" not in out
    mine = [re.escape(str(folder / "text.jsonl")) for folder in (tmp_path, other)]
    hexes = r" \(fingerprint [0-9a-f]{12}\)"
    for stage, more in (("one", ""), ("two", "; would follow another one")):
        line = rf"  {stage}: text was {mine[0]}{hexes}, now {mine[1]}{hexes}{more}\n"
        assert re.search(line, err), err
    assert "Give the same again, or another --out. With --renew these" in err
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*.json")} == before

    assert finish(pipeline())[0] == 0  # the same files again
    code, out, err = finish(pipeline("--data", other, "--renew"))
    assert code == 0, err
    assert "one: removed, to be made again" in out and "two: into" in out
    assert finish(pipeline("--data", other))[0] == 0
    assert (pipeline.folder / "ran").read_text() == "x"
    shutil.rmtree(tmp_path / "out" / "one")
    code, _, err = finish(pipeline("--data", other))
    assert code == 2 and "  two: would follow another one\n" in err
    assert (pipeline.folder / "ran").exists()


def test_no_machine_waits_where_stages_are_not_made_again(pipeline, machines, tmp_path):
    pipeline.stage("two")
    assert finish(pipeline())[0] == 0
    (tmp_path / "text.jsonl").write_text('{"text": "b"}\n')
    for process in machines():
        code, _, err = finish(process, 60)
        assert code == 2 and "  two: text was " in err


def test_files_that_change_while_an_earlier_stage_runs_cost_nothing(pipeline, tmp_path):
    """What was looked at before the first stage is looked at again."""
    pipeline.stage("one")
    pipeline.stage("two", "assert 0")
    assert finish(pipeline())[0] == 1
    (pipeline.folder / "half").touch()
    (tmp_path / "out" / "one" / "done.json").unlink()
    change = f"pathlib.Path({str(tmp_path / 'text.jsonl')!r}).write_text('{{}}')"
    pipeline.stage("one", change)
    code, _, err = finish(pipeline())
    assert code == 2 and "  two: text was " in err and "one:" not in err
    assert (pipeline.folder / "half").exists()


# --- how it ends ----------------------------------------------------------------------


def test_a_failing_cell_on_one_rank_ends_all_and_is_shown(pipeline):
    cell = "if rank == 1: raise ValueError('the reason')\ntotal(0)"
    pipeline.stage("two", TOGETHER, "print('kept')", cell)
    process = pipeline("--cpus", 2)
    while "total" not in process.stdout.readline():
        assert process.poll() is None
    begin = time.monotonic()
    code, _, err = finish(process)
    assert time.monotonic() - begin < 20
    partial = pipeline.folder / "two.rank-1.ipynb"
    assert code == 1
    assert f"ValueError: the reason (partial notebook: {partial})" in err
    assert "two failed" in err and "run the same command again: it resumes" in err
    assert "Traceback" not in err and len(err.splitlines()) < 12
    assert "kept\nthe reason" in texts(partial)
    assert "kept" in texts(pipeline.folder / "two.ipynb")
    assert not (pipeline.folder / "done.json").exists()


@pytest.mark.parametrize("victim", ["kernel", "rank"])
def test_kill_9_of_a_kernel_or_rank_ends_all(pipeline, victim):
    if victim == "kernel":  # rank 0 waits for it
        wait = "time.sleep(600) if rank else total(0)"
        pipeline.stage("two", TOGETHER, stuck(wait))
    else:  # its kernel must not live on
        pipeline.stage("two", "print('kept')", stuck(DEAF))
    process = pipeline("--cpus", 2)
    others = kernels(pipeline.folder)
    ranks = [kernel.parent() for kernel in others]
    begin = time.monotonic()
    (others if victim == "kernel" else ranks)[1].kill()
    code, _, err = finish(process)
    assert code != 0 and time.monotonic() - begin < 20
    why = "cell [5]: the kernel died" if victim == "kernel" else "ended by SIGKILL"
    *_, last, advice = err.splitlines()
    assert last == f"rank 1: {why}; all ranks were stopped", err
    assert "two failed" in advice and "Traceback" not in err
    assert all_gone([*others, *ranks])
    assert texts(pipeline.folder / "two.ipynb")


def test_ctrl_c_ends_all_and_says_how_to_go_on(pipeline):
    pipeline.stage("two", "print('kept')", stuck(BUSY))
    process = pipeline("--cpus", 2)
    others = kernels(pipeline.folder)
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert code == 128 + signal.SIGINT and time.monotonic() - begin < 20
    assert "two: stopped by SIGINT. To go on, run the same command again" in err
    out = pipeline.folder.parent
    assert str(first_cause(read_ends(pipeline.folder))) == "stopped by SIGINT"
    assert re.fullmatch(
        rf"./course full .* --out {out} .* --cpus 2", read_progress(out).command
    )
    for name in ("two.ipynb", "two.rank-1.ipynb"):
        assert f"partial notebook: {pipeline.folder / name}" in err
        assert texts(pipeline.folder / name) == "kept\n"
    assert "Traceback" not in err
    assert all_gone(others)


def test_kill_9_of_the_command_itself_leaves_nothing_behind(pipeline):
    pipeline.stage("two", stuck(DEAF))
    process = pipeline("--cpus", 2)
    others = kernels(pipeline.folder)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 5  # torchrun, two ranks, two kernels
    process.kill()
    assert all_gone([*others, *family], 20)
    pipeline.stage("two")
    code, _, err = finish(pipeline())
    assert code == 0, err  # nor a lock


# --- several machines -----------------------------------------------------------------


@pytest.fixture
def machines(pipeline):
    """machines() -> two runs that meet as those on two machines do, a rank each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meet = ("--nnodes", 2, "--rdzv-endpoint", f"127.0.0.1:{port}")

    def begin():
        return [pipeline(*meet, "--cpus", 1, "--node-rank", n) for n in range(2)]

    begin.port = port
    return begin


SRUN = """#!/bin/bash
# Starts a command on two machines, which are this one, as Slurm's srun does.
shift  # --kill-on-bad-exit=1
SLURM_NODEID=1 "$@" &
SLURM_NODEID=0 "$@" && wait $!
"""


def test_slurm_s_script_runs_on_all_its_machines(pipeline, machines, tmp_path):
    pipeline.stage("two", "print('met', rank)")
    command = pipeline.command("--cpus", 1)
    tools = tmp_path / "bin"
    tools.mkdir()
    course = shlex.join(map(str, command[:3]))  # python -c DRIVER
    for name, text in {
        "srun": SRUN,
        "scontrol": "#!/bin/sh\necho 127.0.0.1\nsleep 0.1\necho another\n",
        "python": f'#!/bin/sh\nshift 2\nexec {course} "$@"\n',
    }.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    done = subprocess.run(
        ["bash", ROOT / "scripts" / "slurm.sh", *map(str, command[3:])],
        env=os.environ
        | {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "PYTHON": str(tools / "python"),
            "SLURM_SUBMIT_DIR": str(ROOT),
            "SLURM_JOB_NODELIST": "gpu[1-2]",
            "SLURM_JOB_ID": str(machines.port % 10_000),
            "SLURM_NNODES": "2",
        },
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    for n in range(2):
        assert texts(pipeline.folder / f"two{n * '.rank-1'}.ipynb") == f"met {n}\n"


def test_two_machines_meet_at_every_stage_and_resume(pipeline, machines):
    pipeline.stage("one", TOGETHER)
    pipeline.stage("two", "assert rank == 0, 'the reason'\ntime.sleep(600)")
    first, second = (finish(process) for process in machines())
    assert "total 3.0 of 2" in first[1], first[2] + second[2]
    assert first[0] == second[0] == 1
    assert "[rank 1] cell [4]: AssertionError: the reason" in second[2]
    why = "rank 1: cell [4]: AssertionError: the reason; all ranks were stopped"
    assert why in first[2] and why in second[2]
    assert "run the same command again" in first[2]
    assert "run the same commands again" in second[2]
    pipeline.stage("two", "print('met', rank)")
    first, second = (finish(process) for process in machines())
    assert first[0] == second[0] == 0, first[2] + second[2]
    assert "one: complete" in first[1] and "total" not in first[1]
    assert (pipeline.folder / "ran").read_text() == "x"
    for n in range(2):
        path = pipeline.folder / f"two{n * '.rank-1'}.ipynb"
        assert texts(path) == f"met {n}\n"


def suspend(machine):
    """Stop all processes of a machine: none ends, no connection closes.

    Returns them. Parents come first, and we look again until there is no other: none
    can be begun between looking and stopping, and go on beating.
    """
    lost = []
    while new := {machine, *machine.children(recursive=True)} - {*lost}:
        for process in sorted(new, key=psutil.Process.create_time):
            process.suspend()
            lost.append(process)
    for _ in range(100):
        if all(process.status() == psutil.STATUS_STOPPED for process in lost):
            return lost
        time.sleep(0.1)
    raise AssertionError(states(lost))


def states(processes):
    """What each of them is, and whether it runs: for whoever reads a failure."""
    return [(p.pid, p.status(), " ".join(p.cmdline())[:200]) for p in processes]


@pytest.mark.parametrize("dark", [0, 1])
def test_a_machine_that_goes_dark_ends_the_others(pipeline, machines, dark):
    pipeline.stage("two", stuck(DEAF))
    pair = machines()
    other, gone = pair[1 - dark], psutil.Process(pair[dark].pid)
    here = kernels(pipeline.folder)[1 - dark]
    lost = suspend(gone)
    assert sum("minipalm.course.supervise" in p.cmdline() for p in lost) == 1
    begin = time.monotonic()
    try:
        code, _, err = finish(other)
    finally:
        print(*states(lost), "the others:", sep="\n")
        if other.poll() is None:
            living = psutil.Process(other.pid).children(recursive=True)
            print(*states(living), sep="\n")
        still = {process.status() for process in lost}
        for process in lost:
            process.kill()
    assert still == {psutil.STATUS_STOPPED}
    assert code == 1 and time.monotonic() - begin < 45
    assert f"machine {dark} is lost; all ranks were stopped" in err
    assert all_gone([here])


# --- the real thing -------------------------------------------------------------------


@pytest.fixture(scope="module")
def before_ppo(tmp_path_factory):
    """A run in which the stages before 11_ppo are complete: with networks of chance."""
    out = tmp_path_factory.mktemp("runs")
    preset = get_preset("smoke")
    words = [
        " ".join(json.loads(line).values())
        for name in ("text", "demonstrations")
        for line in (ROOT / "data" / f"{name}.jsonl").read_text("utf-8").splitlines()
    ]
    tokenizer = train_tokenizer(words, "word", preset.vocab_size)
    (out / "06_palm").mkdir()
    tokenizer.save(out / "06_palm" / "tokenizer.json")
    generator = torch.Generator().manual_seed(0)
    size = {"vocab_size": tokenizer.vocab_size}
    policy = PaLM(replace(preset.policy, **size), generator)
    trunk = PaLM(replace(preset.reward_trunk, **size), generator)
    model = RewardModel(trunk, preset.reward.pooling)
    for stage, modules in {
        "06_palm": {},
        "07_sft": {"policy": policy},
        "08_reward_model": {"reward_model": model},
    }.items():
        finish_stage(out, stage, modules, tokenizer, scale="smoke", seed=0)
    return out


ONLY_PPO = """
import sys
from minipalm.course import full, inputs, run
run.STAGES = inputs.STAGES = ("11_ppo",)
run.report = print
sys.exit(full.main())
"""
TIMING = ("seconds", "checkpoint_seconds", "tokens_per_second", "memory", "ranks")


def what_ppo_made(out):
    """Its weights, and its metrics but for the time that they took."""
    metrics = [
        {k: v for k, v in json.loads(line).items() if not k.startswith(TIMING)}
        for path in sorted((out / "11_ppo").glob("beta-*/metrics.jsonl"))
        for line in path.read_text().splitlines()
    ]
    weights = {
        (path.name, name): tensor.numpy().tobytes()
        for path in (out / "11_ppo" / "result").glob("*.safetensors")  # one a rank
        for name, tensor in load_file(path).items()
    }
    return weights, metrics


@pytest.mark.parametrize("ranks", [1, 2])
def test_ppo_that_was_killed_gives_bit_for_bit_what_it_would_have_given(
    before_ppo, python, tmp_path, ranks
):
    def begin(name):
        if not (tmp_path / name).exists():
            shutil.copytree(before_ppo, tmp_path / name)
        options = ("--scale", "smoke", "--cpus", ranks, "--out", tmp_path / name)
        return python("-c", ONLY_PPO, *options)

    code, _, err = finish(begin("whole"), 180)
    assert code == 0, err
    process, killed = begin("killed"), tmp_path / "killed" / "11_ppo"
    while not (killed / "beta-0.15" / "step-000001").exists():
        assert process.poll() is None
        time.sleep(0.01)
    family = psutil.Process(process.pid).children(recursive=True)
    kernels = [one for one in family if "--kernel" in one.cmdline()]
    assert len(kernels) == ranks
    kernels[-1].kill()
    code, _, err = finish(process)
    assert code != 0 and "it resumes at the last checkpoint" in err
    assert not (killed / "done.json").exists()
    code, _, err = finish(begin("killed"), 180)
    assert code == 0, err
    weights, metrics = what_ppo_made(tmp_path / "killed")
    assert (weights, metrics) == what_ppo_made(tmp_path / "whole")
    assert weights and len(metrics) == 4 and metrics[0]["kl_coef"] == 0


# --- what is asked for ----------------------------------------------------------------


def options(**given):
    from argparse import Namespace

    names = {"gpus": "all", "cpus": None, "nnodes": 1, "node_rank": None}
    names |= {"rdzv_endpoint": None, "rdzv_id": None, "torchrun": ""}
    return Namespace(**names | given)


@pytest.mark.parametrize(
    ("given", "found", "ranks"),
    [({}, 8, 8), ({}, 0, 1), ({"gpus": "2"}, 8, 2), ({"cpus": 3}, 0, 3)],
)
def test_a_rank_a_gpu(given, found, ranks):
    nodes = find_nodes(options(**given), found, {})
    assert nodes == Nodes(ranks)
    assert bool(nodes.launcher(0)) == (ranks > 1)


def test_slurm_says_which_machine_this_is():
    env = {"SLURM_NODEID": "1", "SLURM_JOB_ID": "77"}
    nodes = find_nodes(options(nnodes=4, rdzv_endpoint="localhost"), 8, env)
    assert (nodes.ranks, nodes.count, nodes.number) == (8, 4, 1)
    assert nodes.launcher(2)[-2:] == [
        "--rdzv-endpoint=localhost:29404",
        "--rdzv-id=minipalm-77-2",
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gpus": "2"}, "--gpus 2: this machine has 1"),
        ({"gpus": "few"}, "--gpus must be all, or a number"),
        ({"gpus": "2", "cpus": 2}, "--gpus 2 and --cpus 2: give one of the two"),
        ({"cpus": 0}, "--cpus must be 1 or more"),
        ({"nnodes": 2}, "--node-rank must be this machine's number, 0 to 1"),
        ({"nnodes": 2, "node_rank": 2}, "--node-rank must be this machine's number"),
        ({"nnodes": 2, "node_rank": 1}, "--rdzv-endpoint is missing"),
        (
            {"nnodes": 2, "node_rank": 1, "rdzv_endpoint": "none.invalid:1"},
            "--rdzv-endpoint none.invalid: this machine knows none of that name",
        ),
    ],
)
def test_what_cannot_be_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        find_nodes(options(**given), 1, {})


@pytest.mark.parametrize(
    ("scale", "ranks", "message"),
    [
        ("full-lora", 2, "adapters are for one GPU, and not 2: add --gpus 1"),
        ("full", 3, "pretrain.batch_size is 256, which 3 ranks cannot share"),
        ("smoke", 16, "sft.batch_size is 24, which 16 ranks"),
    ],
)
def test_ranks_that_cannot_share_the_work_are_refused(scale, ranks, message):
    with pytest.raises(ValueError, match=message):
        check_ranks(get_preset(scale), ranks)
    check_ranks(get_preset(scale), 1)
    check_ranks(get_preset("full"), 8)


def test_billions_of_weights_do_not_begin_on_a_cpu_unasked():
    for scale in ("full", "full-lora:3"):
        with pytest.raises(ValueError, match="finds no GPU"):
            check_gpus(get_preset(scale), [], None)
        check_gpus(get_preset(scale), ["NVIDIA H200"], None)
        check_gpus(get_preset(scale), [], 2)
    check_gpus(get_preset("small"), [], None)


def test_a_folder_that_cannot_be_is_said_in_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert full.main(["--scale", "smoke", "--out", str(tmp_path / "file")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(tmp_path / "file") in said


@pytest.mark.parametrize("method", ["rloo", "grpo"])
def test_minibatches_of_other_methods_are_shared_too(method):
    preset = get_preset("full")
    config = replace(getattr(preset.methods, method), minibatch_size=6)
    methods = replace(preset.methods, **{method: config})
    message = f"methods.{method}.minibatch_size is 6, which 4 ranks"
    with pytest.raises(ValueError, match=message):
        check_ranks(replace(preset, methods=methods), 4)


def test_a_wrong_word_is_said_in_one_line_before_anything_runs(pipeline, tmp_path):
    code, _, err = finish(pipeline("--gpus", 2))
    assert code == 2 and "--gpus 2: this machine has 0" in err
    assert len(err.splitlines()) == 1 and not (tmp_path / "out").exists()


def test_an_ending_in_words():
    assert how_it_ended(3) == "with exit status 3"
    assert how_it_ended(-9) == "by SIGKILL"

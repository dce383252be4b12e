"""minipalm.spmd: one notebook as a batch job, and every way in which it can end."""

import json
import os
import signal
import sys
import time

import nbformat
import psutil
import pytest

from minipalm.spmd import known_parameters, parse_parameters

SPMD = ("-m", "minipalm.spmd")


def finish(process, seconds=60):
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def texts(path):
    """What the cells of a notebook printed, by cell, without the injected one."""
    cells = [
        cell
        for cell in nbformat.read(path, 4).cells
        if cell.cell_type == "code"
        and "injected-parameters" not in cell.metadata.get("tags", [])
    ]
    return [
        "".join(o.get("text", o.get("evalue", "")) for o in c.outputs) for c in cells
    ]


def test_cells_run_with_the_given_parameters_and_are_saved(
    write_notebook, python, tmp_path
):
    notebook = write_notebook(
        "ok", "print(scale, seed + 1)", ("print('teaching')", "classroom")
    )
    output = tmp_path / "new folder {1}" / "ok.ipynb"
    code, out, _ = finish(python(*SPMD, notebook, output, "-p", "seed", 41))
    assert code == 0
    assert out == "toy 42\n"
    assert texts(output) == ["", "toy 42\n", ""]


def test_classroom_cells_run_when_asked(write_notebook, python, tmp_path):
    notebook = write_notebook("ok", ("print('teaching')", "classroom"))
    output = tmp_path / "out.ipynb"
    code, out, _ = finish(python(*SPMD, "--classroom", notebook, output))
    assert (code, out) == (0, "teaching\n")


def test_a_bar_is_shown_live_and_stored_as_one_output(write_notebook, python, tmp_path):
    bar = "from tqdm import tqdm\nfor _ in tqdm(range(30), mininterval=0): sleep(0.01)"
    output = tmp_path / "out.ipynb"
    code, _, err = finish(
        python(*SPMD, write_notebook("bar", f"from time import sleep\n{bar}"), output)
    )
    assert code == 0
    assert err.count("30 [") > 20
    assert len(nbformat.read(output, 4).cells[-1].outputs) == 1


def test_an_unknown_parameter_is_refused_before_anything_runs(
    write_notebook, python, tmp_path
):
    output = tmp_path / "out.ipynb"
    process = python(*SPMD, write_notebook("ok"), output, "-p", "sed", 1)
    code, _, err = finish(process)
    assert code == 2
    assert "no parameter 'sed'; it has scale, seed, out" in err
    assert not output.exists()


def test_an_error_in_a_cell_ends_with_its_own_message(write_notebook, python, tmp_path):
    notebook = write_notebook("bad", "print('kept')", "raise ValueError('too\\nlong')")
    output = tmp_path / "out.ipynb"
    code, _, err = finish(python(*SPMD, notebook, output))
    assert code == 1
    assert f"cell [3]: ValueError: too long (partial notebook: {output})" in err
    assert "Traceback" not in err
    assert texts(output) == ["", "kept\n", "too\nlong"]


def test_a_dead_kernel_ends_the_run(write_notebook, python, tmp_path):
    notebook = write_notebook(
        "dead", "print('kept')", "import os; os.kill(os.getpid(), 9)"
    )
    output = tmp_path / "out.ipynb"
    code, _, err = finish(python(*SPMD, notebook, output))
    assert code == 1
    assert err == f"\ncell [3]: the kernel died (partial notebook: {output})\n"
    assert texts(output)[1] == "kept\n"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_and_its_kernel_within_seconds(
    write_notebook, python, tmp_path, number
):
    endless = "import os\nprint(os.getpid(), flush=True)\nwhile True: pass"
    output = tmp_path / "out.ipynb"
    process = python(*SPMD, write_notebook("endless", endless), output)
    kernel = int(process.stdout.readline())  # printed while the cell still runs: live
    begin = time.monotonic()
    process.send_signal(number)
    code, _, err = finish(process)
    assert time.monotonic() - begin < 15
    assert code == 128 + number
    assert f"stopped by {number.name} (partial notebook: {output})" in err
    assert texts(output) == ["", f"{kernel}\n"]
    with pytest.raises(ProcessLookupError):
        os.kill(kernel, 0)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("moment", ["the kernel starts", "a cell runs"])
def test_ctrl_c_and_sigterm_together_leave_one_line_and_no_kernel(
    write_notebook, python, tmp_path, moment
):
    """A terminal sends Ctrl-C to all, and ./course run passes on what it gets."""
    notebook = write_notebook(
        "wait", "import time; print(1, flush=True)", "time.sleep(9)"
    )
    for _ in range(3):
        process = python(*SPMD, notebook, tmp_path / "out.ipynb")
        while not (kernels := psutil.Process(process.pid).children()):
            time.sleep(0.001)
        if moment == "a cell runs":
            process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.terminate()
        _, _, err = finish(process)
        assert len(err.strip().splitlines()) == 1, err
        assert "stopped by SIG" in err
        psutil.wait_procs(kernels, timeout=5)
        assert not any(kernel.is_running() for kernel in kernels)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_a_kernel_that_had_died_is_said_also_by_a_rank_that_is_stopped(
    write_notebook, python, tmp_path
):
    notebook = write_notebook(
        "wait", "print(1, flush=True)\nimport time; time.sleep(9)"
    )
    process = python(*SPMD, notebook, tmp_path / "out.ipynb")
    process.stdout.readline()
    (kernel,) = psutil.Process(process.pid).children()
    kernel.kill()
    while kernel.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.001)
    process.terminate()  # another rank has noticed first
    code, _, err = finish(process)
    assert code == 128 + signal.SIGTERM
    assert "cell [2]: the kernel died" in err


def test_a_rogue_kernelspec_cannot_hijack_the_run(write_notebook, python, tmp_path):
    spec = tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    text = {"argv": ["false"], "display_name": "x", "language": "python"}
    spec.write_text(json.dumps(text))
    notebook = write_notebook("who", "import sys; print(sys.executable)")
    process = python(
        *SPMD,
        notebook,
        tmp_path / "out.ipynb",
        JUPYTER_DATA_DIR=str(tmp_path / "jupyter"),
    )
    code, out, _ = finish(process)
    assert code == 0
    assert out.strip() == process.args[0]


def test_kernels_leave_a_shared_home_alone(write_notebook, python, tmp_path):
    home = tmp_path / "home"
    startup = home / ".ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "mine.py").write_text("scale = print('mine')")
    before = sorted(home.rglob("*"))
    notebook = write_notebook("home", "print(get_ipython().history_manager.enabled)")
    process = python(*SPMD, notebook, tmp_path / "out.ipynb", HOME=str(home))
    assert finish(process)[:2] == (0, "False\n")
    assert sorted(home.rglob("*")) == before


def test_rank_1_writes_its_own_notebook_and_shows_nothing(
    write_notebook, python, tmp_path
):
    notebook = write_notebook("rank", "import os; print(os.environ['RANK'])")
    output = tmp_path / "out.ipynb"
    code, out, _ = finish(python(*SPMD, notebook, output, RANK="1"))
    assert (code, out) == (0, "")
    assert not output.exists()
    assert texts(tmp_path / "out.rank-1.ipynb") == ["", "1\n"]


def test_nothing_is_run_where_a_file_says_that_it_was(write_notebook, python, tmp_path):
    done, output = tmp_path / "done", tmp_path / "out.ipynb"
    notebook = write_notebook("once", "print('ran')")
    assert finish(python(*SPMD, "--unless", done, notebook, output))[1] == "ran\n"
    done.touch()
    code, out, err = finish(python(*SPMD, "--unless", done, notebook, output))
    assert (code, out, err) == (0, "", "")


@pytest.mark.skipif(sys.platform != "linux", reason="what Linux has")
def test_a_kernel_that_computes_in_c_dies_with_its_rank(
    write_notebook, python, tmp_path
):
    deaf = "import ctypes; ctypes.PyDLL(None).sleep(60)"  # no thread of Python runs
    notebook = write_notebook("deaf", f"print('begun', flush=True)\n{deaf}")
    process = python(*SPMD, notebook, tmp_path / "out.ipynb")
    process.stdout.readline()
    (kernel,) = psutil.Process(process.pid).children()
    process.kill()
    assert not psutil.wait_procs([kernel], timeout=5)[1]


def test_parameters_are_read_as_yaml_and_floats_stay_floats():
    known = {"seed": 0, "lr": 0.1, "name": "x", "sizes": []}
    given = [("seed", "3"), ("lr", "1e-4"), ("name", '"12"'), ("sizes", "[1, 2]")]
    values = parse_parameters(known, given)
    assert values == {"seed": 3, "lr": 1e-4, "name": "12", "sizes": [1, 2]}
    with pytest.raises(ValueError, match="-p lr: cannot read 'fast'"):
        parse_parameters(known, [("lr", "fast")])


def test_a_file_that_is_no_parameterised_notebook_is_named(write_notebook, tmp_path):
    assert known_parameters(write_notebook("ok"))["scale"] == "toy"
    plain = tmp_path / "plain.ipynb"
    nbformat.write(nbformat.v4.new_notebook(), plain)
    other = tmp_path / "other.ipynb"
    other.write_text("no JSON")
    for path, why in [
        (plain, "no cell is tagged `parameters`"),
        (other, "not a Jupyter notebook"),
        (tmp_path / "none.ipynb", "No such file"),
    ]:
        with pytest.raises(ValueError, match=f"{path.name}.*{why}"):
            known_parameters(path)

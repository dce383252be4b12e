"""Every attack is made for real, on the machine that runs the tests."""

import itertools
import os
import sys
import tempfile
import time
from pathlib import Path

import pytest

from minipalm.evaluate import isolated
from minipalm.evaluate.isolated import (
    Checked,
    CodeEval,
    NotIsolated,
    check_program,
    check_programs,
    humaneval_program,
    pass_at_k,
)


def can_isolate():
    try:
        return check_program("").passed
    except NotIsolated:
        return False


shut = pytest.mark.skipif(
    not can_isolate(),
    reason="this machine leaves something open, so nothing is run: no Landlock (Linux "
    "5.13), no seccomp, or not Linux",
)

ADD = {
    "prompt": 'def add(a, b):\n    """The sum of a and b."""\n',
    "test": "def check(candidate):\n    assert candidate(2, 3) == 5\n",
    "entry_point": "add",
}


# --- programs that behave -------------------------------------------------------------


@shut
def test_a_right_completion_passes_and_a_wrong_one_says_why():
    right = humaneval_program(completion="    return a + b\n", **ADD)
    wrong = humaneval_program(completion="    return a * b\n", **ADD)
    broken = humaneval_program(completion="    return a +\n", **ADD)
    other = humaneval_program(completion="    return a + c\n", **ADD)
    checked = check_programs([right, wrong, broken, other])
    assert checked[0] == Checked(True, "")
    assert checked[1] == Checked(False, "AssertionError")
    assert not checked[2].passed and checked[2].reason.startswith("SyntaxError")
    assert checked[3].reason == "NameError: name 'c' is not defined"


@shut
def test_the_standard_library_can_be_imported():
    assert check_program("""
import collections, ctypes, dataclasses, datetime, decimal, fractions, functools
import hashlib, heapq, itertools, json, math, random, re, statistics, string, typing
@dataclasses.dataclass
class Point:
    x: int
    y: "int" = 2
assert Point(1) == Point(1, 2)
assert hashlib.md5(b"").hexdigest().startswith("d41d")
assert __name__ != "__main__"
""").passed


@shut
def test_programs_begin_in_an_empty_directory_and_what_they_print_does_no_harm():
    assert check_program("""
import os, sys
assert os.listdir() == [] and os.environ["HOME"] == os.getcwd()
assert sys.stdin.read() == ""
print("passed", "\\udcff".encode(errors="replace"))
sys.stderr.write("failed")
""").passed


# --- leaving early --------------------------------------------------------------------

EARLY = {
    "exit": "raise SystemExit(0)",
    "leave": "import os; os._exit(0)",
    "kill": "import os; os.kill(os.getpid(), 9)",
    "interrupt": "raise KeyboardInterrupt",
    "print a verdict": "print('passed'); import os; os._exit(0)",
    "close all": "import os; os.closerange(0, 99); raise SystemExit",
    "crash": "import ctypes; ctypes.string_at(0)",
    "an error that cannot be told": "class E(Exception):\n"
    "    def __str__(self): raise E\n"
    "raise E",
}


@shut
@pytest.mark.parametrize("how", EARLY)
def test_who_leaves_before_the_test_has_not_passed(how):
    checked = check_program(EARLY[how] + "\n" + ADD["test"])
    assert not checked.passed and checked.reason


# --- attacks --------------------------------------------------------------------------


def our_children():
    """The processes that this one has started, other tests' helpers among them."""
    tasks = Path("/proc/self/task").glob("*/children")
    return {child for task in tasks for child in task.read_text().split()}


@shut
@pytest.mark.parametrize(
    "bomb",
    [
        "while True: os.fork()",
        "while True:\n    try: os.fork()\n    except OSError: pass",
        "while True: __import__('subprocess').Popen([sys.executable, '-c', ''])",
        "while True: os.posix_spawn('/bin/sleep', ['sleep', '99'], {})",
        "__import__('multiprocessing').Process(target=print).start()",
    ],
)
def test_a_fork_bomb_starts_nothing(bomb):
    before = our_children()
    checked = check_program("import os, sys\n" + bomb, cpu_seconds=1)
    assert not checked.passed
    assert "Permission" in checked.reason or "1 CPU-seconds" in checked.reason
    assert our_children() <= before


@shut
def test_an_endless_loop_ends():
    begin = time.monotonic()
    assert check_program("while True: pass", cpu_seconds=1) == Checked(
        False, "it computed for more than 1 CPU-seconds"
    )
    sleeper = "import time\nwhile True: time.sleep(1)"
    assert check_program(sleeper, seconds=1).reason == "it ran longer than 1 s"
    thread = "import threading, time\n"
    thread += "threading.Thread(target=time.sleep, args=[99]).start()"
    assert check_program(thread).passed  # a thread that it leaves behind ends, too
    assert time.monotonic() - begin < 30


@shut
@pytest.mark.parametrize("catch", ["", "except OSError: pass"])
def test_a_file_flood_writes_nothing(tmp_path, monkeypatch, catch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    checked = check_program(
        f"""
import itertools
for n in itertools.count():
    for place in ("", {str(tmp_path)!r} + "/", "/tmp/minipalm-flood-", "/dev/shm/"):
        try: open(f"{{place}}flood{{n}}", "wb").write(bytes(10**6))
        {catch or "finally: pass"}
""",
        cpu_seconds=1,
    )
    assert not checked.passed
    assert os.listdir(tmp_path) == []
    assert not list(Path("/tmp").glob("minipalm-flood-*"))
    assert not list(Path("/dev/shm").glob("flood*"))


@shut
def test_memory_is_limited():
    at_once = "x = bytearray(10**9)"
    assert check_program(at_once, memory_mb=128).reason == "MemoryError"
    in_bits = "x = []\nwhile True: x.append(bytearray(10**6))"
    assert check_program(in_bits, memory_mb=128).reason in (
        "MemoryError",
        "it used more than 128 MB of memory",
    )
    assert not check_program("import os\nwhile True: os.write(1, bytes(9999))").passed


@shut
@pytest.mark.parametrize(
    "reach",
    [
        "socket.create_connection(('127.0.0.1', 9))",
        "socket.socket(socket.AF_UNIX)",
        "__import__('urllib.request').request.urlopen('http://127.0.0.1:9')",
    ],
)
def test_there_is_no_network(reach):
    reason = check_program(f"import socket\n{reach}").reason
    assert "Operation not permitted" in reason


# Each is an expression whose value would be, or hold, the secret.
SECRETS = {
    "a file": "open(FILE).read()",
    "a file of bytes": "os.read(os.open(FILE, os.O_RDONLY), 99).decode()",
    "a file by its place alone": "os.read(os.open(FILE, os.O_PATH), 99).decode()",
    "a file by its place again": "open(f'/proc/self/fd/{os.open(FILE, os.O_PATH)}')",
    "a file by a link of mine": "open('/proc/self/root' + FILE).read()",
    "a file by another's link": "open(f'/proc/{PARENT}/root' + FILE).read()",
    "a file as a program": "str(runpy.run_path(FILE))",
    "a file as a line of code": "linecache.getline(FILE, 1) or open(FILE).read()",
    "a file by a map": "mmap.mmap(os.open(FILE, 0), 0, prot=1)[:].decode()",
    "names of files": "' '.join(os.listdir(os.path.dirname(FILE)))",
    "names of files above": "' '.join(map(str, os.scandir('..')))",
    "my environment": "' '.join(os.environ.values()) + os.environ['TOKEN']",
    "my first environment": "open('/proc/self/environ').read()",
    "the parent's environment": "open(f'/proc/{os.getppid()}/environ').read()",
    "the grader's environment": "open(f'/proc/{PARENT}/environ').read()",
    "the grader's memory": "open(f'/proc/{PARENT}/mem', 'rb').read(9).decode()",
    "the grader's files": "open(f'/proc/{PARENT}/fd/0').read()",
    "users": "'secret-word' * ('root' in open('/etc/passwd').read())",
    "this package": "'secret-word' + open(SOURCE).read()",
    "the package by import": "'secret-word' + str(__import__('minipalm'))",
}


@shut
@pytest.mark.parametrize("way", SECRETS)
def test_a_secret_cannot_be_read(way, tmp_path, monkeypatch):
    file = tmp_path / "secret-word.py"
    file.write_text("secret = 'secret-word'\n")
    monkeypatch.setenv("TOKEN", "secret-word")
    checked = check_program(f"""
import linecache, mmap, os, runpy
FILE, PARENT, SOURCE = {str(file)!r}, {os.getpid()}, {isolated.__file__!r}
assert "secret-word" in {SECRETS[way]}, "not found"
""")
    assert not checked.passed
    errors = ("PermissionError", "KeyError", "ModuleNotFoundError", "OSError: [Errno")
    assert checked.reason.startswith(errors), checked.reason


# --- machines that cannot -------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="needs a child that can be changed")
def test_where_files_stay_open_nothing_runs_unless_one_says_so(tmp_path, monkeypatch):
    """On a kernel without Landlock; its system call is given a number of no call."""
    source = Path(isolated.__file__).read_text()
    assert "syscall(444" in source
    copy = tmp_path / "isolated.py"
    copy.write_text(source.replace("syscall(444", "syscall(4444"))
    monkeypatch.setattr(isolated, "__file__", str(copy))
    with pytest.raises(NotIsolated, match="can read every file that this user can"):
        check_program("assert False")
    assert check_program("pass", allow_open=True).passed
    assert check_program("assert False", allow_open=True).reason == "AssertionError"


# --- pass@k ---------------------------------------------------------------------------


@pytest.mark.parametrize("n, c", [(1, 0), (1, 1), (5, 0), (5, 2), (6, 5), (7, 7)])
def test_pass_at_k_is_the_share_of_choices_that_hold_a_right_one(n, c):
    for k in range(1, n + 1):
        choices = list(itertools.combinations([True] * c + [False] * (n - c), k))
        assert pass_at_k(n, c, k) == pytest.approx(
            sum(map(any, choices)) / len(choices)
        )


def test_pass_at_k_has_no_bias():
    """Its mean over all outcomes of n programs is the chance of k fresh ones."""
    p, n = 0.3, 6
    outcomes = list(itertools.product([True, False], repeat=n))
    weights = [p ** sum(x) * (1 - p) ** (n - sum(x)) for x in outcomes]
    for k in range(1, n + 1):
        mean = sum(w * pass_at_k(n, sum(x), k) for w, x in zip(weights, outcomes))
        assert mean == pytest.approx(1 - (1 - p) ** k)


@pytest.mark.parametrize("n, c, k", [(3, 4, 1), (3, -1, 1), (3, 1, 4), (3, 1, 0)])
def test_pass_at_k_refuses_what_is_out_of_range(n, c, k):
    with pytest.raises(ValueError, match="0 <= c <= n and 1 <= k <= n"):
        pass_at_k(n, c, k)


@shut
def test_code_eval_counts_as_hugging_faces_does():
    rates, checked = CodeEval().compute(
        references=["assert f(2) == 4", "assert g() == 1"],
        predictions=[
            ["def f(x): return x + x", "def f(x): return 2 * x + 1", "def f(x): 1 / 0"],
            ["def g(): return 1", "g = lambda: 1", "def g(): return 2"],
        ],
        k=[1, 2, 10],
    )
    assert rates == {"pass@1": pytest.approx(1 / 2), "pass@2": pytest.approx(5 / 6)}
    assert [one.passed for one in checked[0]] == [True, False, False]
    assert checked[0][2].reason == "ZeroDivisionError: division by zero"

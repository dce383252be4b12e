"""Run code that a model wrote against its test, where it can do no harm; and pass@k.

    check_program --sandbox.run_isolated--> keeper --> child: this file, as a program

The child is a Python of its own with the standard library only, an empty environment
and an empty directory. Before it runs the code it gives up, for good, what code that
only computes does not need:

    shut_files              opening files, but those that Python itself is made of
    sandbox.close_doors     writing, processes, signals, sockets, more memory
    sandbox.run_isolated    time, threads, output: watched from outside

That is Linux 5.13 or newer, with Landlock and seccomp. Where something stays open the
child says so, and does not run the code unless it was told to in spite of it.

What stays open everywhere: the code can ask whether a file exists, how large it is, and
where a link points. And the test runs in the process of what it tests, so that code
which sets out to deceive it can; leaving early is not enough, since a test has passed
only when a word, told to the child alone, has come back. Do not train against this
verdict: compare answers from outside.
"""

import ctypes
import json
import math
import os
import secrets
import struct
import sys
import tempfile
import types
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

# Nothing else may be imported here: the child has the standard library only.


class NotIsolated(RuntimeError):
    """Something would stay open to the code, so it has not been run."""


@dataclass(frozen=True)
class Checked:
    passed: bool
    reason: str  # why it has not passed, one line; "" if it has


# --- Asking ---------------------------------------------------------------------------


def humaneval_program(prompt: str, completion: str, test: str, entry_point: str) -> str:
    """The program that ends without an error if the completion is right.

    Args:
        prompt: the head of a function, and its docstring.
        completion: the rest of it, as the model wrote it.
        test: defines `check(candidate)`, which asserts.
        entry_point: the function's name.

    Source: Chen et al. 2021 (arXiv 2107.03374), section 2.2, and its data's format.
    """
    return f"{prompt}{completion}\n{test}\ncheck({entry_point})\n"


def check_program(
    program: str,
    *,
    seconds: float = 15.0,
    cpu_seconds: int = 5,
    memory_mb: int = 512,
    allow_open: bool = False,
) -> Checked:
    """Run a program; it passes if it gets to its end without an error.

    Args:
        program: Python, by anybody.
        seconds: on the clock, after which it is ended.
        cpu_seconds: of computing, after which it is ended.
        memory_mb: MB that it may use.
        allow_open: run it even where this machine leaves something open.

    Raises:
        NotIsolated: something stays open, and allow_open is False.
    """
    # Here, since this file is also run as a program that has no package around it.
    from minipalm import sandbox

    limits = dict(
        seconds=seconds, cpu_seconds=cpu_seconds, memory_mb=memory_mb,
        threads=32, output_bytes=200_000,
    )  # fmt: skip
    word = secrets.token_hex(16)
    job = {"program": program, "limits": limits, "word": word, "open": allow_open}
    # Alone with the standard library: -I and -S leave other packages out.
    command = [sys.executable, "-I", "-S", "-B", "-X", "utf8", __file__]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        env = {"HOME": folder, "LANG": "C.UTF-8"}  # nothing of ours is in it
        if "SYSTEMROOT" in os.environ:  # without it Python does not start on Windows
            env["SYSTEMROOT"] = os.environ["SYSTEMROOT"]
        done = sandbox.run_isolated(
            [*command, str(sandbox.__file__)],
            json.dumps(job),
            sandbox.Limits(**limits),  # type: ignore[arg-type]
            Path(folder),
            env,
        )
    verdicts = [x for x in done.stdout.splitlines() if x.startswith(word)]
    if not verdicts:
        reason = done.reason or "it ended before its test had"
        return Checked(False, reason)
    verdict, _, reason = verdicts[-1].removeprefix(f"{word} ").partition(" ")
    if verdict == "refused":
        raise NotIsolated(reason)
    return Checked(verdict == "passed", reason)


def check_programs(programs: Sequence[str], **options: Any) -> list[Checked]:
    """`check_program` of each, as many at a time as there are processors."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda one: check_program(one, **options), programs))


# --- Counting -------------------------------------------------------------------------


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that at least one of k programs passes, where c of n have passed.

    1 − C(n−c, k) / C(n, k): the share of all choices of k among the n in which at least
    one is right. Unlike 1 − (1 − c/n)^k it has no bias.

    Args:
        n: programs written for a task; at least k.
        c: of them have passed.
        k: programs to choose, at least 1.

    Example: n = 5, c = 2, k = 2: of 10 choices 3 hold no right one, so .7.

    Raises:
        ValueError: an argument out of its range.

    Source: Chen et al. 2021 (arXiv 2107.03374), equation 1.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(
            f"pass@k needs 0 <= c <= n and 1 <= k <= n (got {n=} {c=} {k=})"
        )
    return 1 - math.comb(n - c, k) / math.comb(n, k)


class CodeEval:
    """In the place of Hugging Face's `code_eval`, which runs programs unprotected.

    Args:
        options: of `check_program`.
    """

    def __init__(self, **options: Any) -> None:
        self.options = options

    def compute(
        self,
        references: Sequence[str],
        predictions: Sequence[Sequence[str]],
        k: Sequence[int] = (1, 10, 100),
        **ignored: Any,
    ) -> tuple[dict[str, float], dict[int, list[Checked]]]:
        """pass@k, the mean over tasks, and what became of each program.

        Args:
            references: a test a task, to be run behind each of its programs.
            predictions: the programs of each task.
            k: those are left out for which a task has too few programs.
            ignored: timeout, num_workers: ours are in `options`.
        """
        checked = {
            task: check_programs([f"{one}\n{test}" for one in some], **self.options)
            for task, (test, some) in enumerate(zip(references, predictions))
        }
        counts = [(len(x), sum(one.passed for one in x)) for x in checked.values()]
        rates = {
            f"pass@{most}": sum(pass_at_k(n, c, most) for n, c in counts) / len(counts)
            for most in k
            if counts and all(n >= most for n, _ in counts)
        }
        return rates, checked


# --- In the child ---------------------------------------------------------------------

# Rights of Landlock: those that all its versions know, and the two that are given back.
ALL_RIGHTS, READ_FILE, READ_FOLDER = (1 << 13) - 1, 1 << 2, 1 << 3
OPEN_FILES = "the code can read every file that this user can read"


def own_files() -> list[str]:
    """What Python needs to import its library later, and files that tell nothing."""
    libraries = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", f"{sys.base_prefix}/lib"]
    devices = ["/dev/null", "/dev/zero", "/dev/urandom"]
    others = ["/etc/ld.so.cache", "/usr/share/zoneinfo"]
    # close_doors asks how much memory is in use; the directory is empty
    return [*sys.path, *libraries, *devices, *others, "/proc/self/statm", os.getcwd()]


def shut_files() -> list[str]:
    """Have the kernel refuse this process every file but `own_files`, for good.

    Returns a sentence for what this machine leaves open; [] for nothing.
    """
    if sys.platform != "linux":
        return [f"{OPEN_FILES}: only Linux can shut them"]
    libc = ctypes.CDLL(None, use_errno=True)
    rules = libc.syscall(444, struct.pack("Q", ALL_RIGHTS), ctypes.c_size_t(8), 0)
    if rules < 0:
        return [f"{OPEN_FILES}: the kernel has no Landlock (5.13 is the first with it)"]
    for path in own_files():
        with suppress(OSError):  # not every system has all of them
            place = os.open(path, os.O_PATH)
            rights = READ_FILE | READ_FOLDER if os.path.isdir(path) else READ_FILE
            libc.syscall(445, rules, 1, struct.pack("=Qi", rights, place), 0)
            os.close(place)
    libc.prctl(38, *[ctypes.c_ulong(x) for x in (1, 0, 0, 0)])  # PR_SET_NO_NEW_PRIVS
    libc.syscall(446, rules, 0)
    os.close(rules)
    with suppress(PermissionError):  # by trial
        os.listdir("/")
        return [f"{OPEN_FILES}: Landlock did not shut them"]
    return []


def load(path: str) -> Any:
    """A module from its file."""
    spec = spec_from_file_location("sandbox", path)
    assert spec and spec.loader
    module = sys.modules["sandbox"] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def one_line(error: BaseException) -> str:
    try:
        text = " ".join(f"{type(error).__name__}: {error}".split())
    except BaseException:  # its __str__ is the model's, too
        text = type(error).__name__
    return text.removesuffix(":")[:200]


def in_child(sandbox_file: str) -> None:
    sandbox = load(sandbox_file)
    job = json.load(sys.stdin)
    left = shut_files() + sandbox.close_doors(sandbox.Limits(**job["limits"]))
    # Names of our own: the code may replace what is in os.
    write, leave, word = os.write, os._exit, job["word"]
    if left and not job["open"]:
        verdict = "refused " + "; ".join(left)
    else:
        solution = sys.modules["solution"] = types.ModuleType("solution")
        try:
            exec(compile(job["program"], "<solution>", "exec"), solution.__dict__)
            verdict = "passed"
        except BaseException as error:  # SystemExit, too: the test has not ended
            verdict = "failed " + one_line(error)
    write(1, f"\n{word} {verdict}\n".encode("utf-8", "replace"))
    leave(0)


if __name__ == "__main__":
    in_child(sys.argv[1])

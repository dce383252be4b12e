"""Run code that nobody has read: in a process of its own that can compute and print.

    grader  --run_isolated-->  keeper  -->  child: imports, close_doors(), then the code

The keeper is this file run as a program. It starts the child, waits for it, and ends
whatever the child leaves behind; all of them end when the grader does. The grader
watches time, memory, threads and output. In the child, `close_doors` has the kernel
refuse every system call that is not on a short list: files can be read and threads
started, but nothing written, no process started or signalled, no socket opened.

All this is Linux on x86_64 and aarch64. Elsewhere there are limits on time, output and,
except on Windows, size of files; `close_doors` says in words what stays open. What stays
open everywhere: the code can read what this user can read, print whatever it likes
(also something that looks like a verdict), and end its process with status 0. So let
the grader, not the child, compare answers.
"""

import ctypes
import errno
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

if sys.platform != "win32":
    import resource

MB = 2**20  # bytes


@dataclass(frozen=True)
class Limits:
    seconds: float = 60  # on the clock, from start to end
    cpu_seconds: int = 120  # of all its threads together
    memory_mb: int = 4096  # MB in use; and may be asked for once the doors are closed
    threads: int = 512  # torch starts one or two a core
    output_bytes: int = 1_000_000  # of stdout, and as many of stderr


@dataclass(frozen=True)
class Finished:
    status: int | None  # the exit status; None if it was ended
    stdout: str  # what it printed, up to the limit
    stderr: str
    reason: str  # why it ended, one plain sentence; "" for exit status 0


def run_isolated(
    command: list[str],
    stdin: str,
    limits: Limits,
    cwd: Path,
    env: Mapping[str, str] | None = None,
) -> Finished:
    """Run command in cwd until it ends or breaks a limit; nothing of it runs on.

    stdin: what it can read. env: its whole environment; None is a copy of ours, with
    every secret in it. Whatever the command does, this raises nothing and comes back
    at most 12 s after limits.seconds.
    """
    keeper = [sys.executable, "-I", "-S", os.path.abspath(__file__)]
    keeper += [str(os.getpid()), str(limits.cpu_seconds)]
    process = subprocess.Popen(
        command if sys.platform == "win32" else keeper + command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=cwd,
        env=env,
        start_new_session=True,  # no terminal, and Ctrl-C is for the grader alone
    )
    assert process.stdin and process.stdout and process.stderr
    end, room = time.monotonic() + limits.seconds, limits.output_bytes
    out, err = bytearray(), bytearray()
    talk = [
        threading.Thread(target=feed, args=(process.stdin, stdin.encode("utf-8"))),
        threading.Thread(target=collect, args=(process.stdout, out, room)),
        threading.Thread(target=collect, args=(process.stderr, err, room)),
    ]
    reason = ""
    try:
        for thread in talk:
            thread.daemon = True  # never worth waiting for when the grader ends
            thread.start()
        while not reason and process.poll() is None:
            time.sleep(0.02)
            reason = broken_limit(process.pid, end, limits)
            if max(len(out), len(err)) > room:
                reason = f"it printed more than {room} bytes"
    finally:  # also when the grader is interrupted
        end_keeper(process)
        for thread in talk:
            thread.join(1)
    if max(len(out), len(err)) > room:  # also if it printed that and ended at once
        reason = f"it printed more than {room} bytes"
    code = process.returncode
    status = None if reason or code is None or code < 0 else code
    texts = [bytes(kept[:room]).decode("utf-8", "replace") for kept in (out, err)]
    return Finished(status, *texts, reason or name_the_end(code, limits))


def feed(pipe: IO[bytes], data: bytes) -> None:
    with suppress(OSError), pipe:  # it may end without having read
        pipe.write(data)


def collect(pipe: IO[bytes], kept: bytearray, room: int) -> None:
    """Read into kept until the pipe ends or room is exceeded, which ends the child."""
    with pipe:
        while len(kept) <= room and (chunk := os.read(pipe.fileno(), 65536)):
            kept += chunk


def broken_limit(keeper: int, end: float, limits: Limits) -> str:
    """The limit that is broken right now, as a sentence, or ""."""
    if time.monotonic() > end:
        return f"it ran longer than {limits.seconds:g} s"
    for child in children(keeper):
        with suppress(OSError):  # it has just ended
            # bytes: the process chooses its name, which need not be UTF-8
            text = Path(f"/proc/{child}/status").read_bytes()
            memory = re.search(rb"^VmRSS:\s+(\d+) kB", text, re.MULTILINE)
            threads = re.search(rb"^Threads:\s+(\d+)", text, re.MULTILINE)
            if memory and int(memory[1]) * 1024 > limits.memory_mb * MB:
                return f"it used more than {limits.memory_mb} MB of memory"
            if threads and int(threads[1]) > limits.threads:
                return f"it started more than {limits.threads} threads"
    return ""


def name_the_end(code: int | None, limits: Limits) -> str:
    if code is None:
        return "it could not be ended"
    if code >= 0:
        return f"it ended its process (exit status {code})" if code else ""
    if sys.platform != "win32" and -code == signal.SIGXCPU:
        return f"it computed for more than {limits.cpu_seconds} CPU-seconds"
    name = signal.strsignal(-code) or "unknown"
    return f"it was ended by signal {-code} ({name})"


def end_keeper(process: subprocess.Popen[bytes]) -> None:
    """Ask the keeper to end all that it keeps; if that takes 5 s, end it by force."""
    for ask in (process.terminate, process.kill):
        ask()  # does nothing to one that has ended
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
            return


# --- The keeper, between grader and child ---------------------------------------------


def children(pid: int) -> list[int]:
    """The children of a process's first thread, adopted ones too; [] without /proc."""
    try:
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except OSError:
        return []


def keep(grader: int, cpu_seconds: int, command: list[str]) -> int:
    """Run command, end what it leaves behind, and end as it did: status or signal."""

    def stop(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.exit(1)

    signal.signal(signal.SIGTERM, stop)
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    prctl(PR_SET_CHILD_SUBREAPER, 1)  # orphans come to us, however they were made
    if os.getppid() != grader:  # it ended before we asked to be told
        return 1
    # 1 byte: the kernel then calls no crash reporter either, as it would with 0
    lower(resource.RLIMIT_CORE, 1 if sys.platform == "linux" else 0)
    child = None
    try:
        child = subprocess.Popen(
            command, process_group=0, preexec_fn=lambda: be_small(cpu_seconds)
        )
        pid = 0
        while pid != child.pid:
            pid, status, used = os.wait3(0)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return 127
    finally:
        end_children(child.pid if child else None)
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGKILL and used.ru_utime + used.ru_stime >= cpu_seconds:
        code = -signal.SIGXCPU  # it had ignored the first warning
    if code < 0:
        with suppress(OSError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def be_small(cpu_seconds: int) -> None:
    """Between fork and exec: end with the keeper, and hold no power over others."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    lower(resource.RLIMIT_CPU, cpu_seconds, cpu_seconds + 1)
    if sys.platform != "linux":
        return
    prctl(PR_SET_NO_NEW_PRIVS, 1)  # nor shall a program that is run give any back
    libc = ctypes.CDLL(None)
    # Of root's powers only reading stays: files of other users may be imported.
    header = struct.pack("Ii", 0x20080522, 0)
    powers = ctypes.create_string_buffer(24)
    libc.capget(header, powers)
    kept = [w & READ_ANY for w in struct.unpack("6I", powers.raw)[:2]]
    libc.capset(header, struct.pack("6I", *kept, 0, 0, 0, 0))
    # In a Landlock domain /proc/PID/mem of outside processes is shut, the grader's
    # above all. The right it takes away is one nobody needs: making device files.
    rules = libc.syscall(444, struct.pack("Q", 1 << 6 | 1 << 11), ctypes.c_size_t(8), 0)
    libc.syscall(446, rules, 0)
    if rules >= 0:
        os.close(rules)


def end_children(group: int | None) -> None:
    """Kill and reap until none is left: those of a killed one come to us, and follow."""
    while True:
        with suppress(OSError):
            if group:
                os.killpg(group, signal.SIGKILL)
        for child in children(os.getpid()):
            with suppress(OSError):
                os.kill(child, signal.SIGKILL)
        try:
            os.wait()
        except ChildProcessError:
            return

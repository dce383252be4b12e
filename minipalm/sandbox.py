"""Run code that nobody has read, in a process of its own that can compute and print.

    grader --run_isolated--> keeper --> child: imports, close_doors(), then the code

The keeper is this file run as a program. It starts the child, waits for it, and ends
whatever the child leaves behind; all of them end when the grader does. The grader
watches time, memory, threads and output. In the child, `close_doors` has the kernel
refuse every system call that is not on a short list: files can be read and threads
started, but nothing written, no process started or signalled, no socket opened.

That is Linux on x86_64 and aarch64. Elsewhere time and output are limited, and except
on Windows the size of files; `close_doors` says what stays open. What stays so on every
system: the code can read what this user can read, print whatever it likes (also what
looks like a verdict), and end its process with status 0. So let the grader, not the
child, compare answers.
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
    at most 15 s after limits.seconds.
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
        threading.Thread(
            target=feed, args=(process.stdin, stdin.encode("utf-8", "replace"))
        ),
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
    reason = reason or name_the_end(code, limits)
    return Finished(status, text(out, room), text(err, room), reason)


def feed(pipe: IO[bytes], data: bytes) -> None:
    with suppress(OSError), pipe:  # it may end without having read
        pipe.write(data)


def collect(pipe: IO[bytes], kept: bytearray, room: int) -> None:
    """Read into kept until the pipe ends or room is exceeded, which ends the child."""
    with pipe:
        while len(kept) <= room and (chunk := os.read(pipe.fileno(), 65536)):
            kept += chunk


def text(kept: bytearray, room: int) -> str:
    return kept[:room].decode("utf-8", "replace")


def broken_limit(keeper: int, end: float, limits: Limits) -> str:
    """The limit that is broken right now, as a sentence, or ""."""
    if time.monotonic() > end:
        return f"it ran longer than {limits.seconds:g} s"
    for child in children(keeper):
        with suppress(OSError):  # it has just ended
            # bytes: the process chooses its name, which need not be UTF-8
            status = Path(f"/proc/{child}/status").read_bytes()
            memory = re.search(rb"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
            threads = re.search(rb"^Threads:\s+(\d+)", status, re.MULTILINE)
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
    """The children of a process of one thread, adopted ones too; [] without /proc."""
    with suppress(OSError):
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        return [int(child) for child in text.split()]
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
    # With 1 byte the kernel does not even call a crash reporter, as it would with 0.
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
    if code == -signal.SIGKILL and used.ru_utime + used.ru_stime > 0.9 * cpu_seconds:
        code = -signal.SIGXCPU  # the kernel says it this way, counting in ticks
    if code < 0:
        with suppress(OSError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def be_small(cpu_seconds: int) -> None:
    """Between fork and exec: end with the keeper, and hold no power over others."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    lower(resource.RLIMIT_CPU, cpu_seconds)
    if sys.platform != "linux":
        return
    prctl(PR_SET_NO_NEW_PRIVS, 1)  # nor shall a program that is run give any back
    libc = ctypes.CDLL(None)
    # Of root's powers only reading stays: files of other users may be imported.
    header, powers = struct.pack("Ii", 0x20080522, 0), ctypes.create_string_buffer(24)
    libc.capget(header, powers)
    effective, permitted = struct.unpack("6I", powers.raw)[:2]
    kept = effective & CAP_DAC_READ_SEARCH, permitted & CAP_DAC_READ_SEARCH
    libc.capset(header, struct.pack("6I", *kept, 0, 0, 0, 0))
    # In a Landlock domain /proc/PID/mem of processes outside is shut, the grader's
    # above all. The right it takes away is one nobody needs: making device files.
    rules = libc.syscall(444, struct.pack("Q", 1 << 6 | 1 << 11), ctypes.c_size_t(8), 0)
    if rules >= 0:
        libc.syscall(446, rules, 0)
        os.close(rules)


def end_children(group: int | None) -> None:
    """Kill and reap until none is left; those of a killed one come to us, and die."""
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


# --- In the child ---------------------------------------------------------------------

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 36, 38
CAP_DAC_READ_SEARCH = 1 << 2

# What code that computes needs; each with its numbers on x86_64 and aarch64, where "-"
# says that there is none. By its absence is refused, and why:
#   socket, connect, bind, ...       the network, and other processes by their sockets
#   fork, vfork, execve, execveat    programs run outside our limits, and orphans
#   ptrace, process_vm_*, pidfd_*    another process's memory and files
#   tkill, rt_sigqueueinfo           signals to others
#   unlink, rename, mkdir, chmod, truncate, link, mknod, setxattr, ...  changed files
#   memfd_create, shmget, mq_open    memory that outlives us or is counted nowhere
#   setsid, setpgid, setpriority, sched_setaffinity, setrlimit    leaving our limits
#   io_uring_*                       any of these, without a system call
#   mount, unshare, setns, bpf, keyctl, perf_event_open, ...   the system itself
ALLOWED = """
read: read 0 63, pread64 17 67, readv 19 65, lseek 8 62, close 3 57,
    close_range 436 436, getdents64 217 61, fadvise64 221 223
look: stat 4 -, fstat 5 80, lstat 6 -, newfstatat 262 79, statx 332 291, access 21 -,
    faccessat 269 48, faccessat2 439 439, readlink 89 -, readlinkat 267 78,
    statfs 137 43, fstatfs 138 44, getcwd 79 17, chdir 80 49
print into what is open: write 1 64, writev 20 66, dup 32 23, dup2 33 -, dup3 292 24,
    pipe 22 -, pipe2 293 59, eventfd2 290 19
memory: brk 12 214, mmap 9 222, munmap 11 215, mprotect 10 226, mremap 25 216,
    madvise 28 233, mincore 27 232, get_mempolicy 239 236
threads: futex 202 98, set_robust_list 273 99, set_tid_address 218 96, rseq 334 293,
    membarrier 324 283, arch_prctl 158 -, exit 60 93, exit_group 231 94, gettid 186 178,
    sched_yield 24 124, sched_getaffinity 204 123, sched_getparam 143 121,
    sched_getscheduler 145 120, getcpu 309 168
its own signals: rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139,
    rt_sigtimedwait 128 137, rt_sigsuspend 130 133, sigaltstack 131 132, pause 34 -,
    restart_syscall 219 128, alarm 37 -, getitimer 36 102, setitimer 38 103
wait: nanosleep 35 101, clock_nanosleep 230 115, poll 7 -, ppoll 271 73, select 23 -,
    pselect6 270 72, epoll_create1 291 20, epoll_ctl 233 21, epoll_wait 232 -,
    epoll_pwait 281 22
time: clock_gettime 228 113, clock_getres 229 114, gettimeofday 96 169, time 201 -,
    times 100 153, getrusage 98 165
who and where: getpid 39 172, getppid 110 173, getuid 102 174, geteuid 107 175,
    getgid 104 176, getegid 108 177, uname 63 160, sysinfo 99 179, getrlimit 97 163,
    getrandom 318 278
"""
SOMETIMES = """
by an argument: open 2 -, openat 257 56, clone 56 220, kill 62 129, tgkill 234 131,
    prctl 157 167, fcntl 72 25, ioctl 16 29, prlimit64 302 261
never, but with another errno: clone3 435 435, openat2 437 437
"""
NEWEST = 439  # above it is nothing on the list: the C library finds another way

# O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, O_TMPFILE: any of them may change a file
WRITING = 0x1 | 0x2 | 0x40 | 0x200 | 0x400000
CLONE_THREAD = 0x10000
NAMES = [15, 16, 0x53564D41]  # PR_SET_NAME, PR_GET_NAME, PR_SET_VMA: names of memory
# Not among fcntl's: F_SETOWN and F_SETSIG (signals to others), locks, leases.
# F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC
DESCRIPTORS = [0, 1, 2, 3, 4, 1030]
# Not among ioctl's: TIOCSTI, which types into a terminal.
# TCGETS and TCGETS2 (is it a terminal?), TIOCGWINSZ, FIONREAD, FIONCLEX, FIOCLEX
QUESTIONS = [0x5401, 0x802C542A, 0x5413, 0x541B, 0x5450, 0x5451]

# One step of a filter: code, how many steps to skip if true and if false, value.
Step = tuple[int, int, int, int]
ANSWER, LOAD, EQUAL, ABOVE, AT_LEAST, ANY_BIT = 0x06, 0x20, 0x15, 0x25, 0x35, 0x45
MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_*, in this order
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # where they lie in struct seccomp_data


def numbers(calls: str, machine: str) -> dict[str, int]:
    """The system calls of a text above that the machine has, with their numbers."""
    rows = re.findall(r"(\w+) (\d+|-) (\d+|-)", calls)
    column = 1 + list(MACHINES).index(machine)
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}


def build_filter(machine: str, pid: int) -> list[Step]:
    """The program that the kernel runs at each system call of process pid.

    It is BPF: one value is loaded at a time, skips go forward only, and every path
    ends in an answer.
    """
    kill, allow = (ANSWER, 0, 0, 0x80000000), (ANSWER, 0, 0, 0x7FFF0000)
    refuse = (ANSWER, 0, 0, 0x50000 | errno.EPERM)
    unknown = (ANSWER, 0, 0, 0x50000 | errno.ENOSYS)
    low = [(LOAD, 0, 0, ARGUMENTS + 8 * i) for i in range(3)]  # all that an int has
    high = [(LOAD, 0, 0, ARGUMENTS + 8 * i + 4) for i in range(3)]

    def one_of(values: list[int]) -> list[Step]:
        tests = [step for value in values for step in ((EQUAL, 0, 1, value), allow)]
        return [*tests, refuse]

    cases = {
        "open": [low[1], (ANY_BIT, 0, 1, WRITING), refuse, allow],
        "openat": [low[2], (ANY_BIT, 0, 1, WRITING), refuse, allow],
        "clone": [low[0], (ANY_BIT, 0, 1, CLONE_THREAD), allow, refuse],
        "kill": [low[0], *one_of([pid])],
        "tgkill": [low[0], *one_of([pid])],
        "prctl": [low[0], *one_of(NAMES)],
        "fcntl": [low[1], *one_of(DESCRIPTORS)],
        "ioctl": [low[1], *one_of(QUESTIONS)],
        # only to ask: the pointer to new limits must be 0
        "prlimit64": [low[2], (EQUAL, 1, 0, 0), refuse, high[2], *one_of([0])],
        "clone3": [unknown],  # its flags lie in memory, where no filter can look
        "openat2": [unknown],  # the same
    }
    # A machine's other tongues (32 bits; x32, above 0x40000000) number calls otherwise.
    program = [(LOAD, 0, 0, ARCHITECTURE), (EQUAL, 1, 0, MACHINES[machine]), kill]
    program += [(LOAD, 0, 0, NUMBER), (AT_LEAST, 0, 1, 0x40000000), kill]
    for number in numbers(ALLOWED, machine).values():
        program += [(EQUAL, 0, 1, number), allow]
    for name, number in numbers(SOMETIMES, machine).items():
        program += [(EQUAL, 0, len(cases[name]), number), *cases[name]]
    return [*program, (ABOVE, 0, 1, NEWEST), unknown, refuse]


def close_doors(limits: Limits) -> list[str]:
    """Forbid this process, for good, what code that only computes does not need.

    To be called in a child of run_isolated, with its limits, when all that needs to
    write, connect or start processes has been imported (torch's optimizers do when the
    first one is made, unless TORCHINDUCTOR_CACHE_DIR is a folder that exists). From
    then on such attempts raise PermissionError, and too much memory MemoryError.
    Returns a sentence for each door that this machine leaves open; [] for none.
    """
    left = []
    if sys.platform == "win32":
        return ["on Windows nothing is closed: only time and output are limited"]
    lower(resource.RLIMIT_FSIZE, 0)
    lower(resource.RLIMIT_NOFILE, 256)
    if sys.platform != "linux":
        return [
            "only Linux can close doors: here the code can delete files, start "
            "processes, reach the network and use all memory"
        ]
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    mapped = pages * resource.getpagesize()
    lower(resource.RLIMIT_AS, mapped + limits.memory_mb * MB)
    # By trial: run_isolated has seen to it, unless the kernel is too old (before 5.13).
    with suppress(OSError), open(f"/proc/{os.getppid()}/mem", "rb"):
        left.append("the code can read the memory of this user's other processes")
    if error := install_filter():
        left.append(
            "the code can write files, start processes and reach the network: "
            f"the kernel takes no filter of system calls ({error})"
        )
    return left


def install_filter() -> str:
    """Have the kernel filter all threads' system calls; why it would not, or ""."""
    machine = os.uname().machine
    if machine not in MACHINES or sys.maxsize < 2**32:
        return f"none is written for {machine}"
    steps = build_filter(machine, os.getpid())
    packed = b"".join(struct.pack("HBBI", *step) for step in steps)
    memory = ctypes.create_string_buffer(packed)
    program = struct.pack("HP", len(steps), ctypes.addressof(memory))
    prctl(PR_SET_NO_NEW_PRIVS, 1)  # without it only root may install a filter
    libc = ctypes.CDLL(None, use_errno=True)
    seccomp = {"x86_64": 317, "aarch64": 277}[machine]
    # 1: set a filter; 1: for the threads that run already, too (prctl cannot do that)
    result = libc.syscall(seccomp, 1, 1, program)
    if result < 0:
        return os.strerror(ctypes.get_errno())
    return "a thread that runs has one of its own" if result else ""


def lower(kind: int, value: int) -> None:
    """Set a limit of this process for good, or leave it where it is lower already."""
    if sys.platform != "win32":
        most = resource.getrlimit(kind)[1]
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        with suppress(OSError, ValueError):  # macOS has names for limits it ignores
            resource.setrlimit(kind, (value, value))


def prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), *[ctypes.c_ulong(0)] * 3)


if __name__ == "__main__":
    sys.exit(keep(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))

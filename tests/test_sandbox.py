"""Every attack is made for real; the filter is also simulated, for both machines."""

import errno
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from dataclasses import astuple, replace
from pathlib import Path

import pytest

from minipalm import sandbox
from minipalm.sandbox import Finished, Limits, run_isolated

# Far above what each test needs, but where it is the limit that is tested.
SMALL = Limits(
    seconds=30, cpu_seconds=20, memory_mb=256, threads=64, output_bytes=20_000
)
SHORT = replace(SMALL, seconds=0.6)

LINUX = sys.platform == "linux"
MACHINE = os.uname().machine if LINUX else ""
HAS_SECCOMP = LINUX and "\nSeccomp:" in Path("/proc/self/status").read_text()

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
linux = pytest.mark.skipif(not LINUX, reason="orphans are found on Linux only")
filtered = pytest.mark.skipif(
    not HAS_SECCOMP or MACHINE not in sandbox.MACHINES,
    reason="no seccomp on this system, or no filter for this machine",
)

# A child loads the module from its file: the package is not needed.
LOAD = f"""
import ctypes, errno, json, os, signal, socket, sys, threading, time
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("sandbox", {sandbox.__file__!r})
sandbox = sys.modules["sandbox"] = module_from_spec(spec)
spec.loader.exec_module(sandbox)
limits = sandbox.Limits(*json.loads(sys.argv[1]))
if os.name == "posix":
    import fcntl
    libc = ctypes.CDLL(None, use_errno=True)
"""
CLOSE = LOAD + "for sentence in sandbox.close_doors(limits): print('open:', sentence)\n"


def run(code: str, limits: Limits = SMALL, stdin: str = "", **env: str) -> Finished:
    command = [sys.executable, "-c", code, json.dumps(astuple(limits))]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **env}
    return run_isolated(command, stdin, limits, Path.cwd(), environment)


def behind_doors(code: str, limits: Limits = SMALL, **env: str) -> Finished:
    return run(CLOSE + code, limits, **env)


def processes_with(mark: str) -> list[str]:
    """Command lines of the living processes that have mark in theirs."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if mark in line:
            found.append(line)
    return found


def wait_until_gone(mark: str) -> list[str]:
    for _ in range(100):
        if not processes_with(mark):
            break
        time.sleep(0.02)
    return processes_with(mark)


# --- What a program that behaves sees -------------------------------------------------


def test_a_program_gets_its_input_and_its_output_comes_back():
    code = "import sys; print(sys.stdin.read()[::-1]); print('å', file=sys.stderr)"
    assert run(code, stdin="abc", PYTHONUTF8="1") == Finished(0, "cba\n", "å\n", "")


def test_an_exit_status_is_said():
    done = run("print('x', flush=True); raise SystemExit(3)")
    assert done == Finished(3, "x\n", "", "it ended its process (exit status 3)")


@posix
def test_a_program_that_is_not_there_is_said(tmp_path: Path):
    done = run_isolated(["no-such-program"], "", SMALL, tmp_path)
    assert (done.status, done.stdout) == (127, "")
    assert "no-such-program: No such file" in done.stderr


def test_input_that_nobody_reads_does_no_harm():
    assert run("print(1)", stdin="x" * 1_000_000).reason == ""


def test_output_that_is_no_utf8_does_no_harm():
    assert run(r"import os; os.write(1, b'a\xffb')").stdout == "a\ufffdb"


@filtered
def test_all_doors_are_closed_here_and_the_code_can_read_think_and_print():
    done = behind_doors("""
import colorsys, csv, inspect, statistics
print(colorsys.rgb_to_hsv(0, 0, 0), "def median" in inspect.getsource(statistics))
print(len(os.listdir("/")) > 3, os.getcwd() != "", sys.stdin.read() == "")
results = []
threads = [threading.Thread(target=results.append, args=(i,)) for i in range(9)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(sorted(results) == list(range(9)))
signal.signal(signal.SIGALRM, lambda *_: print("alarm"))
signal.setitimer(signal.ITIMER_REAL, 0.01)
time.sleep(0.05)
signal.raise_signal(signal.SIGALRM)
""")
    lines = "(0.0, 0.0, 0) True\nTrue True True\nTrue\nalarm\nalarm\n"
    assert done == Finished(0, lines, "", "")


@filtered
def test_torch_computes_on_two_threads_and_backwards():
    limits = replace(SMALL, seconds=60, cpu_seconds=60, memory_mb=2048)
    imports = "import torch; torch.set_num_threads(2)\n"
    done = run(
        imports
        + CLOSE
        + """
x = torch.randn(300, 300, requires_grad=True)
(x @ x).exp().mean().backward()
layer = torch.nn.Linear(300, 300)
torch.nn.functional.cross_entropy(layer(x), torch.arange(300)).backward()
torch.nn.functional.conv1d(torch.randn(2, 3, 50), torch.randn(4, 3, 3))
print(torch.get_num_threads(), x.grad.shape, len(os.listdir("/proc/self/task")) > 1)
try:
    torch.save(x, "saved")
except (OSError, RuntimeError):
    print("not saved")
""",
        limits,
        OMP_NUM_THREADS="2",
    )
    lines = "2 torch.Size([300, 300]) True\nnot saved\n"
    assert done == Finished(0, lines, "", "")


# --- What is refused ------------------------------------------------------------------

# Each must raise PermissionError. OTHER is the grader; the signal to others is 0,
# which asks only whether one might be sent.
REFUSED = {
    "a TCP socket": "socket.socket()",
    "a Unix socket": "socket.socket(socket.AF_UNIX)",
    "a pair of sockets": "socket.socketpair()",
    "a raw netlink socket": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)",
    "fork": "os.fork() or os._exit(9)",
    "a pseudo-terminal": "os.openpty()",
    "posix_spawn": "os.posix_spawn('/bin/true', ['true'], {})",
    "subprocess": "__import__('subprocess').run(['/bin/true'])",
    "exec": "os.execv('/bin/true', ['true'])",
    "clone of a process": "call('clone', 17, 0, 0, 0, 0) or os._exit(9)",
    "writing": "open(FILE, 'w')",
    "appending": "open(FILE, 'a')",
    "creating": "open(FILE + '.new', 'x')",
    "writing in place": "open(FILE, 'r+')",
    "reading that truncates": "os.open(FILE, os.O_RDONLY | os.O_TRUNC)",
    "reading that creates": "os.open(FILE + '.new', os.O_RDONLY | os.O_CREAT)",
    "a file without a name": "os.open('/tmp', os.O_TMPFILE | os.O_RDWR)",
    "shared memory": "open('/dev/shm/minipalm-test', 'w')",
    "its own memory": "open('/proc/self/mem', 'r+b')",
    "its own limits": "open('/proc/self/oom_score_adj', 'w')",
    "a file in memory": "os.memfd_create('x')",
    "unlink": "os.unlink(FILE)",
    "rename": "os.rename(FILE, FILE + '.new')",
    "mkdir": "os.mkdir(FILE + '.new')",
    "rmdir": "os.rmdir(os.path.dirname(FILE))",
    "link": "os.link(FILE, FILE + '.new')",
    "symlink": "os.symlink(FILE, FILE + '.new')",
    "mkfifo": "os.mkfifo(FILE + '.new')",
    "truncate": "os.truncate(FILE, 0)",
    "chmod": "os.chmod(FILE, 0)",
    "chown": "os.chown(FILE, os.getuid(), os.getgid())",
    "utime": "os.utime(FILE)",
    "setxattr": "os.setxattr(FILE, 'user.x', b'x')",
    "kill the parent": "os.kill(os.getppid(), 0)",
    "kill the grader": "os.kill(OTHER, 0)",
    "kill its group": "os.kill(0, 0)",
    "kill all": "os.kill(-1, 0)",
    "tgkill": "call('tgkill', OTHER, OTHER, 0)",
    "sigqueue": "call('rt_sigqueueinfo', OTHER, 0, bytes(128))",
    "a descriptor of a process": "os.pidfd_open(OTHER)",
    "signals by a pipe's owner": "fcntl.fcntl(1, fcntl.F_SETOWN, OTHER)",
    "signals of other kinds": "fcntl.fcntl(1, fcntl.F_SETSIG, 9)",
    "a lock": "fcntl.flock(0, fcntl.LOCK_EX)",
    "a lock of a range": "fcntl.lockf(0, fcntl.LOCK_SH)",
    "ptrace": "call('ptrace', 16, OTHER, 0, 0)",
    "another's memory": "call('process_vm_readv', OTHER, 0, 0, 0, 0, 0)",
    "another's memory by its file": "open(f'/proc/{OTHER}/mem', 'rb')",
    "another's environment": "open(f'/proc/{OTHER}/environ', 'rb')",
    "typing into a terminal": "fcntl.ioctl(0, 0x5412, b'x')",
    "a session of its own": "os.setsid()",
    "a group of its own": "os.setpgid(0, 0)",
    "more CPU time": "call('prlimit64', 0, 0, bytes(16), 0)",
    "others' limits": "__import__('resource').prlimit(OTHER, 7, (9, 9))",
    "another processor": "os.sched_setaffinity(0, [0])",
    "priority": "os.nice(1)",
    "outliving the keeper": "call('prctl', 1, 0, 0, 0, 0)",
    "io_uring": "call('io_uring_setup', 1, bytes(128))",
    "namespaces": "call('unshare', 0x10000000)",
    "mount": "call('mount', 0, 0, 0, 0, 0)",
    "another root": "os.chroot('/')",
    "another filter": "call('seccomp', 0, 0, 0)",
    "sync": "os.sync() or call('sync')",
}
# Numbers on x86_64 and aarch64 of what Python has no function for.
CALLS = """clone 56 220, tgkill 234 131, rt_sigqueueinfo 129 138, ptrace 101 117,
prctl 157 167, io_uring_setup 425 425, unshare 272 97, mount 165 40, seccomp 317 277,
sync 162 81, prlimit64 302 261, process_vm_readv 310 270"""
CALL = """
def call(name, *arguments):
    if libc.syscall(NUMBERS[name], *arguments) < 0:
        raise OSError(ctypes.get_errno(), name)
"""


@pytest.fixture(scope="module")
def attempts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What came of each attempt: all are made in one process."""
    file = tmp_path_factory.mktemp("precious") / "file"
    file.write_text("precious")
    code = CALL + f"FILE, OTHER, REFUSED = {str(file)!r}, {os.getpid()}, {REFUSED!r}\n"
    code += f"NUMBERS = {sandbox.numbers(CALLS, MACHINE)}\n"
    code += """
for name, attempt in REFUSED.items():
    try:
        eval(attempt)
        print(f"{name}: done")
    except Exception as error:
        print(f"{name}: {type(error).__name__}")
"""
    done = behind_doors(code)
    assert done.reason == "", done
    assert os.listdir(file.parent) == ["file"] and file.read_text() == "precious"
    return dict(line.split(": ") for line in done.stdout.splitlines())


@filtered
@pytest.mark.parametrize("name", REFUSED)
def test_refused_is(name: str, attempts: dict[str, str]):
    assert attempts[name] == "PermissionError"


@filtered
def test_every_call_that_is_not_on_the_list_is_refused():
    """All numbers, for real; new ones as a kernel would that does not know them."""
    listed = sandbox.numbers(sandbox.ALLOWED + sandbox.SOMETIMES, MACHINE).values()
    done = behind_doors(f"""
for number in set(range(500)) - {set(listed)} - {{335, 336}}:  # those of probes
    libc.syscall(number, -1, -1, -1, -1, -1, -1)
    assert ctypes.get_errno() == (1 if number <= 439 else 38), number
print(libc.syscall(435, 0, 0), ctypes.get_errno())
print(libc.syscall(437, 0, 0, 0, 0), ctypes.get_errno())
""")
    assert done == Finished(0, "-1 38\n-1 38\n", "", "")


@filtered
def test_a_thread_that_ran_before_is_behind_the_doors_too():
    done = run(
        LOAD
        + """
go, refused = threading.Event(), []
def attack():
    go.wait()
    try: os.fork() or os._exit(9)
    except PermissionError: print("refused")
thread = threading.Thread(target=attack)
thread.start()
print(sandbox.close_doors(limits))
go.set()
thread.join()
"""
    )
    assert done == Finished(0, "[]\nrefused\n", "", "")


@filtered
@pytest.mark.skipif(MACHINE != "x86_64", reason="only x86_64 has these")
def test_calls_in_the_machines_other_tongues_end_the_process():
    x32 = behind_doors("libc.syscall(0x40000000 | 39)")
    assert x32.reason == f"it was ended by signal 31 ({signal.strsignal(31)})"
    code = r"""
import mmap
page = mmap.mmap(-1, 4096, prot=7)
page.write(b"\xb8\x14\0\0\0\xcd\x80\xc3")  # mov eax, 20 (getpid); int 0x80; ret
ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
print("done")
"""
    i386 = behind_doors(code)
    assert i386.stdout == "" and "ended by signal" in i386.reason


# --- What is ended --------------------------------------------------------------------


def test_sleeping_for_ever():
    done = behind_doors(
        "print('a', flush=True); time.sleep(1000)", replace(SMALL, seconds=2)
    )
    assert (done.status, done.reason) == (None, "it ran longer than 2 s")
    assert done.stdout.endswith("a\n")


@posix
def test_passing_over_every_exception_and_signal():
    code = """
for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, lambda *_: None)
while True:
    try: raise KeyboardInterrupt
    except: pass
"""
    assert behind_doors(code, SHORT).reason == "it ran longer than 0.6 s"


@posix
def test_stopping_itself():
    code = "os.kill(os.getpid(), signal.SIGSTOP)"
    assert behind_doors(code, SHORT).reason == "it ran longer than 0.6 s"


def test_closing_its_pipes():
    code = "os.close(0); os.close(1); os.close(2); time.sleep(1000)"
    assert behind_doors(code, SHORT).reason == "it ran longer than 0.6 s"


@pytest.mark.parametrize("stream", [1, 2])
def test_flooding(stream: int):
    done = behind_doors(f"while True: os.write({stream}, b'x' * 1000)")
    assert (done.status, done.reason) == (None, "it printed more than 20000 bytes")
    assert 20_000 in (len(done.stdout), len(done.stderr))


def test_a_flood_that_ends_at_once_is_told_too():
    done = run("print('x' * 30000)")
    assert done.reason == "it printed more than 20000 bytes"


MEMORY = {
    "its own": "bytearray(10**6)",
    "shared": "(page := mmap.mmap(-1, 10**6), page.write(bytes(10**6)))",
}


@linux
@pytest.mark.parametrize("kind", MEMORY)
def test_memory_bit_by_bit(kind: str):
    code = f"""
import mmap
kept = []
while True:
    try: kept.append({MEMORY[kind]})
    except (MemoryError, OSError): time.sleep(99)  # the grader has seen it by then
"""
    assert behind_doors(code).reason == "it used more than 256 MB of memory"


@linux
@pytest.mark.parametrize(
    "ask", ["bytearray(10**9)", "__import__('mmap').mmap(-1, 10**9)"]
)
def test_memory_all_at_once(ask: str):
    done = behind_doors(f"try: {ask}\nexcept (MemoryError, OSError): print('refused')")
    assert done.stdout == "refused\n"


@linux
def test_many_threads():
    code = """
threading.stack_size(65536)
while True:
    try: threading.Thread(target=time.sleep, args=(1000,)).start()
    except RuntimeError: time.sleep(0.01)
"""
    assert behind_doors(code).reason == "it started more than 64 threads"


@linux
@pytest.mark.parametrize(
    "ignoring", ["", "signal.signal(signal.SIGXCPU, signal.SIG_IGN)"]
)
def test_computing_for_too_long(ignoring: str):
    done = behind_doors(f"{ignoring}\nwhile True: pass", replace(SMALL, cpu_seconds=1))
    assert done.reason == "it computed for more than 1 CPU-seconds"


@posix
@pytest.mark.parametrize(
    "code, number",
    [
        ("ctypes.string_at(0)", signal.SIGSEGV),
        ("os.abort()", signal.SIGABRT),
        ("os.kill(os.getpid(), signal.SIGKILL)", signal.SIGKILL),
        (
            "sys.setrecursionlimit(10**9)\n"
            "class Deep:\n    def __repr__(self): return repr(self)\n"
            "repr(Deep())",
            signal.SIGSEGV,
        ),
    ],
    ids=["a null pointer", "abort", "kill itself", "stack overflow"],
)
def test_ended_by_a_signal(code: str, number: int):
    done = behind_doors(code)
    name = signal.strsignal(number)
    assert done.reason == f"it was ended by signal {number} ({name})"
    assert done.status is None


def test_leaving_without_a_word_is_seen_by_what_is_missing():
    assert behind_doors("os._exit(0)") == Finished(0, "", "", "")
    assert behind_doors("os._exit(7)").status == 7


@linux
def test_a_name_that_is_no_text_does_not_confuse_the_grader():
    code = r"libc.prctl(15, b'\xff\nThreads: 9', 0, 0, 0); time.sleep(1000)"
    assert behind_doors(code, SHORT).reason == "it ran longer than 0.6 s"


# --- What is left behind: nothing (these run with the doors open) ---------------------

ORPHANS = {
    "a child": "",
    "a session of its own": "os.setsid()",
    "a double fork": "os.setsid()\n    if os.fork(): os._exit(0)",
}


@linux
@pytest.mark.parametrize("how", ORPHANS)
@pytest.mark.parametrize("ending", ["print('done')", "time.sleep(1000)"])
def test_orphans_end(how: str, ending: str):
    mark = f"orphan-{os.getpid()}-{time.monotonic_ns()}"
    done = run(
        f"""
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    {ORPHANS[how] or "pass"}
    sleep = [sys.executable, "-c", "import time; time.sleep(99)", {mark!r}]
    os.execv(sys.executable, sleep)
time.sleep(0.2)
{ending}
""",
        SHORT if "sleep" in ending else SMALL,
    )
    assert done.reason == ("it ran longer than 0.6 s" if "sleep" in ending else "")
    assert wait_until_gone(mark) == []


@linux
def test_all_of_it_ends_with_the_grader():
    mark = f"left-{os.getpid()}-{time.monotonic_ns()}"
    code = f"""{LOAD}
command = [sys.executable, "-c", "import time; time.sleep(99)", {mark!r}]
sandbox.run_isolated(command, "", limits, sandbox.Path("/"))
"""
    arguments = [sys.executable, "-c", code, json.dumps(astuple(SMALL))]
    grader = subprocess.Popen(arguments)
    child = f"{sys.executable} -c import time"
    while not any(line.startswith(child) for line in processes_with(mark)):
        assert grader.poll() is None
        time.sleep(0.01)
    grader.kill()
    grader.wait()
    assert wait_until_gone(mark) == []


@linux
def test_an_interrupted_grader_leaves_nothing():
    mark = f"interrupted-{os.getpid()}-{time.monotonic_ns()}"
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.4)
    with pytest.raises(KeyboardInterrupt):
        run(f"import time; time.sleep(99)  # {mark}")
    signal.signal(signal.SIGALRM, before)
    assert wait_until_gone(mark) == []


# --- Where not all can be closed ------------------------------------------------------

ELSEWHERE = {
    "darwin": "only Linux can close doors",
    "win32": "on Windows nothing is closed",
    "linux": "no filter of system calls (none is written for riscv64)",
}


@posix
@pytest.mark.parametrize("system", ELSEWHERE)
def test_another_system_says_what_stays_open(system: str):
    code = f"import os, sys; sys.platform = {system!r}\n"
    code += "os.uname = lambda: os.uname_result(['', '', '', '', 'riscv64'])\n"
    code += "sys.modules['resource'] = None\n" * (system == "win32")
    imports, rest = LOAD.split("spec =")
    done = run(imports + code + "spec =" + rest + "print(sandbox.close_doors(limits))")
    assert ELSEWHERE[system] in done.stdout and done.reason == ""


# --- The filter, read for both machines -----------------------------------------------


def simulate(program: list, machine: int, number: int, *arguments: int) -> str:
    """What the kernel would answer: the four kinds of instruction, one at a time."""
    data = struct.pack(
        "<iIQ6Q", number, machine, 0, *arguments, *[0] * (6 - len(arguments))
    )
    place, loaded = 0, 0
    while True:
        code, then, otherwise, value = program[place]
        place += 1
        if code == 0x06:
            known = {0x80000000: "kill", 0x7FFF0000: "allow"}
            return known.get(value) or errno.errorcode[value & 0xFFFF]
        if code == 0x20:
            (loaded,) = struct.unpack_from("<I", data, value)
        else:
            truth = {0x15: loaded == value, 0x25: loaded > value}
            truth |= {0x35: loaded >= value, 0x45: bool(loaded & value)}
            place += then if truth[code] else otherwise


@pytest.mark.parametrize("machine", sandbox.MACHINES)
def test_the_filter_decides_as_it_should(machine: str):
    program = sandbox.build_filter(machine, 77)
    assert len(program) < 4096 and all(0 <= s[1] < 256 > s[2] >= 0 for s in program)
    n = sandbox.numbers(sandbox.ALLOWED + sandbox.SOMETIMES, machine)

    def ask(name: str, *arguments: int) -> str:
        return simulate(program, sandbox.MACHINES[machine], n[name], *arguments)

    assert {ask(name) for name in sandbox.numbers(sandbox.ALLOWED, machine)} == {
        "allow"
    }
    assert ask("openat", 0, 0, os.O_RDONLY | os.O_CLOEXEC) == "allow"
    for flags in (1, 2, 3, 0x40, 0x200, 0x400000 | 2):
        assert ask("openat", 0, 0, flags) == "EPERM"
    assert ask("clone", 0x3D0F00) == "allow" and ask("clone", 17) == "EPERM"
    for name in ("kill", "tgkill"):
        assert ask(name, 77) == "allow" and ask(name, 78) == "EPERM"
        assert ask(name, 2**64 - 1) == "EPERM"
    assert ask("prctl", 15) == "allow" and ask("prctl", 1) == "EPERM"
    assert ask("fcntl", 0, 3) == "allow" and ask("fcntl", 0, 8) == "EPERM"
    assert ask("ioctl", 0, 0x5401) == "allow" and ask("ioctl", 0, 0x5412) == "EPERM"
    assert ask("prlimit64", 0, 7, 0) == "allow"
    assert ask("prlimit64", 0, 7, 2**32) == ask("prlimit64", 0, 7, 1) == "EPERM"
    assert ask("clone3") == ask("openat2") == "ENOSYS"
    for other in (0x40000003, 0xC00000B7, 0xC000003E):
        if other != sandbox.MACHINES[machine]:
            assert simulate(program, other, n["read"]) == "kill"


HEADERS = {
    "x86_64": f"{MACHINE}-linux-gnu/asm/unistd_64.h",
    "aarch64": "asm-generic/unistd.h",
}


@pytest.mark.parametrize("machine", sandbox.MACHINES)
def test_the_numbers_are_the_kernels(machine: str):
    header = Path("/usr/include") / HEADERS[machine]
    if not header.exists():
        pytest.skip(f"the kernel's headers are not installed: no {header}")
    lines = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text())
    known = {name: int(number) for name, number in lines}
    known["newfstatat"] = known.get("newfstatat", known.get("fstatat", 0))
    listed = sandbox.numbers(sandbox.ALLOWED + sandbox.SOMETIMES + CALLS, machine)
    assert {name: known.get(name) for name in listed} == listed

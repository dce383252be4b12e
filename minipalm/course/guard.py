"""Let a learner's code run, and put the world back as it was."""

import builtins
import contextlib
import ctypes
import gc
import io
import math
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from types import FrameType, ModuleType
from typing import Any, TypeVar

import einops
import torch
import torch.nn.functional as F

# What a learner might replace, by mistake or to see what happens, as it is now.
LIBRARIES: dict[str, Any] = {
    "torch": torch,
    "torch.Tensor": torch.Tensor,
    "torch.nn": torch.nn,
    "torch.nn.Module": torch.nn.Module,
    "torch.nn.Linear": torch.nn.Linear,
    "torch.nn.LayerNorm": torch.nn.LayerNorm,
    "torch.nn.functional": F,
    "einops": einops,
    "math": math,
    "random": random,
    "builtins": builtins,
}
ORIGINALS = {name: dict(vars(library)) for name, library in LIBRARIES.items()}


OWN = {
    *("input", "exit", "quit"),  # a notebook's kernel puts in its own, again and again
    "Storage",  # follows the default type
}

T = TypeVar("T")
TraceFunction = Callable[[FrameType, str, Any], Any]


class TimeUp(BaseException):
    """Raised inside code that runs too long; no `except Exception` stops it."""


class Silence(io.TextIOBase):
    """Takes any text and keeps none."""

    def write(self, text: str) -> int:
        return len(text)


def restore_libraries() -> list[str]:
    """Undo replacements such as `torch.exp = ...`; gives the names of what was."""
    replaced = []
    for name, library in LIBRARIES.items():
        originals, now = ORIGINALS[name], vars(library)
        for key, original in originals.items():
            # modules and private names are filled in lazily, by the library itself
            if now.get(key) is original or key.startswith("_"):
                continue
            if key in OWN or isinstance(original, ModuleType):
                continue
            setattr(library, key, original)
            replaced.append(f"{name}.{key}")
        for key in [*now] if isinstance(library, type) else []:
            if key not in originals and not key.startswith("_"):
                delattr(library, key)  # it hid a method that is inherited
                replaced.append(f"{name}.{key}")
    return replaced


def within(seconds: float, function: Callable[[], T]) -> T:
    """function(), or TimeUp raised in it after `seconds`, and again until it ends.

    Again, since a bare `except:` catches it the first time. A signal also wakes code
    that sleeps; where there is none to have, a thread asks the interpreter.
    """

    def inside() -> T:
        return function()

    def is_inside(frame: FrameType | None) -> bool:
        while frame is not None and frame.f_code is not inside.__code__:
            frame = frame.f_back
        return frame is not None  # else it has ended: leave the caller alone

    rung: list[bool] = []

    def ring(_: int, frame: FrameType | None) -> None:
        if frame is None or not is_inside(frame):
            return
        if rung:  # an `except:` has caught the first: raise in what it does next, too
            frame.f_trace = again
            sys.settrace(again)
        rung.append(True)
        raise TimeUp

    def again(frame: FrameType, event: str, _: object) -> TraceFunction:
        if event == "line" and is_inside(frame):
            raise TimeUp  # this also ends the tracing
        return again

    main = threading.current_thread() is threading.main_thread()
    if main and hasattr(signal, "setitimer"):
        traced, begin = sys.gettrace(), time.monotonic()
        handler = signal.signal(signal.SIGALRM, ring)
        left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, 0.003)
        try:
            return inside()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            sys.settrace(traced)
            signal.signal(signal.SIGALRM, handler)
            if left:  # somebody else's alarm
                left = max(left - (time.monotonic() - begin), 1e-3)
                signal.setitimer(signal.ITIMER_REAL, left, interval)

    done, target = threading.Event(), threading.get_ident()
    interrupt = ctypes.pythonapi.PyThreadState_SetAsyncExc

    def watch() -> None:
        wait = seconds
        while not done.wait(wait):
            if is_inside(sys._current_frames().get(target)):
                interrupt(ctypes.c_ulong(target), ctypes.py_object(TimeUp))
            wait = 0.05

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        return inside()
    finally:
        done.set()
        watcher.join()
        interrupt(ctypes.c_ulong(target), None)  # one that has come too late


@contextlib.contextmanager
def usual_state() -> Iterator[None]:
    """float32 on the CPU with gradients inside, whatever a lesson has set; as before
    after it."""
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_default_device(None if device.type == "cpu" else device)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Nothing is printed, shown or warned about."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(contextlib.redirect_stdout(Silence()))
        stack.enter_context(contextlib.redirect_stderr(Silence()))
        if "ipykernel" in sys.modules:  # what display() shows goes another way
            from IPython.utils.capture import capture_output

            stack.enter_context(capture_output(stdout=False, stderr=False))
        yield


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Silence, the usual state, and all switches and random states as before."""
    torch_state, state = torch.get_rng_state(), random.getstate()
    depth, profiler = sys.getrecursionlimit(), sys.getprofile()
    threads, collecting = torch.get_num_threads(), gc.isenabled()
    anomaly = torch.is_anomaly_enabled()
    deterministic = torch.are_deterministic_algorithms_enabled()
    with silence(), usual_state():
        try:
            yield
        finally:
            torch.set_rng_state(torch_state)
            random.setstate(state)
            torch.use_deterministic_algorithms(deterministic)
            torch.autograd.set_detect_anomaly(anomaly)
            sys.setrecursionlimit(depth)
            sys.setprofile(profiler)
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
            (gc.enable if collecting else gc.disable)()

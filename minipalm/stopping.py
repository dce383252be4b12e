"""How a process that has others below it ends: on signals, and with its parent."""

import ctypes
import logging
import signal
import sys
import time
from contextlib import suppress
from types import FrameType
from typing import NoReturn

SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP")
    if hasattr(signal, name)
]


class Stopped(SystemExit):
    """A signal has asked this process to end.

    Where a rank's kernel dies, the others may notice first, and torchrun stops that
    rank before it has said why: so we look.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)
        self.time = time.time()  # before anything below it is told to end
        self.kernel_died = False
        if psutil := sys.modules.get("psutil"):
            with suppress(psutil.Error):  # it goes while we look
                states = [child.status() for child in psutil.Process().children()]
                self.kernel_died = psutil.STATUS_ZOMBIE in states


def stop_on_signals() -> None:
    """Turn Ctrl-C, SIGTERM and a closed terminal into SystemExit(128 + signal).

    So the notebook is saved and the kernel ended on the way out. Kernels live in a
    session of their own: no signal of a terminal or a batch system reaches them.
    """

    def stop(number: int, _: FrameType | None) -> NoReturn:
        ignore_signals()  # once is enough: saving must not be cut short
        logging.disable()  # nor shall libraries, about a kernel that went away
        raise Stopped(number)

    for each in SIGNALS:
        signal.signal(each, stop)


def ignore_signals() -> None:
    """This process is about to end, and shall not be cut short."""
    for each in SIGNALS:
        # not SIG_IGN: Python laments a signal that was already on its way
        signal.signal(each, lambda *_: None)


def die_with_parent(number: int = signal.SIGTERM) -> None:
    """Receive a signal when the parent dies, even by kill -9 (Linux has this)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, number)  # 1 is PR_SET_PDEATHSIG

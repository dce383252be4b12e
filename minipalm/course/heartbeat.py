"""Machines that run one job together: each learns within seconds that another is lost.

torchrun looks after the ranks of its own machine. Those of another, which went wrong
or went dark, are missed only by whoever waits for them in a collective, and over NCCL
for minutes. So the machines keep a small store between them, as torchrun does.
"""

import os
import signal
import threading
import time
from datetime import timedelta

SIGN = 1.0  # seconds between two signs of life
LOST = 20.0  # seconds without one
JOIN = timedelta(minutes=10)  # for the others to begin


class Heartbeat:
    """This machine's part. As a context it beats; `ended` says why others stopped.

    When another machine ends badly or is lost, this process gets SIGTERM.

    Args:
        host, port: of machine 0's store.
        number: of this machine.
        count: machines.
    """

    def __init__(self, host: str, port: int, number: int, count: int) -> None:
        self.host, self.port = host, port
        self.number, self.others = number, [n for n in range(count) if n != number]
        self.ended = ""
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Heartbeat":
        from torch.distributed import TCPStore

        self.store = TCPStore(
            self.host,
            self.port,
            is_master=self.number == 0,
            timeout=JOIN,
            wait_for_workers=False,
        )
        self.thread.start()
        return self

    def leave(self, reason: str = "") -> None:
        """Say that this machine has ended: badly, if there is a reason."""
        self.over.set()
        self.thread.join()
        try:
            if reason:
                self.store.set("ended", reason)
            self.store.set(f"left/{self.number}", "")
            deadline = time.monotonic() + 5 * SIGN
            while self.number == 0 and time.monotonic() < deadline:  # it has the store
                if all(self._left(n) or not self._signs(n) for n in self.others):
                    break
                time.sleep(0.1)
        except RuntimeError:  # the store is gone, so the others know
            pass

    def __exit__(self, *_: object) -> None:
        if not self.over.is_set():
            self.leave("a machine was stopped")

    def _signs(self, number: int) -> int:
        """How many signs of life a machine has given."""
        return self.store.add(f"signs/{number}", 0)

    def _left(self, number: int) -> bool:
        return self.store.check([f"left/{number}"])

    def _watch(self) -> None:
        seen = {n: (0, time.monotonic()) for n in self.others}
        while not self.over.wait(SIGN):
            try:
                self.store.add(f"signs/{self.number}", 1)
                if self.store.check(["ended"]):
                    self.ended = self.store.get("ended").decode()
                for n in self.others if self.number == 0 else []:
                    signs, since = self._signs(n), seen[n][1]
                    if signs != seen[n][0] or not signs or self._left(n):
                        seen[n] = signs, time.monotonic()
                    elif time.monotonic() - since > LOST:
                        self.ended = f"machine {n} is lost"
                        self.store.set("ended", self.ended)
            except RuntimeError:
                self.ended = "machine 0 is lost"
            if self.ended:
                os.kill(os.getpid(), signal.SIGTERM)  # torchrun ends its ranks
                return

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
JOIN = timedelta(minutes=10)  # for the others to begin, and to give their first
NO_STORE = "machine 0 is lost"  # and what the machines could say to each other


class Heartbeat:
    """This machine's part. As a context it beats; `ended` says why others stopped.

    When another machine ends badly or is lost, this process gets SIGTERM. The store
    lies on machine 0: if that goes dark, a question to it is never answered. So one
    thread asks, and another looks whether it has had an answer.

    Args:
        host, port: of machine 0's store.
        number: of this machine.
        count: machines.
    """

    def __init__(self, host: str, port: int, number: int, count: int) -> None:
        self.host, self.port = host, port
        self.number, self.others = number, [n for n in range(count) if n != number]
        self.seen = {n: (0, time.monotonic()) for n in self.others}
        self.lost: set[int] = set()  # as machine 0 found
        self.ended = self.reason = ""
        self.over = threading.Event()
        self.asking = threading.Thread(target=self._ask, daemon=True)
        self.looking = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Heartbeat":
        from torch.distributed import TCPStore

        self.store = TCPStore(
            self.host,
            self.port,
            is_master=self.number == 0,
            timeout=JOIN,
            wait_for_workers=False,
        )
        self.answered = time.monotonic()
        self.looking.start()
        self._give_a_sign()  # before any rank begins, here or elsewhere
        self.asking.start()
        return self

    def leave(self, reason: str = "") -> None:
        """Say that this machine has ended: badly, if there is a reason."""
        self.reason = reason
        self.over.set()
        if self.ended != NO_STORE:  # nobody would hear it
            self.asking.join(6 * SIGN)

    def __exit__(self, *_: object) -> None:
        if not self.over.is_set():
            self.leave("a machine was stopped")

    def _ask(self) -> None:
        try:
            while not self.over.wait(SIGN) and not self.ended:
                self._exchange()
                self.answered = time.monotonic()
            self.over.wait()
            self._say_goodbye()
        except RuntimeError:  # the store is gone
            if not self.over.is_set():
                self._stop(NO_STORE)

    def _give_a_sign(self) -> None:
        self.store.add(f"signs/{self.number}", 1)

    def _exchange(self) -> None:
        """Give a sign of life; hear whether another ended. Machine 0 counts signs."""
        self._give_a_sign()
        if self.store.check(["ended"]):
            self._stop(self.store.get("ended").decode())
        for n in self.others if self.number == 0 else []:
            signs, (before, since) = self.store.add(f"signs/{n}", 0), self.seen[n]
            patience = LOST if signs else JOIN.total_seconds()
            if signs != before or self.store.check([f"left/{n}"]):
                self.seen[n] = signs, time.monotonic()
            elif time.monotonic() - since > patience:
                self.store.set("ended", f"machine {n} is lost")
                self.lost.add(n)

    def _say_goodbye(self) -> None:
        """Leave a word for the others; machine 0, which has the store, waits a while
        for theirs, but not for those that are lost."""
        if self.reason:
            self.store.set("ended", self.reason)
        self.store.set(f"left/{self.number}", "")
        deadline = time.monotonic() + 5 * SIGN
        for n in self.others if self.number == 0 else []:
            here = self.seen[n][0] and n not in self.lost
            while here and not self.store.check([f"left/{n}"]):
                if time.monotonic() > deadline:
                    return
                time.sleep(0.1)

    def _look(self) -> None:
        while not self.over.wait(SIGN) and not self.ended:
            if time.monotonic() - self.answered > LOST:
                self._stop(NO_STORE)

    def _stop(self, reason: str) -> None:
        if not self.ended:
            self.ended = reason
            os.kill(os.getpid(), signal.SIGTERM)  # torchrun ends its ranks

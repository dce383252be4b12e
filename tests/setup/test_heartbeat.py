"""Heartbeat: which machines are missed, and when. `test_full.py` has whole runs."""

import os
import signal
import socket
import threading
import time
from datetime import timedelta

import pytest
from torch.distributed import TCPStore

from minipalm.course import heartbeat
from minipalm.course.heartbeat import Heartbeat


@pytest.fixture
def stopped(monkeypatch):
    """The signals that Heartbeat sent to this process, which does not get them."""
    sent = []
    monkeypatch.setattr(heartbeat.os, "kill", lambda *signal: sent.append(signal))
    return sent


@pytest.fixture
def machine(monkeypatch, stopped):
    """machine(number) -> one of two, at a port of their own; signs come quickly."""
    monkeypatch.setattr(heartbeat, "SIGN", 0.05)
    monkeypatch.setattr(heartbeat, "LOST", 1.0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return lambda number: Heartbeat("127.0.0.1", port, number, 2)


def wait_for(beat, seconds=15):
    """Until it knows that another ended. Returns the seconds that took."""
    begin = time.monotonic()
    while not beat.ended and time.monotonic() - begin < seconds:
        time.sleep(0.01)
    return time.monotonic() - begin


def test_a_machine_that_never_gave_a_sign_is_lost_when_all_should_have_begun(
    machine, stopped, monkeypatch
):
    monkeypatch.setattr(heartbeat, "JOIN", timedelta(seconds=3))
    with machine(0) as zero:
        assert wait_for(zero) > 2  # LOST is not for those who are still to come
        assert zero.ended == "machine 1 is lost"
        assert stopped == [(os.getpid(), signal.SIGTERM)]


def test_a_machine_that_begins_late_is_not_lost(machine, stopped):
    with machine(0) as zero:
        assert wait_for(zero, 3) > 2.9
        with machine(1) as one:
            assert wait_for(one, 2) > 1.9
            one.leave()
            assert wait_for(zero, 2) > 1.9  # nor one that has left
    assert not zero.ended and not one.ended and not stopped


def test_a_machine_has_given_a_sign_before_it_begins_its_ranks(machine, monkeypatch):
    monkeypatch.setattr(heartbeat, "SIGN", 2.0)
    with machine(0) as zero, machine(1):
        other = TCPStore(zero.host, zero.port, is_master=False)
        assert [other.add(f"signs/{n}", 0) for n in range(2)] == [1, 1]


def test_a_machine_that_gave_one_sign_and_no_more_is_lost(machine, stopped):
    with machine(0) as zero:
        other = TCPStore(
            zero.host, zero.port, is_master=False, timeout=timedelta(seconds=5)
        )
        other.add("signs/1", 1)
        assert 0.9 < wait_for(zero) < 10
        assert zero.ended == "machine 1 is lost" and len(stopped) == 1


def test_who_hears_that_another_ended_badly_says_its_reason(machine, stopped):
    with machine(0) as zero, machine(1) as one:
        one.leave("rank 1 ended by SIGKILL")
        wait_for(zero)
        assert zero.ended == "rank 1 ended by SIGKILL" and len(stopped) == 1


def seconds_to_leave(beat, monkeypatch):
    monkeypatch.setattr(heartbeat, "SIGN", 1.0)  # as it is: 5 seconds for a goodbye
    begin = time.monotonic()
    beat.leave(beat.ended)
    monkeypatch.setattr(heartbeat, "SIGN", 0.05)
    return time.monotonic() - begin


def test_nobody_waits_for_the_goodbye_of_a_machine_that_is_lost(
    machine, stopped, monkeypatch
):
    with machine(0) as zero:
        TCPStore(zero.host, zero.port, is_master=False).add("signs/1", 1)
        wait_for(zero)
        assert zero.ended == "machine 1 is lost"
        assert seconds_to_leave(zero, monkeypatch) < 3


def test_nobody_takes_leave_of_machine_0_when_that_is_lost(
    machine, stopped, monkeypatch
):
    with machine(0), machine(1) as one:
        answer = threading.Event()
        one._exchange = answer.wait  # a question that machine 0 never answers
        wait_for(one)
        assert one.ended == "machine 0 is lost" and len(stopped) == 1
        assert seconds_to_leave(one, monkeypatch) < 3
        answer.set()

"""Processes that cost no import: forked from a server that has no thread.

A fork of the tests' own process would copy locks that another thread holds.
"""

import multiprocessing

import pytest


def context():
    """Of multiprocessing; every test asks here, since the first decides what is loaded.

    AdamW imports dynamo when it is first used, which takes a second.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        pytest.skip("Windows cannot fork")
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(
        ["tests.train.worlds", "torch._dynamo", "tests.data.children"]
    )
    return found

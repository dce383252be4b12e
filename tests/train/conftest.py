"""Processes that may be killed, and cost no import."""

import multiprocessing
import os

import pytest


@pytest.fixture(scope="session")
def child():
    """child(function, *arguments) -> its exit code; wait=False: the started process."""
    if os.name == "nt":
        pytest.skip("Windows cannot fork")
    context = multiprocessing.get_context("forkserver")
    # AdamW imports dynamo when it is first used, which takes a second
    context.set_forkserver_preload(["tests.train.worlds", "torch._dynamo"])

    def start(function, *arguments, wait=True):
        process = context.Process(target=function, args=arguments)
        process.start()
        if not wait:
            return process
        process.join(60)
        assert process.exitcode in (0, -9), process.exitcode
        return process.exitcode

    return start

"""Processes that may be killed, and cost no import."""

import pytest

from tests import forked


@pytest.fixture(scope="session")
def child():
    """child(function, *arguments) -> its exit code; wait=False: the started process."""
    context = forked.context()

    def start(function, *arguments, wait=True):
        process = context.Process(target=function, args=arguments)
        process.start()
        if not wait:
            return process
        process.join(60)
        assert process.exitcode in (0, -9), process.exitcode
        return process.exitcode

    return start

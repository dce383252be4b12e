"""What tests of large inputs let happen in a process of its own."""

import os
import signal
import sys

from minipalm.data import datasets, files, lines, parquet, shards
from minipalm.data.corpus import token_stream
from minipalm.data.datasets import read_texts
from minipalm.data.lexicon import VOCABULARY
from minipalm.data.tokenizer import WordTokenizer

WORDS = WordTokenizer(VOCABULARY)
SMALL = (  # every file is large; blocks and parts are small
    (datasets, "LARGE", 0),
    (lines, "BLOCK", 3_000),
    (parquet, "BLOCK", 500),
    (shards, "PART", 4_000),
)


def make(path, folder):
    return token_stream(WORDS, read_texts(path), folder)


def make_until(step, path, folder):
    """Make the stream, and die at the step-th line of shards.py or files.py."""
    left = step

    def count(frame, event, _):
        nonlocal left
        if frame.f_code.co_filename not in (shards.__file__, files.__file__):
            return None
        left -= event == "line"
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return count

    prepare()
    sys.settrace(count)
    make(path, folder)


def prepare():
    for module, name, value in SMALL:
        setattr(module, name, value)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # no bars


def make_as_second(path, folder, noted):
    """Make the stream as the second of several processes; note its sum."""
    prepare()
    os.environ["RANK"] = "1"
    noted.write_text(str(int(make(path, folder).sum())))

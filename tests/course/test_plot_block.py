"""What the figures of lesson 05 show."""

import math

import pytest
from torch import nn

from minipalm.config import PaLMConfig
from minipalm.model.block import ParallelBlock, init_block
from minipalm.plot.block import spans, stream_by_depth, stream_sizes, timeline, work

CONFIG = PaLMConfig(1, dim=8, depth=1, heads=2, head_dim=4, ff_mult=3)


def lasts(way):
    return max(end for *_, end in way)


def test_the_operations_are_those_of_the_matrices():
    ops = work(CONFIG, tokens=5)
    block = ParallelBlock(CONFIG)
    assert ops["q k v"] + ops["gate up"] == 2 * 5 * block.w_in.weight.numel()
    assert ops["out"] == 2 * 5 * block.w_attention.weight.numel()
    assert ops["down"] == 2 * 5 * block.w_feedforward.weight.numel()


def test_the_parallel_block_saves_calls_and_an_exchange_and_no_work():
    free, calls, both = (
        spans(CONFIG, 5, rate=10.0, overhead=o, exchange=e)
        for o, e in ((0.0, 0.0), (7.0, 0.0), (7.0, 3.0))
    )
    assert lasts(free["serial"]) == pytest.approx(lasts(free["parallel"]))
    saved = lasts(calls["serial"]) - lasts(calls["parallel"])
    assert saved == pytest.approx(2 * 7.0)  # a norm and a product
    saved = lasts(both["serial"]) - lasts(both["parallel"])
    assert saved == pytest.approx(2 * 7.0 + 3.0)


def test_two_queues_wait_for_the_longer_one():
    way = spans(CONFIG, 5, rate=10.0, overhead=1.0, exchange=4.0)[
        "parallel, two queues"
    ]
    ends = {name: end for name, _, _, end in way}
    assert ends["sum"] == max(ends["out"], ends["down"]) + 4.0
    assert "sum" not in {
        name for name, *_ in spans(CONFIG, 5, 10.0, 1.0)["parallel, two queues"]
    }


def test_the_division_keeps_the_stream_and_its_lack_does_not():
    kept = stream_sizes(ParallelBlock, init_block, 32)
    grown = stream_sizes(ParallelBlock, lambda b, _, g: init_block(b, 1, g), 32)
    assert len(kept) == 33 and kept[0] == grown[0]
    assert kept[-1] < 1.6 * kept[0]
    assert grown[-1] > 3 * grown[0]


def test_a_tower_that_is_no_number_is_said_to_be_none():
    class NoNorm(ParallelBlock):
        def __init__(self, config):
            super().__init__(config)
            self.norm = nn.Identity()

    sizes = stream_sizes(NoNorm, lambda b, _, g: init_block(b, 1, g), 12)
    assert not math.isfinite(sizes[-1])
    figure = stream_by_depth({"broken": sizes, "flat": [1.0] * 13})
    title = figure.get_suptitle().replace("\n", " ")
    assert title == "The stream after 12 blocks: broken no number, flat 1"
    assert len(figure.png()) < 60_000


def test_the_timeline_says_what_is_saved():
    title = timeline(dim=64, tokens=1, overhead=50.0, rate=1e9).get_suptitle()
    assert "D = 64, 1 token: the parallel block takes 71\u00a0%" in title

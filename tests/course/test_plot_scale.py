"""The figures of lesson 16: what they say is what the planner says."""

from dataclasses import replace

import pytest
import torch

from minipalm.config import get_preset
from minipalm.model.palm import count_parameters
from minipalm.plot.scale import (
    attention_curve,
    attention_share,
    bill,
    decode_curve,
    memory_bars,
    percent,
    plan_and_truth,
    ratio_spread,
    survival_curve,
    training_curves,
    wire_curve,
)
from minipalm.scale.decoding import decode_floor
from minipalm.scale.flops import training_flops
from minipalm.scale.gpu import GIB, GPUS
from minipalm.scale.measured import read_results, settings_of
from minipalm.scale.plan import plan
from minipalm.scale.rounding import surviving_share
from minipalm.scale.sharding import fsdp_traffic
from minipalm.scale.stages import networks

PRESET = get_preset("full")
POLICY, _ = networks(PRESET)
SMALL = 60_000  # bytes


def title(figure):
    return " ".join(figure.get_suptitle().replace("\u00a0", " ").split())


def test_attentions_share_is_what_is_left_without_the_weights():
    share = attention_share(training_flops, POLICY, 2048)
    weights = 6 * count_parameters(POLICY)
    assert share == pytest.approx(1 - weights / training_flops(POLICY, 2048))
    figure = attention_curve(training_flops, {"policy": POLICY}, 2048)
    assert title(figure) == "In rows of 2,048 tokens attention is 0.97 % in the policy"


def test_bars_say_what_fits():
    ways = {
        "small": {"weights": 10.0 * GIB, "moments": 5.0 * GIB},
        "large": {"weights": 90.0 * GIB},
    }
    figure = memory_bars(ways, GPUS["a100-80g"], "Two ways")
    assert title(figure) == "Two ways: what fits into 79 GiB is small"
    none = memory_bars({"large": ways["large"]}, GPUS["8g"], "One way")
    assert title(none).endswith("is nothing")
    assert len(figure.png()) < SMALL
    edge = {"edge": {"weights": 50.0 * GIB, "activations": 20.0 * GIB}}
    assert title(memory_bars(edge, GPUS["a100-80g"], gpus=1)).endswith("is edge")
    two = title(memory_bars(edge, GPUS["a100-80g"], gpus=2))
    assert two.endswith("is nothing; tight: edge")


def test_ratios_are_said_with_their_spread_and_what_is_clipped():
    quiet, blurred = torch.ones(100), torch.linspace(0.9, 1.1, 100)
    blurred[0] = 1.5
    figure = ratio_spread({"recomputed": quiet, "reused": blurred}, 0.2)
    assert "recomputed 0, reused 0.08; at most 1 % of the" in title(figure)
    assert len(figure.png()) < SMALL


def test_the_wire_is_a_share_of_wire_and_products():
    gpu, weights = GPUS["h200"], count_parameters(POLICY)
    figure = wire_curve(training_flops, fsdp_traffic, POLICY, weights, gpu, 2)
    wire = fsdp_traffic(weights, weights, 2) / gpu.link
    products = 2048 * training_flops(POLICY, 2048) / gpu.flops
    assert f"{percent(wire / (wire + products))} of a step of one row" in (
        figure.get_suptitle().replace("\n", " ")
    )


@pytest.mark.parametrize("rows, what", [(1, "reading"), (1024, "computing")])
def test_the_floor_says_which_of_the_two_takes_longer(rows, what):
    figure = decode_curve(decode_floor, POLICY, GPUS["h200"], rows, 192)
    assert f"({what} takes longer)" in title(figure)


def test_survival_is_the_share_that_the_exercise_gives():
    weights = 0.02 * torch.randn(2000, generator=torch.Generator().manual_seed(0))
    figure = survival_curve(surviving_share, weights, 1e-6)
    assert "a learning rate of 1e-06" in title(figure)
    bfloat, exact = (line.get_ydata() for line in figure.axes[0].lines[:2])
    assert list(bfloat) == sorted(bfloat) and set(exact[8:]) == {1.0}


def test_curves_end_where_the_title_says():
    figure = training_curves({"float32": [2.0, 1.0], "bfloat16": [2.0, 1.9]})
    assert title(figure) == "Loss after 2 steps: float32 1.000, bfloat16 1.900"


def test_the_bill_names_what_does_not_fit():
    gpu = GPUS["a100-80g"]
    stages = plan(PRESET, gpu, 8)
    figure = bill(stages, gpu, 8)
    hours = sum(8 * one.hours for one in stages)
    assert title(figure).startswith(f"8 × A100 SXM 80G: {hours:,.0f} GPU-hours")
    assert "too large" not in title(figure) and len(figure.png()) < SMALL
    short = replace(gpu, memory=20 * GIB)
    assert "too large: 06 pretraining, 06 trunk, 07 SFT" in title(
        bill(stages, short, 8)
    )


def test_every_measurement_has_its_dot():
    results = read_results()
    figure = plan_and_truth(results)
    dots = figure.axes[0].collections[-1].get_offsets()
    assert len(dots) == len(settings_of(results))
    assert title(figure).startswith(f"{len(dots)} ways to train: off by at most")

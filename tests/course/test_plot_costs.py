"""What a method costs: medians of its updates, a table, and bars."""

import json

import pytest

from minipalm.plot.costs import cost, costs_figure, costs_table
from tests.course.test_plot_methods import SMALL, title

CLOCKED = [
    {"seconds": 60.0, "seconds/reference": 6.0, "seconds/update": 50.0, "memory": 9.5},
    {"seconds": 4.0, "seconds/update": 3.0, "memory": 12.0},
    {"seconds": 6.0, "seconds/update": 5.0, "memory": 11.0},
]


def test_an_update_takes_the_median_and_memory_is_the_most():
    """What is read once is shared out: 6 seconds of reading, over three updates."""
    assert cost(CLOCKED, 256, wall=100.0) == {
        "updates": 3,
        "answers": 256,
        "seconds": 6.0 + 2.0,
        "phases": {"reference": 2.0, "update": 5.0},
        "memory": 12.0,
    }


def test_where_no_clock_ran_the_whole_time_is_shared_out():
    told = cost([{"loss": 1.0}, {"loss": 0.5}], 128, wall=3.0)
    assert told["seconds"] == 1.5 and told["phases"] == {} and told["memory"] is None
    assert cost([{"loss": 1.0}], 128)["seconds"] is None
    assert cost([], 128, wall=3.0)["seconds"] is None


def some_costs():
    judged = {"proxy": 0.5, "kl": 1.25, "gold": None}
    return {
        "sft": {"updates": 0, **judged},
        "dpo": {**cost(CLOCKED, 64), **judged},
        "ppo": {**cost([{**row, "seconds": 15.0} for row in CLOCKED], 256), **judged},
        "best_of_n": {"n": 16, "updates": 0, "proxy": 0.9, "kl": 1.8},
    }


def test_the_table_has_a_line_a_method_and_dashes_for_what_is_unknown():
    head, sft, best, ppo, dpo, *phases = costs_table(some_costs()).splitlines()
    assert head.split() == "updates answers s/update GiB proxy kl gold".split()
    assert sft.split() == ["SFT", "0", "–", "–", "–", "0.50", "1.25", "–"]
    assert best.startswith("best of 16")
    assert ppo.split()[:5] == ["PPO", "3", "256", "17.00", "12.0"]
    assert dpo.split()[:5] == ["DPO", "3", "64", "8.00", "12.0"]
    assert [line.split() for line in phases[2:]] == [
        ["reference", "update"],
        ["PPO", "2.00", "5.00"],
        ["DPO", "2.00", "5.00"],
    ]


def test_there_are_no_phases_where_no_clock_ran():
    costs = {"dpo": cost([{"loss": 1.0}], 64, wall=2.0)}
    assert len(costs_table(costs).splitlines()) == 2


def test_bars_add_up_to_an_answers_share_and_the_title_compares_the_ends():
    figure = costs_figure(some_costs())
    assert title(figure) == "An answer takes DPO 1.9 times as long as PPO"
    bars = [bar for bar in figure.axes[0].patches if bar.get_width()]
    for y, each in ((0, 17e3 / 256), (1, 8e3 / 64)):
        mine = [bar for bar in bars if round(bar.get_y() + bar.get_height() / 2) == y]
        assert sum(bar.get_width() for bar in mine) == pytest.approx(each)
    assert len(figure.png()) < SMALL


def test_a_run_whose_methods_were_all_resumed_has_a_figure_without_bars():
    figure = costs_figure({"dpo": cost([{"loss": 1.0}], 64, wall=None)})
    assert title(figure) == "No time is known: every method was resumed"


def test_costs_survive_a_file():
    assert json.loads(json.dumps(some_costs())) == some_costs()

"""Figures of lesson 00: what their titles claim is what the data say."""

import pytest

from minipalm.plot.start import NETWORKS, Said, four_networks, proxy_and_gold, said

SIZES = {"policy": 1000, "reference": 1000, "reward model": 300, "critic": 300}
ROWS = [
    {"step": step, "score": 0.1 * step, "gold": 7.0 - 0.05 * (step - 10) ** 2}
    for step in range(1, 31)
]


def texts(figure):
    return [one.get_text() for ax in figure.axes for one in ax.texts]


def test_the_title_counts_all_networks_and_those_that_learn():
    figure = four_networks(SIZES)
    assert figure.get_suptitle().replace("\n", " ") == (
        "Four networks, 2,600 parameters: PPO trains 1,300 of them, those of policy"
        " and critic"
    )
    for name in NETWORKS:
        assert name in texts(figure)
    assert (
        texts(figure).count("300, frozen") == texts(figure).count("300, trained") == 1
    )


def test_only_what_has_happened_is_shown():
    figure = proxy_and_gold(ROWS, 8)
    for ax in figure.axes:
        assert max(max(line.get_xdata(orig=False)) for line in ax.lines) == 8
        assert ax.get_xlim()[1] > 30  # and it is seen that there is more to come
    assert figure.get_suptitle().startswith("After iteration 8 the proxy is at 0.8 sd")
    whole = proxy_and_gold(ROWS, 99)
    assert whole.get_suptitle().startswith("After iteration 30 ")


def test_without_gold_there_is_one_panel():
    rows = [{key: row[key] for key in ("step", "score")} for row in ROWS]
    figure = proxy_and_gold(rows, 5)
    assert len(figure.axes) == 1 and "gold" not in figure.get_suptitle()


@pytest.mark.parametrize("until", [1, 30])
def test_the_axes_stay_while_the_slider_moves(until):
    limits = [ax.get_ylim() for ax in proxy_and_gold(ROWS, until).axes]
    assert limits == [ax.get_ylim() for ax in proxy_and_gold(ROWS, 15).axes]


def test_the_table_holds_answers_and_leaves_unknown_numbers_out():
    page = said(
        "sad :", [Said("SFT", "a < b", 1.25, None), Said("PPO", "", -0.04, 7.0)]
    )
    assert "a &lt; b" in page and "(nothing)" in page
    assert ">1.2<" in page and ">0.0<" in page and ">7.0<" in page

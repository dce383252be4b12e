"""Figures of lesson 01: what their titles claim is what the data say."""

import pytest
import torch

from minipalm.data.gold import bayes_accuracy, preference
from minipalm.plot.tokens import (
    authors,
    cut,
    labeller,
    lines_of,
    pieces_a_word,
    shown,
    token_grid,
)


def texts(figure):
    return [one.get_text() for ax in figure.axes for one in ax.texts]


def title(figure):
    return figure.get_suptitle().replace("\n", " ")


def test_spaces_are_seen_and_odd_bytes_have_numbers():
    assert shown(b" fox") == "·fox"
    assert shown("é".encode()) == "é"
    assert shown("é".encode()[:1]) == "<c3>"


def test_every_piece_stands_once_in_order_and_on_its_line():
    pieces = ["abc", "de", "f", "ghij", "k"]
    lines = lines_of(pieces, width=6)
    assert [number for line in lines for number, _ in line] == list(range(5))
    assert lines == [[(0, 0), (1, 3), (2, 5)], [(3, 0), (4, 4)]]


def test_the_cut_counts_bytes_and_pieces():
    figure = cut([b"the", b" fo", b"x"], 12)
    assert title(figure) == "With 12 merges 7 bytes are 3 pieces, 2.3 bytes each"
    assert texts(figure) == ["the", "·fo", "x"]


def test_the_curve_says_where_half_of_the_way_is():
    figure = pieces_a_word({0: 5.0, 10: 4.0, 20: 2.5, 30: 1.0})
    assert title(figure) == (
        "A word is 5.0 pieces without merges and 1.0 after 30; half of the way is done"
        " by 20"
    )


def test_the_grid_counts_the_places_that_count():
    words = [["<pad>", "a", "<eos>"], ["a", "b", "<eos>"]]
    counted = torch.tensor([[False, True, True], [True, True, True]])
    assert title(token_grid(words, counted)).startswith("5 of 6 places")
    figure = token_grid(words, counted, divide=1, title="mine")
    assert title(figure) == "mine" and "answers begin" in texts(figure)


@pytest.mark.parametrize("temperature", [0.1, 0.8, 4.0])
def test_the_labellers_title_is_the_bayes_accuracy(temperature):
    golds_a, golds_b = [7.0, 5.0, 3.0], [6.0, 6.5, 9.5]
    figure = labeller(preference, bayes_accuracy, golds_a, golds_b, temperature)
    best = bayes_accuracy(golds_a, golds_b, temperature)
    assert f"wins {best:.0%} of these 3 pairs" in title(figure)
    curve = figure.axes[0].lines[0].get_ydata()
    assert curve[0] == 0.5 and all(a <= b for a, b in zip(curve, curve[1:]))


def test_the_authors_means_are_in_the_title():
    figure = authors({"sloppy": [6.0, 7.0], "careful": [8.0, 9.0]})
    assert title(figure).endswith("sloppy 6.5, careful 8.5")

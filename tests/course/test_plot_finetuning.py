"""The data behind the figures of lesson 07."""

import torch

from minipalm.plot.finetuning import answer_lengths, questions, response_view
from minipalm.rlhf.sft import fill_rows

ROWS = fill_rows([[([1, 5], [6, 2]), ([1], [7, 2])]], 9)
WORDS = ["<bos>", "say", "hi", "<eos>", "<bos>", "ho", "<eos>", "<pad>", "<pad>"]


def test_the_last_token_of_a_prompt_is_asked_for_the_first_of_the_response():
    asked = questions(WORDS, ROWS.segments[0], ROWS.mask[0])
    assert [one[2] for one in asked] == [
        "",
        "hi",
        "<eos>",
        "",
        "ho",
        "<eos>",
        "",
        "",
        "",
    ]
    kinds = ["prompt"] * 2 + ["response"] * 2 + ["prompt"] + ["response"] * 2
    assert [one[0] for one in asked] == [*kinds, "padding", "padding"]
    assert asked[-1][1] == ""  # padding is blank


def test_the_title_counts_examples_and_tokens():
    figure = response_view(WORDS, ROWS.segments[0], ROWS.mask[0])
    title = figure.get_suptitle().replace("\n", " ")
    assert title == "2 examples in 9 places: 4 tokens are asked for, 3 are only read"


def test_the_share_of_answers_that_end_is_in_the_title():
    lengths = {"right": torch.tensor([3, 5, 4]), "broken": [6, 6, 6]}
    ended = {"right": [True] * 3, "broken": [False, False, True]}
    figure = answer_lengths(lengths, ended, limit=6)
    title = figure.get_suptitle().replace("\n", " ")
    assert "themselves: 100% with “right”, 33% with “broken”" in title

"""Perplexity against cross-entropy, diversity at its ends, pairs of one prompt."""

import pytest
import torch
import torch.nn.functional as F

from minipalm.evaluate.judge import rows_by_prompt, same_prompt_pairs
from minipalm.evaluate.texts import distinct_n, perplexity


def test_perplexity_is_the_exponential_of_cross_entropy():
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 7, generator=draw)
    ids = torch.randint(7, (3, 5), generator=draw)
    mask = torch.arange(5) < torch.tensor([[5], [2], [3]])
    logprobs = logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    expected = F.cross_entropy(logits[mask], ids[mask]).exp().item()
    assert perplexity(logprobs, mask) == pytest.approx(expected, rel=1e-5)


def test_perplexity_of_equally_likely_tokens_is_their_number():
    logprobs = torch.full((2, 3), 1 / 11).log()
    mask = torch.tensor([[True] * 3, [True, False, False]])
    assert perplexity(logprobs, mask) == pytest.approx(11, rel=1e-5)


def test_texts_without_a_repetition_are_wholly_distinct_and_copies_are_not():
    assert distinct_n(["a b c d", "e f"], 2) == 1
    assert distinct_n(["a b c"] * 10, 2) == 0.1


def test_pairs_ask_the_same_and_no_row_is_in_two_of_them():
    prompts = ["a", "b", "a", "c", "b", "a", "a"]
    assert rows_by_prompt(prompts) == {"a": [0, 2, 5, 6], "b": [1, 4], "c": [3]}
    assert same_prompt_pairs(prompts).tolist() == [[0, 2], [5, 6], [1, 4]]
    assert same_prompt_pairs(["a", "b"]).shape == (0, 2)

"""Length bias against multiple regression, and its removal."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minipalm.evaluate.length import (
    LengthEffect,
    length_effect,
    residuals,
    within,
    without_length,
)


def answers(seed, n=60, pay=0.1, better=0.8):
    draw = torch.Generator().manual_seed(seed)
    gold = 6 + 1.5 * torch.randn(n, generator=draw)
    noise = 3 * torch.randn(n, generator=draw)
    lengths = (15 + better * (gold - 6) + noise).round()
    scores = 0.5 * gold + pay * lengths + 0.4 * torch.randn(n, generator=draw)
    return scores, lengths.long(), gold


@pytest.mark.parametrize("seed", range(5))
def test_the_slope_is_that_of_a_regression_on_gold_and_length(seed):
    scores, lengths, gold = answers(seed, pay=0.1 * seed - 0.2)
    X = np.stack([np.ones(len(gold)), gold.numpy(), lengths.numpy()], axis=1)
    found, *_ = np.linalg.lstsq(X.astype(float), scores.numpy().astype(float))
    assert length_effect(scores, lengths, gold).slope == pytest.approx(found[2])


@pytest.mark.parametrize("seed", range(5))
def test_the_correlation_is_the_partial_one_of_textbooks(seed):
    scores, lengths, gold = answers(seed)
    r = np.corrcoef(np.stack([scores, lengths, gold]).astype(float))
    above = r[0, 1] - r[0, 2] * r[1, 2]
    below = np.sqrt((1 - r[0, 2] ** 2) * (1 - r[1, 2] ** 2))
    ours = length_effect(scores, lengths, gold).correlation
    assert ours == pytest.approx(above / below)


def test_an_honest_score_of_answers_that_are_better_where_longer_is_not_blamed():
    scores, lengths, gold = answers(0, n=4000, pay=0.0, better=2.0)
    pooled = torch.corrcoef(torch.stack([scores, lengths.float()]))[0, 1]
    assert pooled > 0.4
    assert abs(length_effect(scores, lengths, gold).correlation) < 0.05


@given(st.floats(-2, 2), st.floats(0, 30))
def test_what_was_found_is_taken_off(pay, usual):
    scores, lengths, gold = answers(1, pay=pay)
    effect = length_effect(scores, lengths, gold)
    repaired = without_length(scores, lengths, effect.slope, usual)
    assert length_effect(repaired, lengths, gold).slope == pytest.approx(0, abs=1e-5)


def test_an_answer_of_usual_length_keeps_its_score():
    scores = torch.tensor([0.3, 0.3, 0.3])
    fixed = without_length(scores, torch.tensor([16, 17, 15]), 0.5, 16.0)
    assert fixed.tolist() == pytest.approx([0.3, -0.2, 0.8])


def test_where_nothing_is_left_nothing_is_found():
    gold = torch.tensor([1.0, 2.0, 4.0, 7.0])
    assert length_effect(3 * gold, torch.arange(4), gold) == LengthEffect(0.0, 0.0)
    assert length_effect(torch.rand(4), 2 * gold, gold) == LengthEffect(0.0, 0.0)
    assert residuals(gold, torch.ones(4)).tolist() == (gold - 3.5).tolist()


def test_two_answers_are_too_few():
    with pytest.raises(ValueError, match="three answers"):
        length_effect(torch.zeros(2), torch.ones(2), torch.zeros(2))


def test_pairs_of_nearly_equal_length_are_found():
    first, second = torch.tensor([3, 9, 5, 7]), torch.tensor([4, 2, 5, 9])
    assert within(first, second, 1).tolist() == [0, 2]
    assert within(first, second, 0).tolist() == [2]

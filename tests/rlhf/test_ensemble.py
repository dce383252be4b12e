"""Ensembles against numpy, and what they must keep to."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from minipalm.rlhf.ensemble import (
    all_scores,
    ensemble_mean,
    ensemble_reward,
    uncertainty_weighted,
    worst_case,
)
from minipalm.rlhf.reward import RewardModel
from tests.small import ragged, seeded, small_palm

tables = arrays.arrays(
    np.float64,
    st.tuples(st.integers(1, 6), st.integers(1, 7)),
    elements=st.floats(-9, 9),
)


@given(tables, st.floats(0, 3))
def test_the_three_ways_agree_with_numpy(table, caution):
    scores = torch.tensor(table)
    assert ensemble_mean(scores).numpy() == pytest.approx(table.mean(0))
    assert worst_case(scores).numpy() == pytest.approx(table.min(0))
    weighted = table.mean(0) - caution * table.var(0)
    assert uncertainty_weighted(scores, caution).numpy() == pytest.approx(weighted)


@given(tables)
def test_where_all_agree_they_all_say_the_same(table):
    scores = torch.tensor(table[:1]).repeat(4, 1)
    for way in (ensemble_mean, worst_case, uncertainty_weighted):
        assert way(scores).numpy() == pytest.approx(table[0])


def test_a_negative_caution_is_refused():
    with pytest.raises(ValueError, match="0 or more"):
        uncertainty_weighted(torch.ones(2, 2), -0.1)


def test_a_reward_of_several_is_made_of_each_ones_scores():
    members = [RewardModel(small_palm(k), "mean", seeded(k)) for k in range(3)]
    answers = ragged([2, 4], [3, 5])
    each = torch.stack([member(*answers) for member in members])
    scores = all_scores(members, *answers)
    assert scores.shape == (3, 2) and not scores.requires_grad
    torch.testing.assert_close(scores, each.detach())
    reward = ensemble_reward(members, worst_case)
    assert reward(*answers).tolist() == pytest.approx(each.amin(0).tolist())


def test_no_member_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        ensemble_reward([], ensemble_mean)

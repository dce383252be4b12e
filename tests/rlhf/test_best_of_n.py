"""Best of n: the pick, its distance, and the estimator, against enumeration."""

import itertools
import math

import pytest
import torch

from minipalm.model.generate import generate
from minipalm.rlhf.best_of_n import (
    best_of_n,
    best_of_n_estimate,
    best_of_n_kl,
    pick_best,
)
from tests.small import EOS, ragged, seeded, small_palm


def law_of_best(probabilities, scores, n):
    """P(best of n = i) by summing over all n-tuples; of equals, the first drawn."""
    law = torch.zeros(len(scores), dtype=torch.float64)
    for drawn in itertools.product(range(len(scores)), repeat=n):
        best = max(drawn, key=lambda i: scores[i])  # max keeps the first of equals
        law[best] += math.prod(probabilities[i] for i in drawn)
    return law


@pytest.mark.parametrize(
    "n, kl", [(1, 0), (2, 0.1931), (4, 0.6363), (16, 1.8351), (64, 3.1745)]
)
def test_the_known_distances(n, kl):
    assert best_of_n_kl(n) == pytest.approx(kl, abs=1e-4)


def test_no_answers_are_refused():
    with pytest.raises(ValueError, match=r"n must be 1 or more \(got 0\)"):
        best_of_n_kl(0)


def test_four_equally_probable_answers_are_less_far_than_the_formula():
    law = law_of_best([0.25] * 4, [1, 2, 3, 4], 4)
    kl = (law * (law / 0.25).log()).sum().item()
    assert kl == pytest.approx(0.5903, abs=1e-4) and kl < best_of_n_kl(4)


def test_ties_only_bring_the_law_nearer():
    p = [0.1, 0.2, 0.3, 0.4]
    laws = [law_of_best(p, scores, 3) for scores in ([1, 2, 3, 4], [1, 2, 2, 2])]
    kls = [(law * (law / torch.tensor(p)).log()).sum().item() for law in laws]
    assert kls[1] < kls[0] < best_of_n_kl(3)


def test_the_formula_is_exact_in_the_limit_of_many_answers():
    N, n = 200_000, 8
    grid = torch.arange(N + 1, dtype=torch.float64) / N
    law = grid[1:] ** n - grid[:-1] ** n  # the best of n among N without ties
    kl = (law * (law * N).log()).nansum().item()
    assert kl == pytest.approx(best_of_n_kl(n), abs=1e-4)


def mean_over_choices(proxy, values, n):
    """The definition; equal proxies are each the best equally often."""
    means = []
    for chosen in itertools.combinations(range(len(proxy)), n):
        top = max(proxy[i] for i in chosen)
        best = [values[i] for i in chosen if proxy[i] == top]
        means.append(sum(best) / len(best))
    return sum(means) / len(means)


@pytest.mark.parametrize("n", range(1, 8))
@pytest.mark.parametrize("ties", [False, True])
def test_the_estimate_is_the_mean_over_all_choices(n, ties):
    proxy = torch.randn(7, generator=seeded(1))
    if ties:
        proxy = torch.tensor([2.0, 1.0, 2.0, 0.0, 2.0, 1.0, 3.0])
    values = torch.randn(7, generator=seeded(2))
    found = best_of_n_estimate(proxy, values, n)
    wanted = mean_over_choices(proxy.tolist(), values.tolist(), n)
    assert found.item() == pytest.approx(wanted, abs=1e-9)


def test_the_known_example_is_sorted_by_proxy():
    """.4333 = mean over all 6 pairs."""
    values = torch.tensor([0.3, 0.9, 0.1, 0.5])
    found = best_of_n_estimate(torch.arange(4.0), values, 2)
    assert found.item() == pytest.approx(0.433333, abs=1e-6)


def test_all_equal_proxies_give_the_mean():
    values = torch.randn(9, generator=seeded())
    for n in (1, 4, 9):
        found = best_of_n_estimate(torch.ones(9), values, n)
        assert found.item() == pytest.approx(values.mean().item(), abs=1e-6)


def test_thousands_of_answers_do_not_overflow():
    proxy = torch.randn(12_600, generator=seeded())
    found = best_of_n_estimate(proxy, torch.ones(12_600), 1000)
    assert found.item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("n", [0, 4])
def test_more_than_there_are_cannot_be_chosen(n):
    with pytest.raises(ValueError, match="number of answers, 3"):
        best_of_n_estimate(torch.ones(3), torch.ones(3), n)


def test_of_equal_scores_the_first_is_kept():
    scores = torch.tensor([[1.0, 3, 3], [2, 0, 1], [0, 0, 0]])
    assert pick_best(scores).tolist() == [1, 0, 0]


def test_the_answer_with_the_best_score_of_each_prompt_is_kept():
    policy, (prompts, prompt_mask, _, _) = small_palm(), ragged([2, 4, 3], [1, 1, 1])
    seen = []

    def reward(prompts, prompt_mask, responses, mask):
        seen.append((prompts, responses, mask))
        return (responses * mask).sum(1).float()

    best = best_of_n(
        policy,
        reward,
        prompts,
        prompt_mask,
        5,
        max_response=6,
        eos_id=EOS,
        generator=seeded(),
    )
    ((asked, responses, mask),) = seen
    for b in range(3):
        rows = range(5 * b, 5 * b + 5)
        assert all(torch.equal(asked[row], prompts[b]) for row in rows)
        sums = [(responses[row] * mask[row]).sum().item() for row in rows]
        row = 5 * b + sums.index(max(sums))
        assert best.scores[b] == max(sums)
        assert torch.equal(best.responses[b], responses[row])
        assert torch.equal(best.mask[b], mask[row])
    assert len(set(best.scores.tolist())) > 1


def test_best_of_one_is_the_policy_itself():
    prompts, prompt_mask, _, _ = ragged([2, 4], [1, 1])
    asked = dict(eos_id=EOS, generator=seeded(3))
    best = best_of_n(
        small_palm(),
        lambda *tokens: tokens[2].sum(1),
        prompts,
        prompt_mask,
        1,
        max_response=4,
        **asked,
    )
    asked = dict(eos_id=EOS, generator=seeded(3))
    told = generate(small_palm(), prompts, prompt_mask, max_new_tokens=4, **asked)
    assert torch.equal(best.responses, told.responses)
    assert torch.equal(best.mask, told.mask)

"""DPO: whole answers' log-probabilities, and the loss of pairs."""

import math

import pytest
import torch

from minipalm.rlhf.dpo import (
    dpo_loss,
    implicit_rewards,
    pair_logprobs,
    reference_logprobs,
    sequence_logprobs,
)
from minipalm.rlhf.pairs import Pairs
from tests.small import other_padding, ragged, seeded, small_palm


def by_hand(policy, tokens):
    """Token by token, each row alone and without padding."""
    found = []
    for prompt, seen, response, kept in zip(*tokens):
        asked, told = prompt[seen].tolist(), response[kept].tolist()
        total = 0.0
        for t, token in enumerate(told):
            ids = torch.tensor([asked + told[:t]])
            total += policy(ids)[0, -1].double().log_softmax(0)[token].item()
        found.append(total)
    return torch.tensor(found)


def some_pairs():
    """Prompts, better and worse answers of unequal lengths."""
    prompts, prompt_mask, chosen, chosen_mask = ragged([3, 1, 4], [2, 5, 1])
    _, _, rejected, rejected_mask = ragged([3, 1, 4], [4, 1, 5], seed=1)
    return Pairs(prompts, prompt_mask, chosen, chosen_mask, rejected, rejected_mask)


def test_an_answers_logprob_is_the_sum_of_its_tokens():
    policy, tokens = small_palm(), ragged([3, 1, 4], [2, 5, 1])
    found = sequence_logprobs(policy, *tokens)
    torch.testing.assert_close(found, by_hand(policy, tokens), rtol=1e-4, atol=1e-4)


def test_padding_changes_neither_logprob_nor_gradient():
    policy, tokens = small_palm(), ragged([3, 1, 4], [2, 5, 1])
    results = []
    for one in (tokens, other_padding(tokens)):
        policy.zero_grad()
        found = sequence_logprobs(policy, *one)
        found.sum().backward()
        results.append((found, policy.embedding.weight.grad.clone()))
    (one, grad), (other, same) = results
    assert torch.equal(one, other) and torch.equal(grad, same)


def test_a_pair_has_the_logprobs_that_its_answers_have_alone():
    policy, pairs = small_palm(), some_pairs()
    chosen, rejected = pair_logprobs(policy, pairs)
    asked = pairs.prompts, pairs.prompt_mask
    for found, answers in (
        (chosen, (pairs.chosen, pairs.chosen_mask)),
        (rejected, (pairs.rejected, pairs.rejected_mask)),
    ):
        wanted = by_hand(policy, (*asked, *answers))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_the_references_logprobs_are_worked_out_once_and_carry_no_gradient():
    reference, pairs = small_palm(), some_pairs()
    once = reference_logprobs(reference, pairs, batch_size=2)
    for found, wanted in zip(once, pair_logprobs(reference, pairs)):
        assert not found.requires_grad and found.shape == (3,)
        torch.testing.assert_close(found, wanted.detach())


def test_the_known_losses():
    two = torch.tensor([-8.0]), torch.tensor([-14.0])
    ref = torch.tensor([-10.0]), torch.tensor([-12.0])
    assert dpo_loss(*two, *ref, beta=0.5).item() == pytest.approx(0.1269, abs=1e-4)
    smooth = dpo_loss(*two, *ref, beta=0.5, label_smoothing=0.1)
    assert smooth.item() == pytest.approx(0.3269, abs=1e-4)
    for beta, smoothing in ((0.1, 0.0), (3.0, 0.3)):
        tie = dpo_loss(*ref, *ref, beta=beta, label_smoothing=smoothing)
        assert tie.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_equals_a_loop(smoothing):
    chosen, rejected, ref_chosen, ref_rejected = 5 * torch.randn(
        4, 6, generator=seeded()
    )
    total = 0.0
    for n in range(6):
        gained = chosen[n].item() - ref_chosen[n].item()
        lost = rejected[n].item() - ref_rejected[n].item()
        p = 1 / (1 + math.exp(-0.3 * (gained - lost)))
        total -= (1 - smoothing) * math.log(p) + smoothing * math.log(1 - p)
    found = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, 0.3, smoothing)
    assert found.item() == pytest.approx(total / 6, rel=1e-5)


def test_the_gradient_goes_to_the_policy_only_and_is_that_of_the_paper():
    """−β σ(−Δ) for the better answer, the same with + for the worse."""
    inputs = [torch.randn(5, generator=seeded(n)).requires_grad_() for n in range(4)]
    dpo_loss(*inputs, beta=0.7).backward()
    chosen, rejected, ref_chosen, ref_rejected = inputs
    delta = 0.7 * (chosen - ref_chosen - rejected + ref_rejected)
    wanted = 0.7 * torch.sigmoid(-delta).detach() / 5
    torch.testing.assert_close(chosen.grad, -wanted)
    torch.testing.assert_close(rejected.grad, wanted)
    assert ref_chosen.grad is None and ref_rejected.grad is None


def test_answers_far_apart_have_a_finite_loss():
    far, zero = torch.tensor([-1000.0]), torch.zeros(1)
    loss = dpo_loss(far, zero, zero, zero, beta=1.0)
    assert loss.item() == pytest.approx(1000)


def test_smoothing_has_its_least_loss_at_a_finite_distance():
    gained = torch.tensor([math.log(0.9 / 0.1)]).requires_grad_()
    zero = torch.zeros(1)
    dpo_loss(gained, zero, zero, zero, beta=1.0, label_smoothing=0.1).backward()
    assert gained.grad.item() == pytest.approx(0, abs=1e-6)


def test_the_implicit_reward_of_the_best_policy_is_the_reward_up_to_a_constant():
    reward, ref = torch.randn(2, 8, generator=seeded())
    ref, beta = ref.log_softmax(0), 0.4
    best = (ref + reward / beta).log_softmax(0)
    off = implicit_rewards(best, ref, beta) - reward
    torch.testing.assert_close(off, off.mean().expand(8))

"""RLOO and GRPO: advantages and losses against loops, and what answers are kept."""

import math
from dataclasses import replace

import pytest
import torch

from minipalm.config import GroupConfig
from minipalm.model.generate import generate
from minipalm.rlhf.group import (
    collect_groups,
    group_loss,
    grpo_advantages,
    grpo_loss,
    rloo_advantages,
    rloo_loss,
)
from minipalm.rlhf.invariants import InvariantError, switched_off
from minipalm.rlhf.kl import k1
from minipalm.rlhf.logprobs import response_logits, token_logprobs
from tests.small import EOS, other_padding, ragged, seeded, small_palm


def config(**changes):
    sizes = dict(method="rloo", iterations=1, batch_size=6, group_size=3)
    more = dict(minibatch_size=4, epochs=2, lr=1e-3, kl_coef=0.3)
    return GroupConfig(**{**sizes, **more, **changes})


# --- advantages -----------------------------------------------------------------------

REWARDS = torch.tensor([[1.0, 2.0, 6.0], [-1.0, 0.5, 0.0]])


def test_the_known_advantages():
    assert rloo_advantages(REWARDS)[0].tolist() == [-3, -1.5, 4.5]
    found = grpo_advantages(REWARDS)[0].tolist()
    assert found == pytest.approx([-0.7559, -0.3780, 1.1338], abs=1e-3)
    assert grpo_advantages(REWARDS, divide_by_std=False)[0].tolist() == [-2, -1, 3]


def test_rloo_equals_a_loop_that_leaves_one_out():
    rewards = torch.randn(4, 5, generator=seeded())
    found = rloo_advantages(rewards)
    for n in range(4):
        for i in range(5):
            others = [rewards[n, j].item() for j in range(5) if j != i]
            wanted = rewards[n, i].item() - sum(others) / 4
            assert found[n, i].item() == pytest.approx(wanted, abs=1e-5)


def test_grpo_equals_a_loop_over_groups():
    rewards = torch.randn(4, 5, generator=seeded())
    found = grpo_advantages(rewards)
    for row, wanted in zip(rewards.tolist(), found.tolist()):
        mean = sum(row) / 5
        std = math.sqrt(sum((r - mean) ** 2 for r in row) / 4)
        assert [(r - mean) / (std + 1e-4) for r in row] == pytest.approx(
            wanted, abs=1e-4
        )


def test_leaving_one_out_is_the_mean_of_all_on_another_scale():
    centred = grpo_advantages(REWARDS, divide_by_std=False)
    torch.testing.assert_close(rloo_advantages(REWARDS), centred * 3 / 2)


def test_dividing_by_the_spread_gives_a_cheap_prompt_as_much_say_as_a_dear_one():
    rewards = torch.tensor([[0.0, 10.0], [0.0, 0.1]])
    sizes = grpo_advantages(rewards).abs().amax(1)
    assert sizes[0].item() == pytest.approx(sizes[1].item(), rel=2e-3)
    plain = rloo_advantages(rewards).abs().amax(1)
    assert plain[0] == pytest.approx(100 * plain[1].item(), rel=1e-5)


def test_equal_rewards_teach_nothing():
    rewards = torch.full((2, 4), 3.0)
    for found in (rloo_advantages(rewards), grpo_advantages(rewards)):
        assert torch.equal(found, torch.zeros(2, 4))


@pytest.mark.parametrize("advantages", [rloo_advantages, grpo_advantages])
def test_a_group_of_one_is_refused(advantages):
    with pytest.raises(ValueError, match=r"a group needs 2 answers or more.*got 1"):
        advantages(torch.ones(3, 1))


@pytest.mark.parametrize("advantages", [rloo_advantages, grpo_advantages])
def test_advantages_are_constants_and_add_up_to_nothing(advantages):
    rewards = REWARDS.clone().requires_grad_()
    found = advantages(rewards)
    assert not found.requires_grad
    assert found.sum(1).tolist() == pytest.approx([0, 0], abs=1e-5)


def test_leaving_one_out_moves_no_expectation_and_the_mean_of_all_does():
    """Exact gradient of E r, by summing over all triples of a 3-sided die."""
    theta = torch.tensor([0.2, -0.4, 0.1], dtype=torch.float64, requires_grad=True)
    r = torch.tensor([1.0, 3.0, -2.0], dtype=torch.float64)
    logp = theta.log_softmax(0)
    (exact,) = torch.autograd.grad((logp.exp() * r).sum(), theta, retain_graph=True)
    expected = {rloo_advantages: 1.0, lambda x: grpo_advantages(x, False): 2 / 3}
    for advantages, scale in expected.items():
        loss = torch.zeros((), dtype=torch.float64)
        for i in range(3):
            for j in range(3):
                for k in range(3):
                    drawn = torch.tensor([i, j, k])
                    chance = logp[drawn].sum().exp().detach()
                    A = advantages(r[drawn][None])[0]
                    loss = loss + chance * (A * logp[drawn]).mean()
        (found,) = torch.autograd.grad(loss, theta, retain_graph=True)
        torch.testing.assert_close(found, scale * exact)


# --- losses ---------------------------------------------------------------------------


def batch():
    generator = seeded()
    logprobs = -torch.rand(6, 5, generator=generator) - 0.1
    old = logprobs + 0.15 * torch.randn(6, 5, generator=generator)
    ref = logprobs + 0.3 * torch.randn(6, 5, generator=generator)
    advantages = torch.tensor([1.0, -1.0, 2.0, -0.5, 0.7, -2.0])
    mask = torch.arange(5) < torch.tensor([5, 5, 2, 3, 1, 4])[:, None]
    return logprobs.requires_grad_(), old, ref, advantages, mask


def test_the_known_losses():
    now = torch.tensor([[0.1, 0.1], [0.1, 0.1]]) - 2
    old, kept = torch.full((2, 2), -2.0), torch.ones(2, 2, dtype=torch.bool)
    good, bad = (
        rloo_loss(now[:1], old[:1], torch.tensor([A]), kept[:1]) for A in (1.0, -1.0)
    )
    assert (good.item(), bad.item()) == pytest.approx((-1.2, 1.2214), abs=1e-4)

    same = torch.full((2, 4), -1.0)
    mask = torch.tensor([[True, False, False, False], [True] * 4])
    constants = same, same, torch.tensor([1.0, -1.0]), mask
    assert grpo_loss(same, *constants, 0.0).item() == pytest.approx(0)
    assert grpo_loss(same, *constants, 0.0, length=4).item() == pytest.approx(0.375)


def test_rloo_equals_a_loop_over_answers():
    logprobs, old, _, advantages, mask = batch()
    losses, clipped = [], 0
    for b in range(6):
        rho = 1.0
        for t in range(5):
            if mask[b, t]:
                rho *= math.exp(logprobs[b, t].item() - old[b, t].item())
        inside = min(max(rho, 0.8), 1.2)
        clipped += inside != rho
        A = advantages[b].item()
        losses.append(-min(rho * A, inside * A))
    found = rloo_loss(logprobs, old, advantages, mask)
    assert 0 < clipped < 6
    assert found.item() == pytest.approx(sum(losses) / 6, rel=1e-5)


@pytest.mark.parametrize("length", [None, 5])
def test_grpo_equals_a_loop_over_tokens(length):
    logprobs, old, ref, advantages, mask = batch()
    losses = []
    for b in range(6):
        total, count = 0.0, 0
        for t in range(5):
            if mask[b, t]:
                now, A = logprobs[b, t].item(), advantages[b].item()
                rho = math.exp(now - old[b, t].item())
                gain = min(rho * A, min(max(rho, 0.8), 1.2) * A)
                off = ref[b, t].item() - now
                total += 0.1 * (math.exp(off) - off - 1) - gain
                count += 1
        losses.append(total / (length or count))
    found = grpo_loss(logprobs, old, ref, advantages, mask, 0.1, length=length)
    assert found.item() == pytest.approx(sum(losses) / 6, rel=1e-5)


def both_losses(logprobs, old, ref, advantages, mask):
    yield rloo_loss(logprobs, old, advantages, mask)
    yield grpo_loss(logprobs, old, ref, advantages, mask, 0.1)


@pytest.mark.parametrize("which", [0, 1])
def test_only_the_policy_gets_a_gradient_and_only_at_the_answers_tokens(which):
    logprobs, *constants, mask = batch()
    constants = [x.requires_grad_() for x in constants]
    list(both_losses(logprobs, *constants, mask))[which].backward()
    assert all(x.grad is None for x in constants)
    assert (logprobs.grad[~mask] == 0).all() and (logprobs.grad[mask] != 0).any()


@pytest.mark.parametrize("which", [0, 1])
def test_padding_may_hold_anything(which):
    logprobs, old, ref, advantages, mask = batch()
    wanted = list(both_losses(logprobs, old, ref, advantages, mask))[which]
    junk = [torch.where(mask, x, 7.0).detach() for x in (logprobs, old, ref)]
    found = list(both_losses(*junk, advantages, mask))[which]
    assert found.item() == wanted.item()


def test_rloos_first_step_is_reinforce():
    logprobs, _, _, advantages, mask = batch()
    rloo_loss(logprobs, logprobs.detach(), advantages, mask).backward()
    wanted = torch.where(mask, -advantages[:, None] / 6, 0.0)
    torch.testing.assert_close(logprobs.grad, wanted)


def test_grpos_own_length_makes_tokens_of_long_answers_count_less():
    now = torch.full((2, 4), -1.0, requires_grad=True)
    mask = torch.tensor([[True, False, False, False], [True] * 4])
    constants = now.detach(), now.detach(), -torch.ones(2), mask
    grpo_loss(now, *constants, 0.0).backward()
    short, long = now.grad[:, 0].tolist()
    assert short == pytest.approx(4 * long)  # a bad answer is punished less if long
    now.grad = None
    grpo_loss(now, *constants, 0.0, length=4).backward()
    assert now.grad[0, 0] == now.grad[1, 0]


# --- answers --------------------------------------------------------------------------


def reward(prompts, prompt_mask, responses, mask):
    return (responses * mask).sum(1) / 7.0


def groups_of(policy, reference, sample=generate, **changes):
    prompts, prompt_mask, _, _ = ragged([2, 4], [1, 1])
    return prompts, collect_groups(
        policy,
        reference,
        reward,
        prompts,
        prompt_mask,
        config=config(**changes),
        max_response=9,
        eos_id=EOS,
        generator=seeded(),
        sample=sample,
    )


def test_answers_that_cannot_be_right_are_refused():
    policy = small_palm()
    with pytest.raises(InvariantError, match="memory"):
        groups_of(policy, policy)
    with switched_off():
        groups_of(policy, policy)

    def unlike(*args, **options):  # what it notes is not the law that it drew from
        told = generate(*args, **options)
        return replace(told, logprobs=1.1 * told.logprobs)

    with pytest.raises(InvariantError, match="another log-probability than before"):
        groups_of(policy, small_palm(1), sample=unlike)


@pytest.mark.parametrize("method", ["rloo", "grpo"])
def test_answers_to_a_prompt_stand_side_by_side_with_their_numbers(method):
    policy, reference = small_palm(), small_palm(1)
    prompts, groups = groups_of(policy, reference, method=method)
    assert torch.equal(groups.prompts, prompts.repeat_interleave(3, 0))
    for model, found in ((policy, groups.logprobs), (reference, groups.ref_logprobs)):
        with torch.no_grad():
            logits = response_logits(model, *groups.tokens)
        wanted = token_logprobs(logits, groups.responses).where(groups.mask, 0)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    finished = ((groups.responses == EOS) & groups.mask).any(1)
    assert finished.any() and not finished.all()
    scores = reward(*groups.tokens) - 1.0 * ~finished
    torch.testing.assert_close(groups.scores, scores)
    kl = k1(groups.logprobs, groups.ref_logprobs).sum(1)
    if method == "rloo":  # the KL is in the reward
        wanted = rloo_advantages((scores - 0.3 * kl).view(2, 3))
    else:
        wanted = grpo_advantages(scores.view(2, 3))
    torch.testing.assert_close(groups.advantages, wanted.flatten())
    assert not any(x.requires_grad for x in vars(groups).values())


@pytest.mark.parametrize("method", ["rloo", "grpo"])
def test_the_loss_of_groups_is_that_of_its_method_whatever_the_padding(method):
    policy, reference = small_palm(), small_palm(1)
    _, groups = groups_of(small_palm(2), reference, method=method)
    grads = []
    for tokens in (groups.tokens, other_padding(groups.tokens)):
        some = type(groups)(*tokens, *list(vars(groups).values())[4:])
        policy.zero_grad()
        loss, logprobs = group_loss(policy, some, config(method=method))
        loss.backward()
        grads.append([weight.grad.clone() for weight in policy.parameters()])
        constants = logprobs, groups.logprobs, groups.ref_logprobs
        if method == "rloo":
            wanted = rloo_loss(*constants[:2], groups.advantages, groups.mask)
        else:
            wanted = grpo_loss(*constants, groups.advantages, groups.mask, 0.3)
        assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
        assert not logprobs.requires_grad
    assert all(torch.equal(*pair) for pair in zip(*grads))


@pytest.mark.parametrize(
    "change, said",
    [
        ({"method": "ppo"}, "method must be 'rloo' or 'grpo' \\(got 'ppo'\\)"),
        ({"group_size": 1}, "group_size must be 2 or more"),
        ({"group_size": 4}, "batch_size a multiple of it \\(got 4 and 6\\)"),
    ],
)
def test_impossible_settings_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        config(**change)

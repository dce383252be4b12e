"""PPO's losses by hand and by loop; its update by counting and by comparing steps."""

import copy
import math
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

import minipalm.rlhf.ppo as ppo
from minipalm.rlhf.kl import k3
from minipalm.rlhf.logprobs import entropy, response_logits, token_logprobs
from minipalm.rlhf.ppo import minibatches, policy_loss, ppo_update, value_loss
from minipalm.rlhf.rollout import collect
from minipalm.train.optim import adamw, set_lr
from tests.small import (
    EOS,
    gradients,
    other_padding,
    ppo_config,
    ragged,
    seeded,
    small_critic,
    small_palm,
)

RATIOS = torch.tensor([[1.5, 0.5, 1.5, 0.5]])
ADVANTAGES = torch.tensor([[1.0, 1.0, -1.0, -1.0]])


def lengths_reward(prompts, prompt_mask, responses, mask):
    return mask.sum(1).float()


def a_rollout(policy, critic, n=8, **config):
    """From a real rollout, with a reference that is another network."""
    prompts, prompt_mask, *_ = ragged([3, 1, 5, 2, 4, 1, 5, 3][:n], [1] * n)
    return collect(
        policy,
        small_palm(7),
        critic,
        lengths_reward,
        prompts,
        prompt_mask,
        config=ppo_config(**config),
        max_response=7,
        eos_id=EOS,
        kl_coef=0.1,
        generator=seeded(1),
    )


def update(policy, critic, rollout, lr=1e-3, **config):
    """One ppo_update; the optimizers stand outside of it, as in the loop."""
    optimizers = adamw(policy, eps=1e-5), adamw(critic, eps=1e-5)
    for optimizer in optimizers:
        set_lr(optimizer, lr)
    return ppo_update(
        policy, critic, rollout, *optimizers, ppo_config(**config), seeded(3)
    )


# --- losses ------------------------------------------------------------------------


def test_the_policy_loss_has_its_known_values():
    """Property 40."""
    for ratio, advantage, expected in zip(
        RATIOS[0], ADVANTAGES[0], [-1.2, -0.5, 1.5, 0.8]
    ):
        one = torch.ones(1, 1)
        loss = policy_loss(
            ratio.log() * one, 0 * one, advantage * one, one.bool(), clip=0.2
        )
        assert loss.item() == pytest.approx(expected)
    loss = policy_loss(RATIOS.log(), 0 * RATIOS, ADVANTAGES, RATIOS > 0)
    assert loss.item() == pytest.approx((-1.2 - 0.5 + 1.5 + 0.8) / 4)


def test_the_gradient_is_0_exactly_where_the_clipped_branch_wins():
    """Property 40."""
    logprobs = RATIOS.log().requires_grad_()
    policy_loss(logprobs, 0 * RATIOS, ADVANTAGES, RATIOS > 0).backward()
    # d(−ρA)/d log π = −ρA, over four tokens; the first and the last are clipped.
    expected = [0, -0.5 / 4, 1.5 / 4, 0]
    assert logprobs.grad[0].tolist() == pytest.approx(expected)


def policy_loss_by_loop(logprobs, old, advantages, mask, clip):
    losses = []
    for b, t in mask.nonzero().tolist():
        ratio = math.exp(logprobs[b, t] - old[b, t])
        a = advantages[b, t].item()
        clipped = min(max(ratio, 1 - clip), 1 + clip)
        losses.append(max(-ratio * a, -clipped * a))
    return sum(losses) / len(losses)


def value_loss_by_loop(values, old, returns, mask, clip):
    losses = []
    for b, t in mask.nonzero().tolist():
        v, before, r = (x[b, t].item() for x in (values, old, returns))
        clipped = min(max(v, before - clip), before + clip)
        losses.append(0.5 * max((v - r) ** 2, (clipped - r) ** 2))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("clip", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("lengths", [[6, 1, 3, 4], [6, 6, 6, 6]])
def test_both_losses_equal_a_loop_over_the_tokens_of_the_mask(clip, lengths):
    """Properties 38, 40 and 41."""
    *_, mask = ragged([1] * 4, lengths)
    new, old, target = torch.randn(3, 4, mask.shape[1], generator=seeded())
    new, old = 0.3 * new, 0.3 * old
    for loss, by_loop in [
        (policy_loss, policy_loss_by_loop),
        (value_loss, value_loss_by_loop),
    ]:
        expected = by_loop(new, old, target, mask, clip)
        assert loss(new, old, target, mask, clip).item() == pytest.approx(
            expected, abs=1e-6
        )
        total = int(mask.sum()) * 2  # a micro-batch is half of its minibatch, say
        half = loss(new, old, target, mask, clip, total).item()
        assert half == pytest.approx(expected / 2, abs=1e-6)


def test_the_value_loss_has_its_known_value_and_its_gradient():
    """Property 38."""
    one = torch.ones(1, 1)
    loss = value_loss(one, 0.5 * one, 1.2 * one, one.bool())  # ε is .2
    assert loss.item() == pytest.approx(0.125)
    # Past the clip on the way to R the gradient is 0; past it on the wrong side not.
    for value, expected in [(1.0, 0.0), (0.6, -0.6), (0.2, -1.0)]:
        v = torch.full((1, 1), value, requires_grad=True)
        value_loss(v, 0.5 * one, 1.2 * one, one.bool(), 0.2).backward()
        assert v.grad.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("garbage", [50.0, float("nan")])
@pytest.mark.parametrize("loss", [policy_loss, value_loss])
def test_what_stands_in_the_padding_changes_neither_loss_nor_gradient(loss, garbage):
    """Properties 3 and 34."""
    *_, mask = ragged([1] * 4, [6, 1, 3, 4])
    tensors = torch.randn(3, 4, 6, generator=seeded()) / 5
    results = []
    for filler in (0.0, garbage):
        new, old, target = torch.where(mask, tensors, filler)
        new = torch.where(mask, tensors[0], 0.0).requires_grad_()
        value = loss(new, old, target, mask)
        value.backward()
        results.append((value.item(), new.grad[mask]))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])


# --- the first step ----------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("micro_batch", [0, 3])
def test_in_the_first_minibatch_the_ratio_is_1_and_nothing_is_clipped(
    temperature, micro_batch
):
    """Properties 7, 11 and 12, from a real rollout.

    In float32 the sampler's cached pass and the update's whole pass differ by at most
    4e-6 nats a token (measured, also at toy size), so ratios are 1 to 1e-5.
    """
    policy, critic = small_palm(), small_critic()
    rollout = a_rollout(policy, critic, temperature=temperature)
    stats = update(
        policy,
        critic,
        rollout,
        epochs=1,
        minibatch_size=8,
        micro_batch=micro_batch,
        temperature=temperature,
    )
    assert stats.steps == 1
    assert stats.ratio == pytest.approx(1, abs=1e-6)
    assert stats.approx_kl == pytest.approx(0, abs=1e-9)
    assert stats.clip_fraction == 0
    assert stats.policy_loss == pytest.approx(0, abs=1e-5)  # advantages are whitened
    with torch.no_grad():
        logits = response_logits(small_palm(), *rollout.tokens) / temperature
    logprobs = token_logprobs(logits, rollout.responses)
    ratio = (logprobs - rollout.logprobs).exp()[rollout.mask]
    assert (ratio - 1).abs().max() < 1e-5


def test_with_lr_0_the_ratio_is_1_in_every_epoch_and_no_weight_moves():
    """Property 12."""
    policy, critic = small_palm(), small_critic()
    before = copy.deepcopy((policy.state_dict(), critic.state_dict()))
    rollout = a_rollout(policy, critic)
    stats = update(policy, critic, rollout, lr=0.0, epochs=3, minibatch_size=3)
    assert stats.steps == 9
    assert stats.ratio == pytest.approx(1, abs=1e-6)
    assert stats.clip_fraction == 0 and stats.approx_kl < 1e-9
    for old, new in zip(before, (policy.state_dict(), critic.state_dict())):
        assert all(torch.equal(old[name], new[name]) for name in old)


def test_the_policy_in_training_mode_gives_the_logprobs_of_sampling():
    """Property 10."""
    policy, critic = small_palm(), small_critic()
    rollouts = [
        a_rollout(model(policy), model(critic))
        for model in (torch.nn.Module.train, torch.nn.Module.eval)
    ]
    assert torch.equal(rollouts[0].logprobs, rollouts[1].logprobs)
    assert torch.equal(rollouts[0].values, rollouts[1].values)


# --- steps -------------------------------------------------------------------------


class Counting(torch.optim.SGD):
    """An optimizer that writes down how often it steps."""

    steps = 0

    def step(self):
        super().step()
        self.steps += 1


@pytest.mark.parametrize(
    "epochs, minibatch_size, micro_batch, steps",
    [
        (2, 4, 0, 4),
        (2, 4, 1, 4),
        (3, 8, 2, 3),
        (1, 1, 0, 8),
        (2, 3, 2, 6),
        (1, 99, 5, 1),
    ],
)
def test_there_are_epochs_times_minibatches_steps(
    epochs, minibatch_size, micro_batch, steps
):
    """Property 43: counted, and not changed by gradient accumulation."""
    policy, critic = small_palm(), small_critic()
    rollout = a_rollout(policy, critic)
    counting = [Counting(m.parameters(), lr=1e-3) for m in (policy, critic)]
    config = ppo_config(
        epochs=epochs, minibatch_size=minibatch_size, micro_batch=micro_batch
    )
    stats = ppo_update(policy, critic, rollout, *counting, config, seeded())
    assert [one.steps for one in counting] == [steps, steps]
    assert stats.steps == steps


@contextmanager
def gradients_of_steps():
    """What the update would clip and step by, one list a network and step."""
    seen = []

    def keep(weights, limit):
        seen.append([weight.grad.clone() for weight in weights])
        return torch.tensor(0.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ppo, "clip_grad_norm_", keep)
        yield seen


def update_with(policy, critic, rollout, config):
    optimizers = adamw(policy), adamw(critic)
    return ppo_update(policy, critic, rollout, *optimizers, config, seeded())


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 5])
def test_micro_batches_of_unequal_lengths_give_the_gradient_of_the_minibatch(
    micro_batch,
):
    """Property 42: one token count for the whole minibatch."""
    results = []
    for size in (0, micro_batch):
        policy, critic = small_palm(), small_critic()
        rollout = a_rollout(small_palm(1), small_critic(1))  # off-policy: ratios vary
        assert len(set(rollout.mask.sum(1).tolist())) > 2
        config = ppo_config(
            minibatch_size=8, epochs=1, micro_batch=size, entropy_coef=0.1
        )
        with gradients_of_steps() as seen:
            stats = update_with(policy, critic, rollout, config)
        results.append((seen, stats))
    (whole, stats), (parts, same) = results
    assert len(whole) == len(parts) == 2
    for network in (0, 1):
        for one, other in zip(whole[network], parts[network]):
            torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-3)
    for name, value in vars(stats).items():
        assert getattr(same, name) == pytest.approx(value, abs=1e-5), name


def test_the_first_gradient_is_that_of_the_documented_objective():
    """Properties 37, 38, 40 and 42: against the losses in one line each."""
    policy, critic = small_palm(), small_critic()
    rollout = a_rollout(small_palm(1), small_critic(1))
    by_hand = small_palm(), small_critic()
    mask = rollout.mask
    logits = response_logits(by_hand[0], *rollout.tokens)
    logprobs = logits.log_softmax(-1).gather(-1, rollout.responses[..., None])[..., 0]
    ratio = (logprobs - rollout.logprobs).exp()
    gain = torch.minimum(
        ratio * rollout.advantages, ratio.clamp(0.8, 1.2) * rollout.advantages
    )
    (-gain[mask].mean() - 0.1 * entropy(logits)[mask].mean()).backward()
    values = by_hand[1](*rollout.tokens)
    nearer = rollout.values + (values - rollout.values).clamp(-0.2, 0.2)
    error = torch.maximum(
        (values - rollout.returns) ** 2, (nearer - rollout.returns) ** 2
    )
    (error[mask].mean() / 2).backward()

    config = ppo_config(minibatch_size=8, epochs=1, entropy_coef=0.1)
    with gradients_of_steps() as seen:
        stats = update_with(policy, critic, rollout, config)
    assert stats.policy_loss == pytest.approx(-gain[mask].mean().item(), rel=1e-4)
    assert stats.value_loss == pytest.approx(error[mask].mean().item() / 2, rel=1e-4)
    for network, grads in zip(by_hand, seen):
        for one, weight in zip(grads, network.parameters()):
            torch.testing.assert_close(one, weight.grad, atol=1e-5, rtol=1e-3)


def test_the_padding_of_a_rollout_changes_no_step():
    """Properties 3 and 34."""
    rollout = a_rollout(small_palm(), small_critic())
    prompts, _, responses, _ = other_padding(rollout.tokens)
    garbage = replace(rollout, prompts=prompts, responses=responses)
    weights = []
    for one in (rollout, garbage):
        policy, critic = small_palm(), small_critic()
        update(policy, critic, one)
        weights.append([*policy.parameters(), *critic.parameters()])
    assert not torch.equal(garbage.responses, rollout.responses)
    assert all(torch.equal(one, other) for one, other in zip(*weights))


def test_policy_and_critic_do_not_move_each_other():
    """Property 37."""
    rollout = a_rollout(small_palm(), small_critic())
    weights = []
    for flip in (1, -1):
        policy, critic = small_palm(), small_critic()
        update(policy, critic, replace(rollout, returns=flip * rollout.returns))
        weights.append((policy.state_dict(), critic.state_dict()))
    (policy, critic), (same, other) = weights
    assert all(torch.equal(policy[name], same[name]) for name in policy)
    assert not torch.equal(critic["head.weight"], other["head.weight"])


def test_an_update_leaves_no_gradient_behind_and_does_not_change_the_rollout():
    """Property 37."""
    policy, critic = small_palm(), small_critic()
    rollout = a_rollout(policy, critic)
    before = copy.deepcopy(rollout)
    update(policy, critic, rollout)
    assert all(g is None for m in (policy, critic) for g in gradients(m).values())
    assert all(torch.equal(v, getattr(before, k)) for k, v in vars(rollout).items())


@pytest.mark.parametrize("size", [1, 3, 8])
def test_every_answer_is_seen_once_an_epoch_in_a_new_order(size):
    """Property 44."""
    n, epochs = 8, 3
    number = torch.arange(n)
    rollout = a_rollout(small_palm(), small_critic())
    rollout = replace(rollout, scores=number.float())
    config = ppo_config(epochs=epochs, minibatch_size=size)
    seen = [part.scores.tolist() for part in minibatches(rollout, config, seeded())]
    flat = sum(seen, [])
    orders = [tuple(flat[n * e : n * (e + 1)]) for e in range(epochs)]
    assert all(sorted(order) == number.tolist() for order in orders)
    assert len({*orders, tuple(number.tolist())}) == epochs + 1
    assert len(seen) == epochs * math.ceil(n / size)
    again = [part.scores.tolist() for part in minibatches(rollout, config, seeded())]
    assert again == seen


def test_each_network_is_clipped_by_its_own_norm_and_the_log_says_it_before():
    """Property 45."""
    policy, critic = small_palm(), small_critic()
    rollout = a_rollout(policy, critic)
    norms = []
    real = ppo.clip_grad_norm_

    def watch(weights, limit):
        weights = list(weights)
        before = math.sqrt(sum(w.grad.square().sum().item() for w in weights))
        norm = real(weights, limit)
        after = math.sqrt(sum(w.grad.square().sum().item() for w in weights))
        norms.append((limit, before, after))
        return norm

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ppo, "clip_grad_norm_", watch)
        stats = update(
            policy, critic, rollout, epochs=1, minibatch_size=8, grad_clip=0.05
        )
    for (limit, before, after), logged in zip(
        norms, (stats.policy_grad_norm, stats.value_grad_norm)
    ):
        assert limit == 0.05 < before
        assert after == pytest.approx(0.05, rel=1e-3)
        assert logged == pytest.approx(before, rel=1e-4)
    assert norms[0][1] != pytest.approx(norms[1][1], rel=0.05)  # two norms, not one


def test_the_step_that_trips_the_kl_limit_is_not_applied_and_ends_the_update():
    """Property 46."""
    policy, critic = small_palm(), small_critic()
    rollout = a_rollout(policy, critic)
    limited = dict(epochs=50, minibatch_size=8, lr=2e-4)
    stats = update(policy, critic, rollout, stop_kl=0.02, **limited)
    assert 1 < stats.steps < 50
    assert all(g is None for m in (policy, critic) for g in gradients(m).values())
    # The same number of steps without a limit ends at the same weights.
    other, other_critic = small_palm(), small_critic()
    limited["epochs"] = stats.steps
    same = update(other, other_critic, rollout, **limited)
    assert same.steps == stats.steps
    for one, two in zip(policy.parameters(), other.parameters()):
        assert torch.equal(one, two)
    with torch.no_grad():  # and there, the limit is indeed passed
        logits = response_logits(policy, *rollout.tokens)
    logprobs = token_logprobs(logits, rollout.responses)
    refused = k3(rollout.logprobs, logprobs)[rollout.mask].mean().item()
    assert refused > 0.02
    # Its numbers are in the log: they are why the update has ended.
    mean = (same.approx_kl * same.steps + refused) / (same.steps + 1)
    assert stats.approx_kl == pytest.approx(mean, rel=1e-3)


def test_an_update_that_stops_at_once_changes_nothing():
    """Property 46."""
    policy, critic = small_palm(), small_critic()
    rollout = a_rollout(small_palm(1), critic)
    stats = update(policy, critic, rollout, stop_kl=0.0)
    assert stats.steps == 0 < stats.approx_kl
    for one, two in zip(policy.parameters(), small_palm().parameters()):
        assert torch.equal(one, two)


def test_the_logged_kl_is_from_the_old_policy_to_the_new():
    """Property 41."""
    logratio = torch.tensor([[0.1, -0.2]])
    assert k3(torch.zeros(1, 2), logratio).mean().item() == pytest.approx(
        0.011951, abs=1e-6
    )
    policy, critic = small_palm(), small_critic()
    rollout = a_rollout(small_palm(1), small_critic(1))
    with torch.no_grad():
        logits = response_logits(policy, *rollout.tokens)
    logratio = token_logprobs(logits, rollout.responses) - rollout.logprobs
    stats = update(
        policy, critic, rollout, lr=0.0, epochs=1, minibatch_size=8, micro_batch=3
    )
    terms = [
        (math.exp(x) - 1 - x, math.exp(x), abs(math.exp(x) - 1) > 0.2)
        for x in logratio[rollout.mask].tolist()
    ]
    kl, ratio, clipped = (sum(column) / len(terms) for column in zip(*terms))
    assert stats.approx_kl == pytest.approx(kl, rel=1e-4)
    assert stats.ratio == pytest.approx(ratio, rel=1e-4)
    assert stats.clip_fraction == pytest.approx(clipped)
    assert 0 < clipped < 1


def test_clip_fraction_of_the_known_ratios_is_a_half():
    """Property 40: .5 and 1.5 of four; 1.1 and .9 are within 1 ± ε."""
    policy, critic = small_palm(), small_critic()
    rollout = a_rollout(policy, critic)
    shift = torch.where(torch.arange(rollout.mask.shape[1]) % 2 == 0, 1.5, 1.1).log()
    moved = replace(rollout, logprobs=rollout.logprobs - shift)
    stats = update(policy, critic, moved, lr=0.0, epochs=1, minibatch_size=8)
    outside = rollout.mask[:, ::2].sum() / rollout.mask.sum()
    assert stats.clip_fraction == pytest.approx(outside.item())


def test_stats_are_means_over_the_steps_of_an_update():
    """Property 43: nothing is divided by steps that were not done."""
    policy, critic = small_palm(), small_critic()
    rollout = a_rollout(policy, critic)
    whole = update(policy, critic, rollout, lr=0.0, epochs=1, minibatch_size=8)
    policy, critic = small_palm(), small_critic()
    more = update(policy, critic, rollout, lr=0.0, epochs=4, minibatch_size=8)
    assert (whole.steps, more.steps) == (1, 4)
    assert more.value_loss == pytest.approx(whole.value_loss, rel=1e-4)
    assert more.value_grad_norm == pytest.approx(whole.value_grad_norm, rel=1e-4)

"""The invariants let right runs pass, and say what is wrong with broken ones."""

import copy

import pytest
import torch

from minipalm.rlhf import invariants
from minipalm.rlhf.invariants import (
    InvariantError,
    check_blind_to_padding,
    check_finite,
    check_kl_estimate,
    same_weights,
    switched_off,
    switched_on,
)
from minipalm.rlhf.kl import k1, k2, k3
from minipalm.rlhf.ppo import policy_loss, value_loss
from minipalm.rlhf.rollout import collect
from tests.small import EOS, ppo_config, ragged, seeded, small_critic, small_palm


def score(prompts, prompt_mask, responses, mask):
    return mask.sum(1).float()


def rollout_of(policy, reference, reward=score, **config):
    prompts, prompt_mask, *_ = ragged([3, 1, 5, 2] * 2, [1] * 8)
    return collect(
        policy,
        reference,
        small_critic(),
        reward,
        prompts,
        prompt_mask,
        config=ppo_config(**config),
        max_response=7,
        eos_id=EOS,
        kl_coef=0.1,
        generator=seeded(),
    )


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("other", [0, 1])
def test_a_right_rollout_passes(other, temperature):
    rollout_of(small_palm(), small_palm(other), temperature=temperature)


def test_the_checks_change_nothing_and_draw_nothing():
    policy = small_palm()
    before = copy.deepcopy(policy.state_dict())
    checked = rollout_of(policy, small_palm(1))
    with switched_off():
        free = rollout_of(policy, small_palm(1))
    for one, two in zip(vars(checked).values(), vars(free).values()):
        assert torch.equal(one, two)
    assert all(torch.equal(x, before[k]) for k, x in policy.state_dict().items())
    assert all(p.grad is None for p in policy.parameters())


def test_a_policy_that_is_its_own_reference_is_refused():
    policy = small_palm()
    with pytest.raises(InvariantError, match="copy.deepcopy"):
        rollout_of(policy, policy)
    with switched_off():
        rollout_of(policy, policy)
    assert switched_on()


def test_the_switch_is_put_back_after_an_error():
    with pytest.raises(ZeroDivisionError), switched_off():
        raise ZeroDivisionError
    assert switched_on()


def test_a_score_that_is_no_number_is_refused():
    def broken(prompts, prompt_mask, responses, mask):
        return torch.full((len(prompts),), torch.nan)

    with pytest.raises(InvariantError, match="8 of 8 scores"):
        rollout_of(small_palm(), small_palm(1), broken)


def test_dropout_between_sampling_and_training_is_refused():
    """Property 10: another law than the sampler's."""
    policy = small_palm()
    hidden = policy.hidden

    def noisy(ids, segments=None, positions=None, cache=None, last=None):
        states = hidden(ids, segments, last=last, cache=cache)
        return states if cache is not None else 0.9 * states

    policy.hidden = noisy
    with pytest.raises(InvariantError, match="another log-probability"):
        rollout_of(policy, small_palm(1))


def test_kl_estimators_and_losses_of_the_package():
    check_kl_estimate(k1)
    check_kl_estimate(k3)
    with pytest.raises(InvariantError, match="average"):
        check_kl_estimate(k2)
    check_blind_to_padding(policy_loss)
    check_blind_to_padding(value_loss)


def test_equal_weights_are_seen():
    assert same_weights(small_palm(), small_palm())
    assert not same_weights(small_palm(), small_palm(1))
    assert not same_weights(small_palm(), small_palm(depth=1))


def test_finite():
    check_finite("x", torch.ones(2))
    with pytest.raises(InvariantError, match="1 of 2 x"):
        check_finite("x", torch.tensor([1.0, torch.inf]))
    assert invariants.ROWS >= 1

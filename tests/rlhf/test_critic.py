"""The critic reads before each token, and starts where the reward model stands."""

import pytest
import torch

from minipalm.rlhf.critic import Critic, critic_from_reward_model
from minipalm.rlhf.reward import RewardModel
from tests.small import other_padding, ragged, seeded, small_critic, small_palm

TOKENS = dict(prompt_lengths=[1, 6, 3, 4], lengths=[5, 1, 3, 4])


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_values_equal_a_loop_over_prefixes(pooling):
    """Property 30: V_t is asked of what stands before token t."""
    critic, tokens = small_critic(pooling=pooling), ragged(**TOKENS)
    values = critic(*tokens)
    assert values.shape == (4, 5)
    for b, (prompt, prompt_mask, response, mask) in enumerate(zip(*tokens)):
        seen = prompt[prompt_mask].tolist()
        for t, token in enumerate(response[mask].tolist()):
            states = critic.trunk.hidden(torch.tensor([seen]))[0]
            scores = states @ critic.head.weight[0] + critic.head.bias[0]
            emitted = scores[-t:] if pooling == "mean" and t else scores[-1:]
            expected = emitted.mean()
            assert values[b, t].item() == pytest.approx(expected.item(), abs=1e-5)
            seen.append(token)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_value_does_not_know_the_token_it_will_judge_nor_those_after(pooling):
    """Property 30."""
    critic, tokens = small_critic(pooling=pooling), ragged([3, 3], [6, 6])
    changed = tokens[2].clone()
    changed[:, 2:] = (changed[:, 2:] + 1) % 11
    values = critic(*tokens)
    after = critic(tokens[0], tokens[1], changed, tokens[3])
    assert torch.equal(values[:, :3], after[:, :3])
    assert (values[:, 3:] != after[:, 3:]).all()


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_values_ignore_the_padding(pooling):
    """Properties 5 and 34."""
    critic, tokens = small_critic(pooling=pooling), ragged(**TOKENS)
    mask = tokens[3]
    one, other = critic(*tokens), critic(*other_padding(tokens))
    assert torch.equal(one[mask], other[mask])


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_critic_starts_in_the_normalised_units_of_the_reward_model(pooling):
    """Property 39: mean and sd are folded into the head, the pooling is kept."""
    reward_model = RewardModel(small_palm(), pooling, seeded())
    reward_model.head.bias.data.fill_(0.4)
    reward_model.mean.fill_(3.0), reward_model.std.fill_(2.5)
    critic = critic_from_reward_model(reward_model)
    prompts, prompt_mask, responses, mask = ragged([3, 1, 5], [4, 4, 4])
    scores = reward_model(prompts, prompt_mask, responses, mask)
    # One token more, so that the last value is of the whole answer.
    longer = torch.cat([responses, responses[:, :1]], dim=1)
    values = critic(prompts, prompt_mask, longer, torch.ones(3, 5).bool())
    torch.testing.assert_close(values[:, -1], scores, atol=1e-5, rtol=0)


def test_an_unknown_pooling_is_refused():
    with pytest.raises(ValueError, match=r"must be 'last' or 'mean' \(got 'sum'\)"):
        Critic(small_palm(), "sum")


def test_training_the_critic_leaves_the_reward_model_alone():
    """Property 37."""
    reward_model = RewardModel(small_palm(), "last", seeded())
    critic = critic_from_reward_model(reward_model)
    critic(*ragged(**TOKENS)).sum().backward()
    assert all(weight.grad is None for weight in reward_model.parameters())
    shared = {id(w) for w in critic.parameters()} & {
        id(w) for w in reward_model.parameters()
    }
    assert not shared
    grads = [w.grad for n, w in critic.named_parameters()]
    assert all(grad is not None for grad in grads)

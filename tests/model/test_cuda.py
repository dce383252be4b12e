"""On a GPU the numbers are the same; skipped where there is none."""

import copy
import dataclasses

import pytest
import torch

from minipalm.config import PaLMConfig, get_preset
from minipalm.model.generate import generate
from minipalm.model.palm import PaLM
from minipalm.rlhf.critic import critic_from_reward_model
from minipalm.rlhf.logprobs import response_logits, token_logprobs
from minipalm.rlhf.ppo import ppo_update
from minipalm.rlhf.reward import RewardModel
from minipalm.rlhf.rollout import collect
from minipalm.train.language_model import next_token_loss
from minipalm.train.optim import adamw, set_lr

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

CONFIG = PaLMConfig(512, dim=256, depth=4, heads=4, head_dim=64)


def model(seed=0):
    return PaLM(CONFIG, torch.Generator().manual_seed(seed))


def batch(B=4, T=192):  # 192 % 128 = 64, where cuDNN's kernel has been seen to fail
    return torch.randint(3, 512, (B, T), generator=torch.Generator().manual_seed(1))


def gradients(network):
    return torch.cat([w.grad.float().cpu().flatten() for w in network.parameters()])


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    "dtype, bound", [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)]
)
def test_gradients_on_the_gpu_are_those_of_float32_on_the_cpu(padded, dtype, bound):
    torch.backends.cuda.matmul.allow_tf32 = False
    ids = batch()
    segments = torch.ones_like(ids)
    segments[1, :70] = 0
    grads = []
    for device, kind in (("cpu", torch.float32), ("cuda", dtype)):
        network = model().to(device, kind)
        if padded:
            hidden = network.hidden(ids.to(device), segments.to(device), last=100)
            hidden.float().pow(2).mean().backward()
        else:
            next_token_loss(network, ids.to(device)).backward()
        grads.append(gradients(network))
    assert relative(grads[1], grads[0]) < bound


def test_a_ppo_update_runs_on_the_gpu_and_starts_at_ratio_one():
    policy = model().cuda()
    reward = RewardModel(model(1), "mean").cuda()
    reference, critic = copy.deepcopy(policy), critic_from_reward_model(reward)
    config = dataclasses.replace(get_preset("smoke").ppo, epochs=1, minibatch_size=16)
    prompts = batch(16, 9).cuda()
    rollout = collect(
        policy,
        reference,
        critic,
        reward,
        prompts,
        torch.ones_like(prompts, dtype=torch.bool),
        config=config,
        max_response=24,
        eos_id=2,
        kl_coef=0.1,
        generator=torch.Generator("cuda").manual_seed(0),
    )
    optimizers = adamw(policy), adamw(critic)
    for optimizer in optimizers:
        set_lr(optimizer, 1e-4)
    shuffle = torch.Generator().manual_seed(0)
    stats = ppo_update(policy, critic, rollout, *optimizers, config, shuffle)
    assert stats.steps == 1
    assert abs(stats.ratio - 1) < 1e-4
    assert stats.clip_fraction == 0


def test_sampled_log_probabilities_are_those_of_a_forward_pass():
    network = model().cuda()
    prompts = batch(8, 12).cuda()
    mask = torch.ones_like(prompts, dtype=torch.bool)
    mask[::2, :5] = False
    sampled = generate(
        network,
        prompts,
        mask,
        max_new_tokens=40,
        eos_id=2,
        generator=torch.Generator("cuda").manual_seed(0),
    )
    with torch.no_grad():
        logits = response_logits(
            network, prompts, mask, sampled.responses, sampled.mask
        )
    again = token_logprobs(logits, sampled.responses)
    difference = (again - sampled.logprobs)[sampled.mask].abs().max().item()
    assert difference < 1e-4

"""Small networks and ragged batches for the tests; B, P, T, D, V all differ."""

import torch

from minipalm.config import PaLMConfig, PPOConfig
from minipalm.model.palm import PaLM
from minipalm.rlhf.critic import Critic

V = 11
EOS = 2


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def small_config(**changes):
    """embed_std .3 makes the laws far from uniform, so that a wrong one is seen."""
    sizes = dict(dim=12, depth=2, heads=4, head_dim=6, kv_heads=2, embed_std=0.3)
    return PaLMConfig(**{"vocab_size": V, **sizes, **changes})


def small_palm(seed=0, **changes):
    """A network whose norms are not all ones either."""
    generator = seeded(seed)
    model = PaLM(small_config(**changes), generator)
    for name, weight in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5, generator=generator)
    return model


def small_critic(seed=0, pooling="last", **changes):
    critic = Critic(small_palm(seed, **changes), pooling)
    torch.nn.init.normal_(critic.head.weight, generator=seeded(seed))
    torch.nn.init.constant_(critic.head.bias, 0.3)
    return critic


def ragged(prompt_lengths, lengths, seed=0, P=None, T=None):
    """(prompts, prompt_mask, responses, mask), with random tokens in the padding."""
    generator = seeded(seed)
    P, T = P or max(prompt_lengths), T or max(lengths)
    B = len(lengths)
    prompts = torch.randint(V, (B, P), generator=generator)
    responses = torch.randint(V, (B, T), generator=generator)
    prompt_mask = torch.arange(P) >= P - torch.tensor(prompt_lengths)[:, None]
    mask = torch.arange(T) < torch.tensor(lengths)[:, None]
    return prompts, prompt_mask, responses, mask


def other_padding(tokens, seed=99):
    """The same batch with other tokens where its masks are False."""
    prompts, prompt_mask, responses, mask = tokens
    generator = seeded(seed)
    garbage = torch.randint(V, prompts.shape, generator=generator)
    prompts = torch.where(prompt_mask, prompts, garbage)
    garbage = torch.randint(V, responses.shape, generator=generator)
    return prompts, prompt_mask, torch.where(mask, responses, garbage), mask


def ppo_config(**changes):
    sizes = dict(iterations=1, batch_size=8, minibatch_size=4, epochs=2)
    return PPOConfig(**{**sizes, "policy_lr": 1e-3, "value_lr": 1e-3, **changes})


def gradients(module):
    return {name: weight.grad for name, weight in module.named_parameters()}

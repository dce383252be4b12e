"""PPO: several careful steps on one batch of answers."""

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from minipalm.config import PPOConfig
from minipalm.model.palm import PaLM
from minipalm.parallel import share, summed
from minipalm.rlhf.critic import Critic
from minipalm.rlhf.kl import k3
from minipalm.rlhf.logprobs import (
    entropy,
    masked_mean,
    response_logits,
    token_logprobs,
)
from minipalm.rlhf.rollout import Rollout

Total = Int[Tensor, ""] | int | None  # see masked_mean


def policy_loss(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    clip: float = 0.2,
    total: Total = None,
) -> Float[Tensor, ""]:
    """−min(ρA, clip(ρ, 1−ε, 1+ε)A), mean over response tokens; ρ = π(y) / π_old(y).

    Once a token's ratio has left 1 ± ε in the direction that its advantage asks for, it
    gets no more gradient.

    Args:
        logprobs: log π(y_t), nats; carries the gradient.
        old_logprobs: of the policy that sampled; constants.
        advantages: A_t; constants. A gradient that comes with either is cut off.
        mask: True at the tokens of the answers; what stands elsewhere has no effect.
        clip: ε, the same on both sides of 1.
        total: tokens to divide the sum by; by default those of mask (`masked_mean`).

    Example: A = (1, 1, −1, −1), ρ = (1.5, .5, 1.5, .5), ε = .2 have the losses
    (−1.2, −.5, 1.5, .8).

    Source: Schulman et al. 2017 (arXiv 1707.06347), equation 7.
    """
    advantages = advantages.detach()  # constants: no gradient through the critic
    ratio = (logprobs - old_logprobs.detach()).exp()
    clipped = ratio.clamp(1 - clip, 1 + clip)
    losses = -torch.minimum(ratio * advantages, clipped * advantages)
    return masked_mean(losses, mask, total)


def value_loss(
    values: Float[Tensor, "B T"],
    old_values: Float[Tensor, "B T"],
    returns: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    clip: float = 0.2,
    total: Total = None,
) -> Float[Tensor, ""]:
    """½ max((V − R)², (clip(V, V_old ± ε) − R)²), mean over response tokens.

    The larger of the two counts: a value that has moved by more than ε towards its
    return gets no more gradient, one that has moved away from it always does.

    Args:
        values: V_t; carries the gradient.
        old_values: V_t when the answers were given; constants.
        returns: R_t; constants. A gradient that comes with either is cut off.
        mask: True at the tokens of the answers; what stands elsewhere has no effect.
        clip: ε, in units of the reward.
        total: see `policy_loss`.

    Example: V = 1, V_old = .5, R = 1.2, ε = .2: clip(V) = .7, and the loss is
    ½ · .5² = .125.

    Source: Engstrom et al. 2020 (arXiv 2005.12729), the first of the code-level
    optimizations that it lists.
    """
    old_values, returns = old_values.detach(), returns.detach()
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    errors = torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)
    return masked_mean(errors / 2, mask, total)


@dataclass
class PPOStats:
    """What a dashboard needs, means over an update's steps, a refused one included.

    Attributes:
        policy_loss, value_loss: as minimised.
        ratio: π/π_old at the sampled tokens; 1 in the first step.
        clip_fraction: share of tokens whose ratio is outside 1 ± ε.
        approx_kl: KL(π_old ‖ π), k3 on the sampled tokens, nats a token.
        policy_grad_norm, value_grad_norm: before clipping; 0 in a refused step.
        steps: optimizer steps done, of epochs × minibatches.
    """

    policy_loss: float = 0.0
    value_loss: float = 0.0
    ratio: float = 0.0
    clip_fraction: float = 0.0
    approx_kl: float = 0.0
    policy_grad_norm: float = 0.0
    value_grad_norm: float = 0.0
    steps: int = 0


def minibatches(
    rollout: Rollout, config: PPOConfig, generator: torch.Generator
) -> Iterator[Rollout]:
    """Every answer once an epoch, in a new order each epoch.

    Args:
        rollout: N answers; `rollout[rows]` gives some of them, by a tensor of row
            numbers, and `len(rollout)` is N.
        config: `config.epochs` passes, in parts of `config.minibatch_size` answers. An
            epoch's last part is smaller where the size does not divide N.
        generator: draws the orders, and nothing else does: the same state of it gives
            the same minibatches.

    Returns:
        epochs × ⌈N / minibatch_size⌉ parts, one after the other.

    Example: 5 answers in minibatches of 2, 2 epochs: parts of 2, 2, 1, 2, 2, 1 answers.
    """
    for _ in range(config.epochs):
        order = torch.randperm(len(rollout), generator=generator)
        for rows in order.split(config.minibatch_size):
            yield rollout[rows]


def minibatch_gradients(
    policy: PaLM,
    critic: Critic,
    micro: Rollout,
    total: Int[Tensor, ""],
    config: PPOConfig,
    stats: PPOStats,
) -> None:
    """Add the gradients and the stats of some rows of a minibatch of `total` tokens.

    Where several processes train together, each takes its share of the rows, and the
    stats are `summed` over all of them.

    Minimised are policy_loss − entropy_coef · entropy, and value_loss, each by a
    backward pass of its own: neither network hears of the other's loss.

    Args:
        policy, critic: their .grad is added to; no weight is changed.
        micro: rows of the minibatch.
        total: tokens of the whole minibatch, so that its parts add up to its mean.
        config: clip, value_clip, entropy_coef (per nat; a bonus) and temperature, that
            of the sampler, are read.
        stats: losses, ratio, clip_fraction and approx_kl are added to.
    """
    micro = share(micro)
    logits = response_logits(policy, *micro.tokens, temperature=config.temperature)
    logprobs = token_logprobs(logits, micro.responses)
    loss = policy_loss(
        logprobs, micro.logprobs, micro.advantages, micro.mask, config.clip, total
    )
    objective = loss
    if config.entropy_coef:
        bonus = masked_mean(entropy(logits), micro.mask, total)
        objective = loss - config.entropy_coef * bonus
    objective.backward()

    values = critic(*micro.tokens)
    error = value_loss(
        values, micro.values, micro.returns, micro.mask, config.value_clip, total
    )
    error.backward()

    with torch.no_grad():
        ratio = (logprobs - micro.logprobs).exp()
        outside = ((ratio - 1).abs() > config.clip).float()
        moved = k3(micro.logprobs, logprobs)
        stats.policy_loss += summed(loss).item()
        stats.value_loss += summed(error).item()
        stats.ratio += summed(masked_mean(ratio, micro.mask, total)).item()
        stats.clip_fraction += summed(masked_mean(outside, micro.mask, total)).item()
        stats.approx_kl += summed(masked_mean(moved, micro.mask, total)).item()


def mean_stats(done: list[PPOStats]) -> PPOStats:
    """Means over an update's steps, and the number of those that were applied."""
    means = {
        field.name: sum(getattr(one, field.name) for one in done) / len(done)
        for field in fields(PPOStats)
    }
    return PPOStats(**{**means, "steps": sum(one.steps for one in done)})


def ppo_update(
    policy: PaLM,
    critic: Critic,
    rollout: Rollout,
    policy_optimizer: torch.optim.Optimizer,
    critic_optimizer: torch.optim.Optimizer,
    config: PPOConfig,
    generator: torch.Generator,
) -> PPOStats:
    """Improve policy and critic on one rollout: epochs × minibatches of steps.

    For each part that `minibatches` gives: add up its gradients with
    `minibatch_gradients`, at most `config.micro_batch` answers at a time (0: all at
    once), every time with the token count of the whole minibatch as `total`. Then clip
    each network's gradient to the norm `config.grad_clip`, on its own, and let both
    optimizers step. The next minibatch begins with gradients of zero.

    If `config.stop_kl` is given and a minibatch's approx_kl exceeds it, that step is
    not applied, nor is any later one, and none of its gradients is left behind.

    The losses are means over a minibatch's own tokens, so those of a smaller last one
    weigh more.

    Args:
        policy, critic: changed in place.
        rollout: from the policy as it is now; its advantages are whitened. It is not
            changed: the ratio is to the policy that sampled, in every step.
        policy_optimizer, critic_optimizer: each network has its own.
        config: epochs, minibatch_size, micro_batch, clip, value_clip, entropy_coef,
            temperature, stop_kl and grad_clip are read.
        generator: shuffles the minibatches; on the CPU.

    Returns:
        `mean_stats` of one PPOStats a minibatch, the refused one included. Each begins
        as PPOStats(steps=1), with steps=0 for a refused one; `minibatch_gradients` adds
        to it, and the norms before clipping go into policy_grad_norm and
        value_grad_norm (0 in a refused one).
    """
    done: list[PPOStats] = []
    for batch in minibatches(rollout, config, generator):
        total = batch.mask.sum()
        stats = PPOStats(steps=1)
        for part in range(0, len(batch), config.micro_batch or len(batch)):
            micro = batch[part : part + (config.micro_batch or len(batch))]
            minibatch_gradients(policy, critic, micro, total, config, stats)
        done.append(stats)
        if config.stop_kl is not None and stats.approx_kl > config.stop_kl:
            stats.steps = 0
            policy_optimizer.zero_grad()
            critic_optimizer.zero_grad()
            break
        norm = clip_grad_norm_(policy.parameters(), config.grad_clip)
        stats.policy_grad_norm = norm.item()
        norm = clip_grad_norm_(critic.parameters(), config.grad_clip)
        stats.value_grad_norm = norm.item()
        for optimizer in (policy_optimizer, critic_optimizer):
            optimizer.step()
            optimizer.zero_grad()
    return mean_stats(done)

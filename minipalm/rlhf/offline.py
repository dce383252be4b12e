"""Learn from a log: answers that an earlier policy gave, and what they were worth.

Answers cost more than updates, so one would like to use them again. PPO's ratio already
forgives a policy that has moved a little since it sampled. A log asks for more: the
policy that wrote it, b, may be far from the policy π that learns. An answer y then
stands for w = π(y | x) / b(y | x) answers of π, its importance weight.

What breaks can be seen, but not in the loss. With distance, few answers carry nearly
all the weight (`effective_sample_size`), and what is learnt is about those few. Further
on, the policy puts its probability on answers that are not in the log. No weight speaks
of them, no KL estimate sees them: all weights fall towards 0, the estimated KL below 0,
and nothing holds the policy back.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from minipalm.clock import Clock
from minipalm.config import PPOConfig
from minipalm.model.palm import PaLM
from minipalm.rlhf.critic import Critic
from minipalm.rlhf.gae import gae, whiten
from minipalm.rlhf.kl import k3
from minipalm.rlhf.log import Log
from minipalm.rlhf.rollout import Rollout, answer_logprobs, read, shape_rewards

# --- how old is it ------------------------------------------------------------------


@torch.no_grad()
def importance_weights(
    logprobs: Float[Tensor, "B T"],
    behaviour_logprobs: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    limit: float,
) -> Float[Tensor, "B"]:
    """min(π(y | x) / b(y | x), limit): how many answers of π a logged one stands for.

    Without the limit, the mean of w · f(y) over answers of b is the mean of f over
    answers of π, whatever f; but a single answer may then outweigh all others. The
    limit trades that variance for a bias, towards what b thought likely.

    Args:
        logprobs: log π(y_t) of the policy now, nats.
        behaviour_logprobs: log b(y_t) of the policy that sampled.
        mask: True at the tokens of the answers; what stands elsewhere has no effect.
        limit: at least 1; infinity for none.

    Returns:
        a weight from 0 to limit for each answer, without a gradient. Exactly 1 where
        the two are equal, or where an answer has no token.

    Example: two tokens, each twice as probable as when they were sampled: 4; with
    limit=3, 3.
    """
    moved = torch.where(mask, logprobs - behaviour_logprobs, 0.0).sum(1)
    return moved.exp().clamp(max=limit)


def effective_sample_size(weights: Float[Tensor, "B"]) -> float:
    """(Σ w)² / Σ w²: how many answers of equal weight would be as good.

    From 1, one answer has all the weight, to B. It looks at the weights only: a limit
    makes it larger, and the bias with it.

    Args:
        weights: 0 or more, of any size that float32 has: their squares leave it.

    Returns:
        a Python number; 0 if all weights are 0.

    Example: weights (1, 1, 1, 1): 4; (2, 0, 0, 0): 1; (3, 1): 1.6.
    """
    total = weights.double().sum()
    return (total**2 / weights.double().square().sum().clamp(min=1e-300)).item()


def staleness(
    logprobs: Float[Tensor, "B T"],
    behaviour_logprobs: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
) -> float:
    """KL(b ‖ π), nats an answer: by how much the policy has left the log.

    The answers are drawn from b, so k3 is that of b from π; 0 when they are equal.

    Example: one answer of one token, b gave it probability ½ and π gives ¼: k3 with
    ratio ½ is −½ + log 2 = .1931.
    """
    moved = torch.where(mask, k3(behaviour_logprobs, logprobs), 0.0)
    return moved.sum(1).mean().item()


# --- a rollout of it ----------------------------------------------------------------


@torch.no_grad()
def rollout_of_log(
    log: Log,
    logprobs: Float[Tensor, "B T"],
    ref_logprobs: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    *,
    config: PPOConfig,
    kl_coef: float,
    weight_limit: float,
) -> Rollout:
    """The logged answers as `ppo_update` takes them.

    The policy now takes the place of the one that sampled: PPO's ratio starts at 1, the
    KL in the rewards is the policy's own, and each answer's whitened advantages are
    multiplied by its importance weight. The returns are those of the log: the critic
    learns what b's answers earned, a baseline that is a little off but never a bias
    where λ = 1.

    Args:
        log: the answers.
        logprobs: log π(y_t) of the policy now.
        ref_logprobs: log π_ref(y_t).
        values: V_t of the critic now. What stands behind an answer's end in these three
            has no effect.
        config: gamma and lam are read.
        kl_coef: β.
        weight_limit: see `importance_weights`.

    Returns:
        If logprobs are the log's own, bit for bit the rollout that `collect` made.

    Source: the policy now and the policy that sampled told apart as in Hilton, Cobbe
    and Schulman 2021 (arXiv 2110.00641).
    """
    mask = log.mask
    logprobs, ref_logprobs, values = (
        torch.where(mask, x, 0.0) for x in (logprobs, ref_logprobs, values)
    )
    weights = importance_weights(logprobs, log.logprobs, mask, weight_limit)
    rewards = shape_rewards(log.scores, logprobs, ref_logprobs, mask, kl_coef)
    advantages, returns = gae(rewards, values, mask, config.gamma, config.lam)
    return Rollout(
        *log.tokens,
        logprobs=logprobs,
        ref_logprobs=ref_logprobs,
        scores=log.scores,
        values=values,
        advantages=whiten(advantages, mask) * weights[:, None],
        returns=returns,
    )


@torch.no_grad()
def replay(
    policy: PaLM,
    reference: PaLM,
    critic: Critic,
    log: Log,
    *,
    config: PPOConfig,
    kl_coef: float,
    weight_limit: float,
    clock: Clock | None = None,
) -> tuple[Rollout, dict[str, float]]:
    """What the networks of today think of logged answers; nobody samples.

    Args:
        policy, reference, critic: none gets a gradient here.
        log: a batch of answers.
        config: temperature, that of the sampler, gamma, lam and micro_batch (answers
            that a network reads at a time) are read.
        kl_coef: β.
        weight_limit: see `importance_weights`.
        clock: measures the phases.

    Returns:
        the rollout, and what there is to see: score and kl, estimates for the policy
        now (weighted means, the weights divided by their sum; kl in nats an answer);
        and what shows that the log is old: staleness (nats an answer), ess (effective
        sample size, as a share of the batch: 1 is best), heaviest (the largest weight
        before the limit) and limited (share of answers at the limit). With a log of
        this very policy these are 0, 1, 1 and 0 up to float32 rounding, since a full
        pass and the sampler's cache add in another order.
    """
    clock = clock or Clock(policy)
    with clock.phase("logprobs"):
        now = answer_logprobs(policy, log.tokens, config)
    with clock.phase("reference"):
        ref_logprobs = answer_logprobs(reference, log.tokens, config)
    with clock.phase("values"):
        values = read(critic, log.tokens, config)
    rollout = rollout_of_log(
        log,
        now,
        ref_logprobs,
        values,
        config=config,
        kl_coef=kl_coef,
        weight_limit=weight_limit,
    )
    raw = importance_weights(now, log.logprobs, log.mask, math.inf)
    weights = raw.clamp(max=weight_limit)
    shares = weights / weights.sum().clamp(min=1e-30)
    moved = (rollout.logprobs - rollout.ref_logprobs).sum(1)
    return rollout, {
        "score": (shares * log.scores).sum().item(),
        "kl": (shares * moved).sum().item(),
        "staleness": staleness(now, log.logprobs, log.mask),
        "ess": effective_sample_size(weights) / len(log),
        "heaviest": raw.max().item(),
        "limited": (raw > weight_limit).float().mean().item(),
    }

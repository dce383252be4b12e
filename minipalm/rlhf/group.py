"""RLOO and GRPO: a prompt's other answers are the baseline, and no critic is needed.

Ask each prompt G times. What the others got tells how good an answer could have been:
that is what PPO's critic is for, at the start of an answer. All tokens of an answer
share its one advantage.

| | RLOO | GRPO |
|---|---|---|
| baseline | mean of the other G − 1 | mean of all G |
| scale | as it is | divided by the group's standard deviation |
| ratio, clipped | of the answer | of each token |
| a token's weight | every token of every answer the same | 1 / length of its answer |
| KL | k1 of the answer, in the reward | k3 of each token, in the loss |

RLOO's gradient is that of E score − β KL(π ‖ π_ref), without bias. GRPO's is not, in
four ways that this file's docstrings name.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minipalm.clock import Clock
from minipalm.config import GroupConfig
from minipalm.model.generate import Sampled, generate
from minipalm.model.palm import PaLM
from minipalm.rlhf.answers import Tokens
from minipalm.rlhf.invariants import check_answers
from minipalm.rlhf.kl import k1, k3
from minipalm.rlhf.logprobs import response_logits, token_logprobs
from minipalm.rlhf.rollout import (
    Reward,
    answer_logprobs,
    final_scores,
    sample_answers,
)

# --- advantages ---------------------------------------------------------------------


def check_group(rewards: Float[Tensor, "N G"]) -> None:
    if rewards.shape[1] < 2:
        raise ValueError(
            "a group needs 2 answers or more: one alone has no others to be compared "
            f"with (got {rewards.shape[1]})"
        )


@torch.no_grad()
def rloo_advantages(rewards: Float[Tensor, "N G"]) -> Float[Tensor, "N G"]:
    """r_i minus the mean of the other G − 1 rewards of its group.

    The baseline does not depend on answer i, so it moves no expectation: the gradient
    stays unbiased. It is G/(G − 1) times the distance from the mean of all.

    Args:
        rewards: score − β KL of each answer; a row is a prompt.

    Returns:
        without a gradient. Equal rewards have advantages of 0.

    Example: (1, 2, 6) gives (1 − 4, 2 − 3.5, 6 − 1.5) = (−3, −1.5, 4.5).

    Raises:
        ValueError: a group of one.

    Source: Ahmadian et al. 2024, "Back to Basics" (arXiv 2402.14740).
    """
    check_group(rewards)
    others = (rewards.sum(1, keepdim=True) - rewards) / (rewards.shape[1] - 1)
    return rewards - others


@torch.no_grad()
def grpo_advantages(
    rewards: Float[Tensor, "N G"], divide_by_std: bool = True
) -> Float[Tensor, "N G"]:
    """(r_i − mean) / (std + 1e-4) of the group.

    Dividing by the standard deviation gives each prompt the same say: one whose answers
    differ by .01 moves the policy as much as one whose answers differ by 10, so prompts
    that are almost always (or never) solved weigh more than their reward asks for. It
    also makes β mean another price at each prompt: what is maximised is
    E r/std − β KL.

    Args:
        rewards: scores; a row is a prompt.
        divide_by_std: False leaves rewards − mean, as Dr. GRPO has it.

    Returns:
        without a gradient. The standard deviation divides by G − 1; equal rewards have
        advantages of 0.

    Example: (1, 2, 6) has mean 3 and std 2.6458: (−.7559, −.3780, 1.1338) up to the
    1e-4; without division (−2, −1, 3).

    Raises:
        ValueError: a group of one.

    Source: Shao et al. 2024, DeepSeekMath (arXiv 2402.03300); against the division, Liu
    et al. 2025, Dr. GRPO (arXiv 2503.20783).
    """
    check_group(rewards)
    centred = rewards - rewards.mean(1, keepdim=True)
    if not divide_by_std:
        return centred
    return centred / (rewards.std(1, keepdim=True) + 1e-4)


# --- losses -------------------------------------------------------------------------


def rloo_loss(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B"],
    mask: Bool[Tensor, "B T"],
    clip: float = 0.2,
) -> Float[Tensor, ""]:
    """−min(ρA, clip(ρ, 1−ε, 1+ε)A), mean over answers; ρ = π(y | x) / π_old(y | x).

    One action is the whole answer, so the ratio is that of the whole answer: the sum of
    its tokens' log-ratios. In the first step ρ = 1, and the gradient is
    −mean A Σ_t ∇ log π(y_t), REINFORCE's.

    Args:
        logprobs: log π(y_t), nats; carries the gradient.
        old_logprobs: of the policy that sampled. A constant, like
        advantages: of each answer (`rloo_advantages`, with the KL in the reward). If
            either comes with a gradient, it is cut off.
        mask: True at the tokens of the answers; what stands elsewhere has no effect.
        clip: ε.

    Example: an answer whose tokens have become e^.1 times as probable, twice: ρ = e^.2
    = 1.2214; with A = 1 and ε = .2 its loss is −1.2, with A = −1 it is 1.2214.
    """
    advantages = advantages.detach()
    moved = torch.where(mask, logprobs - old_logprobs.detach(), 0.0).sum(1)
    ratio = moved.exp()
    clipped = ratio.clamp(1 - clip, 1 + clip)
    return -torch.minimum(ratio * advantages, clipped * advantages).mean()


def grpo_loss(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    ref_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B"],
    mask: Bool[Tensor, "B T"],
    kl_coef: float,
    clip: float = 0.2,
    length: int | None = None,
) -> Float[Tensor, ""]:
    """PPO's clipped loss of each token, plus β k3; mean over an answer, then answers.

    Dividing by an answer's own length makes its tokens count less the longer it is: a
    bad answer is punished less, token by token, if it goes on, a good one rewarded more
    if it is short. Dr. GRPO divides all by one number instead.

    The KL is a loss, not a reward. Differentiated through log π alone, k3 pulls along
    the gradient of KL(π_ref ‖ π), the other direction; and a token is not charged for
    what it makes later tokens cost.

    Args:
        logprobs: log π(y_t), nats; carries the gradient.
        old_logprobs: of the policy that sampled. A constant, like
        ref_logprobs: log π_ref(y_t), and
        advantages: of each answer, for all of its tokens (`grpo_advantages`). If one of
            these comes with a gradient, it is cut off.
        mask: True at the tokens of the answers, at least one a row; what stands
            elsewhere has no effect.
        kl_coef: β.
        clip: ε.
        length: tokens to divide every answer's sum by; None: its own length.

    Example: β = 0, ρ = 1, advantages (1, −1) of answers of 1 and of 4 tokens: −1 and 1,
    mean 0; with length=4: −1/4 and 1, mean .375.

    Source: Shao et al. 2024 (arXiv 2402.03300), the objective of section 4.1; length,
    Liu et al. 2025 (arXiv 2503.20783).
    """
    advantages = advantages.detach()[:, None]
    ratio = (logprobs - old_logprobs.detach()).exp()
    clipped = ratio.clamp(1 - clip, 1 + clip)
    gain = torch.minimum(ratio * advantages, clipped * advantages)
    losses = kl_coef * k3(logprobs, ref_logprobs.detach()) - gain
    sums = torch.where(mask, losses, 0.0).sum(1)
    return (sums / (mask.sum(1) if length is None else length)).mean()


# --- answers ------------------------------------------------------------------------


@dataclass(frozen=True)
class Groups:
    """Answers, those to one prompt side by side. Index it by rows for a minibatch.

    Attributes:
        prompts, prompt_mask: left-padded; each stands G times, one after the other.
        responses, mask: right-padded; mask includes the end-of-sequence token.
        logprobs: log π(y_t) of the policy that sampled, nats.
        ref_logprobs: log π_ref(y_t).
        scores: the reward of each answer, the penalty for a missing end included.
        advantages: of each answer.
    """

    prompts: Int[Tensor, "B P"]
    prompt_mask: Bool[Tensor, "B P"]
    responses: Int[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]
    logprobs: Float[Tensor, "B T"]
    ref_logprobs: Float[Tensor, "B T"]
    scores: Float[Tensor, "B"]
    advantages: Float[Tensor, "B"]

    @property
    def tokens(self) -> Tokens:
        """What the models take."""
        return self.prompts, self.prompt_mask, self.responses, self.mask

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: Int[Tensor, "R"] | slice) -> "Groups":
        return Groups(*(getattr(self, field.name)[rows] for field in fields(self)))


@torch.no_grad()
def collect_groups(
    policy: PaLM,
    reference: PaLM,
    reward: Reward,
    prompts: Int[Tensor, "N P"],
    prompt_mask: Bool[Tensor, "N P"],
    *,
    config: GroupConfig,
    max_response: int,
    eos_id: int,
    generator: torch.Generator,
    sample: Callable[..., Sampled] = generate,
    clock: Clock | None = None,
) -> Groups:
    """Let the policy answer each prompt `config.group_size` times.

    Args:
        policy, reference, reward: see `minipalm.rlhf.rollout.collect`.
        prompts, prompt_mask: left-padded.
        config: group_size, temperature, missing_eos_penalty, reuse_logprobs,
            micro_batch, and what the method's advantages need, are read.
        max_response: T, the longest answer.
        eos_id: ends an answer; an answer without it loses missing_eos_penalty.
        generator: draws the tokens.
        sample, clock: see `minipalm.rlhf.rollout.collect`.

    Raises:
        ValueError, InvariantError: see `collect` there.
    """
    clock, G = clock or Clock(policy), config.group_size
    answers, logprobs = sample_answers(
        policy,
        prompts.repeat_interleave(G, 0),
        prompt_mask.repeat_interleave(G, 0),
        config=config,
        max_response=max_response,
        eos_id=eos_id,
        generator=generator,
        sample=sample,
        clock=clock,
    )
    with clock.phase("reference"):
        ref_logprobs = answer_logprobs(reference, answers, config)
    with clock.phase("reward"):
        scores = final_scores(reward, answers, config, eos_id)
    check_answers(
        policy,
        reference,
        answers,
        logprobs,
        ref_logprobs,
        scores,
        eos_id=eos_id,
        temperature=config.temperature,
    )
    if config.method == "rloo":
        rewards = scores - config.kl_coef * k1(logprobs, ref_logprobs).sum(1)
        advantages = rloo_advantages(rewards.view(-1, G))
    else:
        advantages = grpo_advantages(scores.view(-1, G), config.divide_by_std)
    return Groups(*answers, logprobs, ref_logprobs, scores, advantages.flatten())


def group_loss(
    policy: PaLM, groups: Groups, config: GroupConfig
) -> tuple[Float[Tensor, ""], Float[Tensor, "B T"]]:
    """The method's loss on some answers, and their log-probabilities now.

    Args:
        policy: its weights get a gradient.
        groups: any rows; the advantages were worked out before.
        config: method, clip, temperature, and for GRPO kl_coef and length, are read.
    """
    logits = response_logits(policy, *groups.tokens, temperature=config.temperature)
    logprobs = token_logprobs(logits, groups.responses)
    constants = groups.logprobs, groups.ref_logprobs, groups.advantages, groups.mask
    old, ref, advantages, mask = constants
    if config.method == "rloo":
        loss = rloo_loss(logprobs, old, advantages, mask, config.clip)
    else:
        loss = grpo_loss(
            logprobs,
            old,
            ref,
            advantages,
            mask,
            config.kl_coef,
            config.clip,
            config.length,
        )
    return loss, logprobs.detach()

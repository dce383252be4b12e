"""Rollouts: the policy answers, and everything the update needs is written down."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minipalm.clock import Clock
from minipalm.config import GroupConfig, PPOConfig
from minipalm.data.tokenizer import Tokenizer
from minipalm.model.generate import Sampled, generate
from minipalm.model.palm import PaLM
from minipalm.model.place import machine_of
from minipalm.parallel import row_by_row
from minipalm.rlhf.answers import Tokens, answers_of
from minipalm.rlhf.critic import Critic
from minipalm.rlhf.gae import gae, whiten
from minipalm.rlhf.invariants import check_gap, check_rollout
from minipalm.rlhf.kl import k1
from minipalm.rlhf.logprobs import masked_mean, response_logits, token_logprobs

# A reward is any function of (prompts, prompt_mask, responses, mask) that gives a score
# for each row; a RewardModel is one, and `text_reward` makes one of a Python function.
Reward = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Rollout:
    """Answers with what the networks thought of them when they were given.

    No field carries a gradient. Index it by rows for a minibatch.

    Attributes:
        prompts, prompt_mask: left-padded.
        responses, mask: right-padded; mask includes the end-of-sequence token.
        logprobs: log π(y_t) of the policy that sampled, nats.
        ref_logprobs: log π_ref(y_t).
        scores: the reward of each whole answer, the penalty for a missing end included.
        advantages: whitened A_t.
        returns: R_t = A_t + V_t from the advantages before they were whitened.
        values: V_t.
    """

    prompts: Int[Tensor, "B P"]
    prompt_mask: Bool[Tensor, "B P"]
    responses: Int[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]
    logprobs: Float[Tensor, "B T"]
    ref_logprobs: Float[Tensor, "B T"]
    scores: Float[Tensor, "B"]
    values: Float[Tensor, "B T"]
    advantages: Float[Tensor, "B T"]
    returns: Float[Tensor, "B T"]

    @property
    def tokens(self) -> Tokens:
        """What the models take."""
        return self.prompts, self.prompt_mask, self.responses, self.mask

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: Int[Tensor, "R"] | slice) -> "Rollout":
        return Rollout(*(getattr(self, field.name)[rows] for field in fields(self)))


def text_reward(
    function: Callable[[str, str, bool], float], tokenizer: Tokenizer
) -> Reward:
    """Make a reward of a Python function of the texts.

    Args:
        function: (prompt, response, finished) to a number; finished says whether the
            answer has ended by itself.
        tokenizer: turns tokens into texts again.
    """

    def reward(
        prompts: Tensor, prompt_mask: Tensor, responses: Tensor, mask: Tensor
    ) -> Tensor:
        answers = answers_of((prompts, prompt_mask, responses, mask), tokenizer)
        told = zip(answers.prompts, answers.texts, answers.finished)
        scores = [float(function(*one)) for one in told]
        return torch.tensor(scores, device=prompts.device)

    return reward


def penalise_missing_eos(
    scores: Float[Tensor, "B"],
    responses: Int[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    eos_id: int,
    penalty: float,
) -> Float[Tensor, "B"]:
    """Take `penalty` from the score of each answer that has not ended by itself.

    Args:
        scores: of the whole answers.
        responses, mask: right-padded; the mask is True up to and including the
            end-of-sequence token, or at all that there is where it never came. What
            stands where the mask is False means nothing, and may look like an end.
        eos_id: ends an answer.
        penalty: points; 0 or more.

    Example: end-of-sequence token 2, penalty 1, scores (.5, .5): the answers (7, 2) and
    (7, 8) have the scores .5 and −.5.
    """
    finished = (mask & (responses == eos_id)).any(1)
    return scores - penalty * ~finished


@torch.no_grad()
def shape_rewards(
    scores: Float[Tensor, "B"],
    logprobs: Float[Tensor, "B T"],
    ref_logprobs: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    kl_coef: float,
) -> Float[Tensor, "B T"]:
    """r_t = −β (log π(y_t) − log π_ref(y_t)), and the score besides at the last token.

    The sum over an answer is score − β Σ_t k1_t: the KL-regularised objective, told
    token by token. The KL is part of the reward, a number without a gradient.

    Args:
        scores: of the whole answers.
        logprobs, ref_logprobs: log π(y_t) of the policy and of the reference.
        mask: True up to and including the last token, wherever a row ends; at least
            one token a row.
        kl_coef: β, reward units a nat.

    Returns:
        r_t, 0 where the mask is False; never with a gradient.

    Example: β = .1, score 1, an answer of two tokens with k1 of (.5, −.2), and a column
    of padding: (−.05, 1.02, 0).

    Source: InstructGPT (arXiv 2203.02155), equation 2, without its pretraining term.
    """
    rewards = torch.where(mask, -kl_coef * k1(logprobs, ref_logprobs), 0.0)
    last = mask.sum(1, keepdim=True) - 1
    return rewards.scatter_add(1, last, scores[:, None])


# --- asking the networks ------------------------------------------------------------

Asking = PPOConfig | GroupConfig  # both say how: temperature, micro_batch, ...


def read(
    network: Callable[..., Tensor], answers: Tokens, config: Asking
) -> Float[Tensor, "B ..."]:
    """What a network says about each answer, float32, without a gradient.

    It reads `config.micro_batch` answers at a time; of several processes each asks
    about its share, and all get to know.
    """
    return row_by_row(
        lambda rows: network(*(x[rows] for x in answers)).float(),
        len(answers[0]),
        config.micro_batch,
    )


def answer_logprobs(
    model: PaLM, answers: Tokens, config: Asking
) -> Float[Tensor, "B T"]:
    """log π(y_t) of given answers, nats, 0 behind their ends: see `read`."""

    def logprobs(asked: Tensor, seen: Tensor, said: Tensor, kept: Tensor) -> Tensor:
        logits = response_logits(model, asked, seen, said, kept, config.temperature)
        return torch.where(kept, token_logprobs(logits, said), 0.0)

    return read(logprobs, answers, config)


@torch.no_grad()
def sample_answers(
    policy: PaLM,
    prompts: Int[Tensor, "B P"],
    prompt_mask: Bool[Tensor, "B P"],
    *,
    config: Asking,
    max_response: int,
    eos_id: int,
    generator: torch.Generator,
    sample: Callable[..., Sampled],
    clock: Clock,
    full_width: bool = False,
) -> tuple[Tokens, Float[Tensor, "B T"]]:
    """Answers of the policy, and log π(y_t) of their tokens as training will find them.

    Args:
        policy, prompts, prompt_mask, max_response, eos_id, generator, sample, clock:
            see `collect`.
        config: temperature, reuse_logprobs and micro_batch are read.
        full_width: answers of max_response columns, and not of the longest one's.

    Raises:
        InvariantError: the sampler's law is another one than the policy's, see
            `minipalm.rlhf.invariants.check_gap`.
    """
    with clock.phase("rollout"):
        sampled = sample(
            policy,
            prompts,
            prompt_mask,
            max_new_tokens=max_response,
            eos_id=eos_id,
            generator=generator,
            temperature=config.temperature,
        )
    T = int(sampled.mask.sum(1).max())  # nobody's answer is longer
    if full_width or machine_of(policy).compile:  # compiled for one width
        T = max_response
    responses, mask = sampled.responses[:, :T], sampled.mask[:, :T]
    answers = (prompts, prompt_mask, responses, mask)
    logprobs = sampled.logprobs[:, :T]
    if not config.reuse_logprobs:
        with clock.phase("logprobs"):
            logprobs = answer_logprobs(policy, answers, config)
        apart = sampled.logprobs[:, :T] - logprobs  # nats; the mean is a KL
        gap = masked_mean(apart.abs(), mask).item()
        clock.note(sampler_gap=gap, sampler_kl=masked_mean(apart, mask).item())
        check_gap(gap)
    return answers, logprobs


@torch.no_grad()
def final_scores(
    reward: Reward, answers: Tokens, config: Asking, eos_id: int
) -> Float[Tensor, "B"]:
    """The reward of each answer, less the penalty where it has not ended by itself.

    Raises:
        ValueError: the reward gave something else than one score an answer.
    """
    responses, mask = answers[2:]
    scores = read(reward, answers, config)
    if scores.shape != mask.shape[:1]:
        raise ValueError(
            f"a reward gives one score an answer: expected {tuple(mask.shape[:1])} "
            f"numbers, got {tuple(scores.shape)}"
        )
    penalty = config.missing_eos_penalty
    return penalise_missing_eos(scores, responses, mask, eos_id, penalty)


@torch.no_grad()
def collect(
    policy: PaLM,
    reference: PaLM,
    critic: Critic,
    reward: Reward,
    prompts: Int[Tensor, "B P"],
    prompt_mask: Bool[Tensor, "B P"],
    *,
    config: PPOConfig,
    max_response: int,
    eos_id: int,
    kl_coef: float,
    generator: torch.Generator,
    sample: Callable[..., Sampled] = generate,
    clock: Clock | None = None,
) -> Rollout:
    """Let the policy answer the prompts, and work out advantages and returns.

    With `config.reuse_logprobs` the sampler's own log-probabilities are kept: in
    float32 they are those of a second pass to a few parts in a million, and a pass is
    saved.

    Args:
        policy, reference, critic, reward: the four models. None gets a gradient here.
        prompts, prompt_mask: left-padded.
        config: temperature, missing_eos_penalty, gamma, lam, reuse_logprobs and
            micro_batch (answers that a network reads at a time) are read.
        max_response: T, the longest answer.
        eos_id: ends an answer; an answer without it loses missing_eos_penalty.
        kl_coef: β of this rollout.
        generator: draws the tokens.
        sample: draws the answers, with the arguments of `generate`.
        clock: measures the phases.

    Raises:
        ValueError: the reward gave something else than one score an answer.
        InvariantError: something that holds in every right run does not, see
            `minipalm.rlhf.invariants.check_rollout`.
    """
    clock = clock or Clock(policy)
    answers, logprobs = sample_answers(
        policy,
        prompts,
        prompt_mask,
        config=config,
        max_response=max_response,
        eos_id=eos_id,
        generator=generator,
        sample=sample,
        clock=clock,
    )
    mask = answers[3]
    with clock.phase("reference"):
        ref_logprobs = answer_logprobs(reference, answers, config)
    with clock.phase("values"):
        values = torch.where(mask, read(critic, answers, config), 0.0)
    with clock.phase("reward"):
        scores = final_scores(reward, answers, config, eos_id)
    rewards = shape_rewards(scores, logprobs, ref_logprobs, mask, kl_coef)
    check_rollout(
        policy,
        reference,
        answers,
        logprobs,
        ref_logprobs,
        values,
        scores,
        rewards,
        eos_id=eos_id,
        kl_coef=kl_coef,
        temperature=config.temperature,
    )
    advantages, returns = gae(rewards, values, mask, config.gamma, config.lam)
    return Rollout(
        *answers,
        logprobs=logprobs,
        ref_logprobs=ref_logprobs,
        scores=scores,
        values=values,
        advantages=whiten(advantages, mask),
        returns=returns,
    )

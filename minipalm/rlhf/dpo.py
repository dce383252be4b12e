"""DPO: from comparisons to a policy, without a reward model and without sampling.

The best policy for E r(x, y) − β KL(π ‖ π_ref) is known (`tests/rlhf/test_bandit.py`
enumerates it):

    π*(y | x) = π_ref(y | x) e^{r(x, y)/β} / Z(x)

Read it the other way round: for any policy π there is a reward for which it is best,

    r(x, y) = β (log π(y | x) − log π_ref(y | x)) + β log Z(x)

Bradley and Terry ask only for the difference of two rewards of one prompt, in which
the unknown Z(x) cancels. So their likelihood is a loss for the policy itself.

Source: Rafailov et al. 2023 (arXiv 2305.18290), section 4.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minipalm.model.palm import PaLM
from minipalm.model.place import beside, machine_of
from minipalm.parallel import of_all, row_by_row
from minipalm.rlhf.log import Log
from minipalm.rlhf.logprobs import response_logits, token_logprobs
from minipalm.rlhf.pairs import Pairs


def pairs_of_log(log: Log) -> Pairs:
    """Comparisons by the score, of a log with two answers to each prompt.

    Args:
        log: answers 2i and 2i + 1 are to one prompt. Equal scores make no pair.

    Raises:
        ValueError: there is no pair, or an answer without another one.
    """
    if len(log) % 2:
        raise ValueError(
            f"expected two answers to each prompt, one after the other; the log has "
            f"{len(log)} answers: leave out what has no other"
        )
    first, second = log.scores.view(-1, 2).unbind(1)
    won = torch.where(first > second, 0, 1)
    even = 2 * torch.arange(len(won), device=won.device)
    chosen, rejected = even + won, even + 1 - won
    told = first != second
    if not told.any():
        raise ValueError(
            f"the log's {len(log)} answers make no pair: to no prompt were two scored "
            "differently. Log more answers, or look at the reward model"
        )
    chosen, rejected = chosen[told], rejected[told]
    return Pairs(
        log.prompts[chosen],
        log.prompt_mask[chosen],
        log.responses[chosen],
        log.mask[chosen],
        log.responses[rejected],
        log.mask[rejected],
    )


def sequence_logprobs(
    policy: PaLM,
    prompts: Int[Tensor, "B P"],
    prompt_mask: Bool[Tensor, "B P"],
    responses: Int[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
) -> Float[Tensor, "B"]:
    """log π(y | x) = Σ_t log π(y_t | x, y_<t), the end-of-sequence token included.

    The sum, not the mean: the derivation is about the probability of the whole answer.
    A mean would make it another law, in which a long answer's tokens count less.

    Args:
        policy: its weights get a gradient.
        prompts, prompt_mask: left-padded.
        responses, mask: right-padded; what stands where mask is False has no effect.

    Returns:
        nats, at most 0, float32.

    Example: tokens of probability 1/2 and 1/4, then padding: log 1/8 = −2.0794.
    """
    logits = response_logits(policy, prompts, prompt_mask, responses, mask)
    return torch.where(mask, token_logprobs(logits, responses), 0.0).sum(1)


def pair_logprobs(
    policy: PaLM, pairs: Pairs
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
    """`sequence_logprobs` of the better and of the worse answers, in one pass.

    Args:
        policy: its weights get a gradient.
        pairs: on any device.
    """
    pairs = beside(policy, pairs)
    prompts, prompt_mask = pairs.prompts.repeat(2, 1), pairs.prompt_mask.repeat(2, 1)
    answers = torch.cat([pairs.chosen, pairs.rejected])
    mask = torch.cat([pairs.chosen_mask, pairs.rejected_mask])
    T = int(mask.sum(1).max())  # nobody's answer is longer
    if machine_of(policy).compile:  # for one width
        T = mask.shape[1]
    logprobs = sequence_logprobs(
        policy, prompts, prompt_mask, answers[:, :T], mask[:, :T]
    )
    chosen, rejected = logprobs.chunk(2)
    return chosen, rejected


@torch.no_grad()
def reference_logprobs(
    reference: PaLM, pairs: Pairs, batch_size: int = 256
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
    """`pair_logprobs` of all pairs under the reference: it never changes, so once.

    Each process asks about its share, and all get to know.

    Args:
        reference: the policy as it is before training.
        pairs: on any device.
        batch_size: pairs at a time.
    """
    number, at_once = len(pairs), of_all(batch_size)
    if machine_of(reference).compile:  # for whole batches: the last pair fills them up
        number = -(-number // at_once) * at_once

    def both(rows: Int[Tensor, "n"]) -> Float[Tensor, "n 2"]:
        some = pairs[rows.clamp(max=len(pairs) - 1)]
        return torch.stack(pair_logprobs(reference, some), dim=1)

    chosen, rejected = row_by_row(both, number, batch_size)[: len(pairs)].unbind(1)
    return chosen, rejected


def implicit_rewards(
    logprobs: Float[Tensor, "N"], ref_logprobs: Float[Tensor, "N"], beta: float
) -> Float[Tensor, "N"]:
    """β (log π(y | x) − log π_ref(y | x)): the reward for which π is best.

    Up to β log Z(x), which is the same for all answers to a prompt: compare answers to
    one prompt only.

    Args:
        logprobs, ref_logprobs: of whole answers, nats.
        beta: β, reward units a nat.

    Example: β = .1, log-probabilities −10 and −12: an implicit reward of .2.
    """
    return beta * (logprobs - ref_logprobs)


def dpo_loss(
    chosen: Float[Tensor, "N"],
    rejected: Float[Tensor, "N"],
    ref_chosen: Float[Tensor, "N"],
    ref_rejected: Float[Tensor, "N"],
    beta: float,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """−log σ(Δ), mean over pairs; Δ is the difference of the implicit rewards.

    Args:
        chosen, rejected: log π(y | x) of the better and of the worse answers, nats,
            row n of both for one pair; they carry the gradient.
        ref_chosen, ref_rejected: log π_ref of the same. Constants: if they come with a
            gradient, it is cut off.
        beta: β > 0, reward units a nat. The smaller, the further the policy goes to
            make the same difference of rewards.
        label_smoothing: ε, the share of labels believed to be wrong, 0 to below .5:
            −(1 − ε) log σ(Δ) − ε log σ(−Δ). Then a Δ of log((1 − ε)/ε) is best, and not
            an infinite one.

    Returns:
        nats a pair; finite however far the answers are apart.

    Example: policy = reference: log 2 = .6931 whatever β and ε. β = .5, chosen gained 2
    nats, rejected lost 2: Δ = 2, loss .1269; with ε = .1 it is .3269.

    Source: Rafailov et al. 2023 (arXiv 2305.18290), equation 7, for ε = 0.
    """
    delta = implicit_rewards(chosen, ref_chosen.detach(), beta) - implicit_rewards(
        rejected, ref_rejected.detach(), beta
    )
    right, wrong = F.logsigmoid(delta), F.logsigmoid(-delta)
    return -((1 - label_smoothing) * right + label_smoothing * wrong).mean()

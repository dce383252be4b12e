"""Best of n: ask n times, keep the answer that the reward model likes best.

Nothing is trained, and every answer costs n. It is the yardstick for everything that
is trained: which method gets more of the true reward, at the same distance from SFT?
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minipalm.model.generate import generate
from minipalm.model.palm import PaLM
from minipalm.rlhf.rollout import Reward


def pick_best(scores: Float[Tensor, "B n"]) -> Int[Tensor, "B"]:
    """Which of n answers to each prompt has the best score; of equals, the first.

    Example: scores (1, 3, 3) and (2, 0, 1): places 1 and 0.
    """
    best = scores.amax(1, keepdim=True)
    return (scores == best).long().argmax(1)


@dataclass(frozen=True)
class Best:
    """The best answer to each prompt.

    Attributes:
        responses, mask: right-padded; the mask includes the end-of-sequence token.
        scores: of the answers kept.
    """

    responses: Int[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]
    scores: Float[Tensor, "B"]


@torch.no_grad()
def best_of_n(
    policy: PaLM,
    reward: Reward,
    prompts: Int[Tensor, "B P"],
    prompt_mask: Bool[Tensor, "B P"],
    n: int,
    *,
    max_response: int,
    eos_id: int,
    generator: torch.Generator,
    temperature: float = 1.0,
) -> Best:
    """Sample n answers to each prompt, and keep the one with the best score.

    Args:
        policy: answers; it is not changed.
        reward: the proxy that chooses, such as a RewardModel.
        prompts, prompt_mask: left-padded.
        n: answers to each prompt; with 1 it is the policy itself.
        max_response: T, the longest answer.
        eos_id: ends an answer.
        generator: draws the tokens.
        temperature: divides the logits.
    """
    B = len(prompts)
    asked = prompts.repeat_interleave(n, 0), prompt_mask.repeat_interleave(n, 0)
    told = generate(
        policy,
        *asked,
        max_new_tokens=max_response,
        eos_id=eos_id,
        generator=generator,
        temperature=temperature,
    )
    scores = reward(*asked, told.responses, told.mask).float()
    rows = torch.arange(B, device=scores.device) * n + pick_best(scores.view(B, n))
    return Best(told.responses[rows], told.mask[rows], scores[rows])


def best_of_n_kl(n: int) -> float:
    """log n − (n − 1)/n: KL(best of n ‖ policy), nats.

    Exact where no two answers have the same score. With ties, or when the policy gives
    the same answer twice, it is an upper bound: four equally probable answers and n = 4
    have .5903, the formula says .6363.

    Args:
        n: 1 or more.

    Example: 0 for n = 1, .1931 for 2, 1.8351 for 16, 3.1745 for 64.

    Raises:
        ValueError: n is below 1.

    Source: Gao, Schulman and Hilton 2022 (arXiv 2210.10760), where it measures the
    distance that best-of-n has gone.
    """
    if n < 1:
        raise ValueError(f"n must be 1 or more (got {n})")
    return math.log(n) - (n - 1) / n


def best_of_n_estimate(
    proxy: Float[Tensor, "N"], values: Float[Tensor, "N"], n: int
) -> Float[Tensor, ""]:
    """What best of n would get, without bias, from N >= n answers to one prompt.

    It is the mean, over all C(N, n) ways to choose n of the N answers, of the value of
    the one whose proxy is best. Sorted by proxy, answer i (from 1) is the best of those
    choices that take the other n − 1 from the i − 1 before it:

        Σ_i C(i − 1, n − 1) / C(N, n) · values_(i)

    Add up this sum instead of going through the choices: N may be 1,500, and then the
    numbers of choices leave the range of floats, too; their logarithms do not.

    Equal proxies: each of the equal ones is the best equally often.

    Args:
        proxy: what chooses.
        values: what is asked about: the true reward, the proxy itself, 1 for a win.
        n: 1 to N. With 1 it is the mean of values, with N the value of the best.

    Returns:
        the estimate, float64; the gradient goes to values.

    Example: n = 2, proxy (4, 1, 3, 2), values (.3, .9, .1, .5): of the six pairs, three
    keep .3, two .1 and one .5: .2667.

    Raises:
        ValueError: n is not from 1 to N.
    """
    N = len(proxy)
    if not 1 <= n <= N:
        raise ValueError(f"n must be from 1 to the number of answers, {N} (got {n})")
    order = proxy.argsort()
    # Equal proxies share their mean, whichever of them the sort has put first.
    _, group, size = proxy.unique(return_inverse=True, return_counts=True)
    sums = values.new_zeros(len(size), dtype=torch.float64)
    shared = (sums.index_add(0, group, values.double()) / size)[group]
    # log C(i − 1, n − 1) − log C(N, n): the numbers themselves overflow.
    before = torch.arange(N, dtype=torch.float64, device=proxy.device)
    log_ways = log_choose(before, n - 1) - log_choose(before.new_tensor(float(N)), n)
    weights = torch.where(before >= n - 1, log_ways.exp(), 0.0)
    return (weights * shared[order]).sum()


def log_choose(total: Float[Tensor, "*shape"], k: int) -> Float[Tensor, "*shape"]:
    """log C(total, k) by log-gamma; meaningless where total < k."""
    left = (total - k).clamp(min=0)
    return torch.lgamma(total + 1) - torch.lgamma(left + 1) - math.lgamma(k + 1)

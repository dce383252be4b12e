"""Two policies on the same prompts: by how much, at equal length, from how many pairs.

A comparison is paired: answer n of one stands against answer n of the other. What both
owe to the prompt cancels in the difference, and only the difference is doubtful.
"""

import math
from statistics import NormalDist

import torch
from jaxtyping import Float, Int
from torch import Tensor


def paired_bootstrap(
    a: Float[Tensor, "N"],
    b: Float[Tensor, "M"],
    generator: torch.Generator,
    resamples: int = 2000,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """By how much a is better than b on average, and an interval for it.

    What if other prompts like these had been asked? Draw N of the pairs with
    replacement, take the mean of a − b, do it `resamples` times: the middle `level` of
    these means is the interval. A pair is never torn apart.

    Args:
        a, b: judgements of two policies' answers, row n of both for the same prompt, so
            M must be N.
        generator: draws the pairs, all at once:
            `torch.randint(N, (resamples, N), generator=generator)`.
        resamples: R; the ends of the interval are as sure as that is large.
        level: the share of the means between the two ends, which are quantiles of them,
            as `torch.quantile` interpolates.

    Returns:
        (mean of a − b, low, high), three Python floats in the unit of a and b.

    Example: a (3, 5, 9), b (1, 3, 7): the gain is 2 in each pair, so (2, 2, 2).

    Raises:
        ValueError: a and b differ in length, or there are fewer than two pairs.

    Source: Efron 1979, "Bootstrap methods: another look at the jackknife".
    """
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(
            "a paired comparison needs two or more answers of each policy, to the same"
            f" prompts (got {len(a)} and {len(b)})"
        )
    gains = (a - b).double()
    rows = torch.randint(len(gains), (resamples, len(gains)), generator=generator)
    means = gains[rows].mean(dim=1)
    low = means.quantile((1 - level) / 2).item()
    high = means.quantile((1 + level) / 2).item()
    return gains.mean().item(), low, high


def samples_needed(
    gain: float, sd: float, level: float = 0.95, power: float = 0.8
) -> int:
    """How many pairs show a gain of this size, if it is really there?

    The mean of N differences has a standard error of sd/√N. It must lie so far from 0
    that the interval leaves 0 out, and a little farther still, since the measured gain
    falls short of the true one half of the time: gain = (z_level + z_power) · sd/√N.
    z_level leaves (1 − level)/2 of the normal law above it, z_power 1 − power.

    Args:
        gain: the true mean of a − b that should not be missed; its sign does not
            matter.
        sd: standard deviation of a − b from pair to pair, in the same unit.
        level: of the interval, which has two ends.
        power: how often the interval should leave 0 out.

    Returns:
        the smallest whole number of pairs that is enough; at least 2, since one pair
        has no standard deviation.

    Example: gain 0.5, sd 2: (1.960 + 0.842)² · 4² = 125.6, so 126.

    Raises:
        ValueError: the gain is 0, which no number of pairs can show.
    """
    if gain == 0:
        raise ValueError("no number of pairs can show a gain of 0")
    law = NormalDist()
    z = law.inv_cdf((1 + level) / 2) + law.inv_cdf(power)
    return max(2, math.ceil((z * sd / gain) ** 2))


def logistic_fit(
    features: Float[Tensor, "N F"], won: Float[Tensor, "N"], ridge: float = 0.01
) -> Float[Tensor, "F"]:
    """The weights w for which σ(features @ w) tells best who won, by Newton's method.

    They maximise Σ won log p + (1 − won) log(1 − p) − ridge/2 · |w|², which has one
    maximum. The ridge is small; without it the weights would be infinite where one side
    has won all pairs.

    Args:
        features: a column for each weight; of ones, if there should be a constant.
        won: from 0 to 1, such as 1/2 for a tie.
        ridge: pulls the weights to 0.

    Returns:
        float64.
    """
    x, won = features.double(), won.double()
    w = x.new_zeros(x.shape[1])
    eye = ridge * torch.eye(len(w), dtype=x.dtype)
    for _ in range(50):
        p = torch.sigmoid(x @ w)
        slope = x.T @ (won - p) - ridge * w
        curvature = (x * (p * (1 - p))[:, None]).T @ x + eye
        step = torch.linalg.solve(curvature, slope)
        w = w + step / max(1.0, step.norm().item())  # far from the top: not too far
    return w


def length_controlled(
    won: Float[Tensor, "N"], longer_by: Float[Tensor, "N"] | Int[Tensor, "N"]
) -> tuple[float, float]:
    """The win rate if both answers were of equal length, as far as that can be told.

    Suppose that the chance to win is p = σ(α + γ x) with x = tanh(d / s): d is how much
    longer the answer is, s the standard deviation of all d (divided by N, about their
    mean). Fit α and γ to the pairs; at d = 0 x is 0, and what is left is σ(α).

    It assumes that length acts by this curve and in the same way on every prompt, and
    that it is a bias: where a better answer *must* be longer, its merit is taken off,
    too.

    Args:
        won: 1 where the policy wins, 1/2 for a tie, 0 where it loses.
        longer_by: d, tokens of the policy's answer less those of the other one.

    Returns:
        (σ(α), γ): the win rate at equal length, and by how many nats of odds length has
        helped at most; 0: not at all. Python floats, from `logistic_fit`, which is at
        hand: `logistic_fit(features, won)` gives a weight for each column.

    Example: won (1, 1, 0, 1, 0), longer_by (5, 3, 4, −1, −2) gives (0.546, 0.713),
    where the plain win rate is 0.6.

    Raises:
        ValueError: all d are equal, so nothing tells what length does.

    Source: Dubois et al. 2024 (arXiv 2404.04475), whose model has a term for the
    difficulty of each prompt besides.
    """
    d = longer_by.double()
    if (d == d[0]).all():
        raise ValueError("all pairs differ by the same length: what does it do?")
    x = torch.tanh(d / d.std(correction=0))
    features = torch.stack([torch.ones_like(x), x], dim=1)
    alpha, gamma = logistic_fit(features, won)
    return torch.sigmoid(alpha).item(), gamma.item()

"""Numbers that judge a policy or a reward model, with how sure we may be of them."""

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist, fmean
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

# --- intervals ----------------------------------------------------------------------


class Interval(NamedTuple):
    """A share of n trials, and the interval that holds the true one, probably."""

    rate: float
    low: float
    high: float
    n: int


def wilson(successes: float, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval for a share: the true shares that a test cannot reject.

    These are all p with |p̂ − p| ≤ z √(p (1 − p) / n), where p̂ = successes / n. Solved
    for p, they lie between (p̂ + z²/2n ± z √(p̂ (1 − p̂)/n + z²/4n²)) / (1 + z²/n).

    Unlike p̂ ± 2 standard errors it stays inside [0, 1], and it is not empty when all
    trials went the same way.

    Args:
        successes: from 0 to n; a tie may count as half of one.
        n: trials, at least 1.
        level: how often such an interval holds the true share. z is the quantile of
            the standard normal law that leaves (1 − level)/2 above it.

    Returns:
        an `Interval`: rate (p̂), low and high, within [0, 1], and n.

    Example: `wilson(8, 10)` has rate 0.8, low 0.490 and high 0.943.

    Raises:
        ValueError: there is no trial, or successes are not from 0 to n.

    Source: E. B. Wilson 1927, "Probable inference, the law of succession, and
    statistical inference".
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(
            "wilson needs at least one trial and successes from 0 to n"
            f" (got successes={successes}, n={n})"
        )
    z = NormalDist().inv_cdf((1 + level) / 2)
    rate = successes / n
    center = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(rate * (1 - rate) / n + (z / (2 * n)) ** 2) / (1 + z**2 / n)
    return Interval(rate, max(0.0, center - half), min(1.0, center + half), n)


def wins(
    a: Float[Tensor, "*N"] | Int[Tensor, "*N"],
    b: Float[Tensor, "*N"] | Int[Tensor, "*N"],
) -> Float[Tensor, "*N"]:
    """Place by place: 1 where a is larger, 1/2 where they are equal, 0 else."""
    return (a > b).double() + 0.5 * (a == b).double()


def win_rate(
    a: Float[Tensor, "N"] | Int[Tensor, "N"], b: Float[Tensor, "N"] | Int[Tensor, "N"]
) -> Interval:
    """The share of prompts on which a beats b, with its `wilson` interval.

    A tie is half a win, so that a policy has a win rate of 1/2 against itself. The
    interval takes it for half a trial won, which is a little too careful: it is as wide
    as if every tie had been decided by a coin.

    Args:
        a, b: judgements of two policies' answers, larger is better; row n of both for
            the same prompt.

    Returns:
        an `Interval` at level 0.95; its `n` counts all prompts, ties too.

    Example: a (3, 1, 2) and b (1, 1, 5) are a win, a tie and a loss: rate 0.5, n 3.
    """
    won = (a > b).double() + 0.5 * (a == b).double()
    return wilson(won.sum().item(), len(a))


def gain_in_sd(before: Float[Tensor, "N"], after: Float[Tensor, "M"]) -> float | None:
    """How far the mean has risen, in standard deviations of what was before.

    None where all before are equal: their standard deviation is nothing but rounding.

    Example: from (1, 2, 3) to (2, 4): 1.0.
    """
    if before.min() == before.max():
        return None
    return (after.mean().item() - before.mean().item()) / before.std().item()


def mean_interval(x: Float[Tensor, "N"]) -> tuple[float, float]:
    """The mean of x, and half the width of its 95 % interval: 1.96 standard errors.

    For a few dozen values or more, from one law; for fewer it is too narrow.

    Example: `mean_interval(tensor([1., 2., 3., 4.]))` is (2.5, 1.265).
    """
    if len(x) < 2:
        raise ValueError(f"an interval for a mean needs two values (got {len(x)})")
    return x.mean().item(), 1.959964 * x.std().item() / math.sqrt(len(x))


# --- the reward model ---------------------------------------------------------------


def accuracy(
    chosen: Float[Tensor, "N"] | Int[Tensor, "N"],
    rejected: Float[Tensor, "N"] | Int[Tensor, "N"],
) -> float:
    """The share of pairs whose chosen answer scores higher; a tie is half right.

    Args:
        chosen, rejected: scores of the better and of the worse answers, row n of both
            for one pair.

    Returns:
        a Python float from 0 to 1.

    Example: chosen (3, 1, 2, 0) and rejected (1, 1, 5, −1) give 2.5 of 4: 0.625.
    """
    right = (chosen > rejected).double() + 0.5 * (chosen == rejected).double()
    return right.mean().item()


def length_auc(chosen: Int[Tensor, "N"], rejected: Int[Tensor, "N"]) -> float:
    """The accuracy of a judge who knows nothing but lengths and prefers the longer.

    Print it beside a reward model's accuracy. At 0.5 length tells nothing; far from
    that, on either side, the model may have learnt to count.

    Args:
        chosen, rejected: tokens of the better and of the worse answers.
    """
    return accuracy(chosen, rejected)


class Bin(NamedTuple):
    """Pairs of which the reward model was about equally sure."""

    confidence: float  # mean of what it said, in [0.5, 1]
    share: float  # how often the answer that it prefers was the chosen one
    pairs: int


def reliability(
    chosen: Float[Tensor, "N"], rejected: Float[Tensor, "N"], bins: int = 10
) -> list[Bin]:
    """Does it come true in 70 % of the cases in which the model is 70 % sure?

    Bradley and Terry make two scores a probability, p = σ(chosen − rejected), with σ
    the logistic function. Which answer stands first is our doing, so we look from the
    side that the model prefers: its confidence is max(p, 1 − p), and it is right where
    p > 1/2, half right at 1/2.

    Args:
        chosen, rejected: scores in the units in which the pairwise loss saw them. Those
            of a normalised reward model must be multiplied by its `std` first.
        bins: equal parts of [0.5, 1]; those that no pair falls into are left out. A
            confidence of 1 belongs to the last.

    Returns:
        a `Bin(confidence, share, pairs)` for each part, the least sure first: the mean
        confidence, the share of right ones (both floats) and the number of pairs.

    Example: differences (0.2, −0.2, 3) and two bins: σ(0.2) = .5498 and σ(3) = .9526,
    so [Bin(.5498, .5, 2), Bin(.9526, 1, 1)].
    """
    confidence = torch.sigmoid((chosen - rejected).double().abs())
    right = (chosen > rejected).double() + 0.5 * (chosen == rejected).double()
    index = ((confidence - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    found = [index == b for b in range(bins)]
    return [
        Bin(confidence[here].mean().item(), right[here].mean().item(), int(here.sum()))
        for here in found
        if here.any()
    ]


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Mean distance between what was said and what came true, weighted by pairs.

    Example: half of the pairs at confidence 0.9 and share 0.7, half at 0.6 and 0.6:
    0.5 · 0.2 + 0.5 · 0 = 0.1.

    Source: Guo et al. 2017 (arXiv 1706.04599), equation 3.
    """
    total = sum(one.pairs for one in bins)
    return sum(one.pairs * abs(one.share - one.confidence) for one in bins) / total


# --- over-optimisation --------------------------------------------------------------


def smooth(values: Sequence[float], window: int = 3) -> list[float]:
    """The mean of each value and its neighbours, `window` of them in all.

    At the ends, of those that there are: `smooth([0, 3, 6, 3])` is [1.5, 3, 4, 4.5].
    """
    half = window // 2
    return [fmean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]


class OverOptimisation(NamedTuple):
    """How far the gold reward fell while the reward model's score went on."""

    peak_gold: float
    end_gold: float
    fall: float  # peak_gold − end_gold, points; 0 if gold never fell
    proxy_at_peak: float  # in standard deviations of SFT answers
    proxy_at_end: float
    peak: int  # which row of the curve


def gold_and_proxy(
    peak_gold: float, end_gold: float, proxy_at_peak: float, proxy_at_end: float
) -> str:
    """What became of both, in words; a number that is shown twice did not move.

    >>> gold_and_proxy(7.3, 2.0, 1.5, 3.0)
    'gold peaks at 7.3 and ends at 2.0, while the proxy goes on from 1.5 to 3.0 sd'
    >>> gold_and_proxy(1.71, 1.69, 0.1, 0.12)
    'gold ends where it is highest, at 1.7, and the proxy stays at 0.1 sd'
    """
    peak, end = f"{peak_gold:.1f}", f"{end_gold:.1f}"
    before, after = f"{proxy_at_peak:z.1f}", f"{proxy_at_end:z.1f}"
    if before == after:
        proxy = f"the proxy stays at {after} sd"
    else:
        proxy = f"the proxy goes on from {before} to {after} sd"
    if peak == end:
        return f"gold ends where it is highest, at {end}, and {proxy}"
    return f"gold peaks at {peak} and ends at {end}, while {proxy}"


def over_optimisation(
    curve: Sequence[Mapping[str, Any]], window: int = 3
) -> OverOptimisation:
    """Find the peak of gold along a run, and compare it with the run's end.

    Args:
        curve: rows with "gold" and "score", in the order of training.
        window: rows that are averaged first, so that one lucky batch is no peak.
    """
    gold = smooth([row["gold"] for row in curve], window)
    proxy = smooth([row["score"] for row in curve], window)
    peak = max(range(len(gold)), key=gold.__getitem__)
    return OverOptimisation(
        gold[peak], gold[-1], gold[peak] - gold[-1], proxy[peak], proxy[-1], peak
    )

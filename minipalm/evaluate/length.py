"""Does a reward model pay for length? The diagnosis, and the removal."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class LengthEffect(NamedTuple):
    """What length does to a score, among answers that are equally good."""

    slope: float  # score for one token more, at equal gold
    correlation: float  # partial correlation of score and length, from −1 to 1


def residuals(
    y: Float[Tensor, "N"] | Int[Tensor, "N"], x: Float[Tensor, "N"]
) -> Float[Tensor, "N"]:
    """What is left of y when the straight line in x that fits it best is taken away.

    Example: y (1, 2, 6) on x (0, 1, 2) has the line .5 + 2.5 x: (.5, −1, .5) is left.
    """
    x, y = x.double(), y.double()
    away = x - x.mean()
    power = away.square().sum()
    slope = (away * y).sum() / power if power > 0 else 0.0
    return y - y.mean() - slope * away


def length_effect(
    scores: Float[Tensor, "N"],
    lengths: Int[Tensor, "N"] | Float[Tensor, "N"],
    gold: Float[Tensor, "N"],
) -> LengthEffect:
    """How much a score rises with length, among answers of equal gold.

    A score may grow with length for a good reason: longer answers may be better. So
    take from score and from length what gold explains, by a straight line each (that is
    what `residuals(y, x)` does: what is left of y when its line in x is taken away),
    and compare what is left of both, s and l.

    Args:
        scores: of a reward model, for N ≥ 3 answers.
        lengths: tokens.
        gold: how good the answers really are, by a careful audit.

    Returns:
        `LengthEffect(slope, correlation)`, plain numbers: the slope Σ s l / Σ l² of the
        best line for s in l, score units a token, and the correlation of both,
        Σ s l / √(Σ s² Σ l²). Both are 0.0 where Σ s² or Σ l² is nothing but rounding,
        below 1e-12.

    Raises:
        ValueError: fewer than three answers.

    Example: scores 2·gold + 0.1·lengths have the slope 0.1 and the correlation 1,
    whatever gold and lengths have to do with each other.
    """
    if len(scores) < 3:
        raise ValueError(f"expected at least three answers (got {len(scores)})")
    score, length = residuals(scores, gold), residuals(lengths, gold)
    together = (score * length).sum()
    powers = score.square().sum(), length.square().sum()
    if min(powers) < 1e-12:
        return LengthEffect(0.0, 0.0)
    slope = together / powers[1]
    correlation = together / (powers[0] * powers[1]).sqrt()
    return LengthEffect(slope.item(), correlation.item())


def without_length(
    scores: Float[Tensor, "B"],
    lengths: Int[Tensor, "B"] | Float[Tensor, "B"],
    slope: float,
    usual: float,
) -> Float[Tensor, "B"]:
    """A score without the price of length: score − slope · (length − usual).

    Args:
        scores: of a reward model that pays for length; a gradient flows on.
        lengths: tokens.
        slope: what it pays for a token, see `length_effect`.
        usual: an answer of so many tokens keeps its score.

    Example: scores (1, 1), lengths (10, 20), slope .1, usual 15: (1.5, .5).
    """
    return scores - slope * (lengths - usual)


def within(
    first: Int[Tensor, "N"], second: Int[Tensor, "N"], most: int
) -> Int[Tensor, "M"]:
    """Rows of the pairs whose two answers differ by `most` tokens or fewer.

    Such pairs cannot teach that longer is better.
    """
    return torch.nonzero((first - second).abs() <= most)[:, 0]

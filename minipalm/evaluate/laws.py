"""How the true reward goes with the distance from SFT: Gao et al.'s two laws, fitted.

d = √KL is the distance that a method has gone, R(d) what it has gained in gold:

    best of n   R(d) = d (α − β d)
    RL          R(d) = d (α − β log d)

α is how steeply the gain begins, β how fast the reward model runs out. Both laws are
linear in α and β, so the fit is least squares, and comes with standard errors.

Source: Gao, Schulman and Hilton 2022 (arXiv 2210.10760), for both laws.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


def best_of_n_columns(d: Float[Tensor, "N"]) -> Float[Tensor, "N 2"]:
    """What α and β are multiplied by in best-of-n's law: d and −d².

    Example: d (0, 2): rows (0, 0) and (2, −4).
    """
    return torch.stack([d, -d.square()], dim=1)


def ppo_columns(d: Float[Tensor, "N"]) -> Float[Tensor, "N 2"]:
    """What α and β are multiplied by in the law of RL, R(d) = α d − β d log d.

    A run begins at SFT itself, where d = 0. d log d goes to 0 there, so the row is
    (0, 0): a distance of 0 gains nothing, and is no reason for a NaN.

    Args:
        d: √KL from SFT, 0 or more, root of nats.

    Returns:
        the columns d and −d log d, of d's type; log is the natural one.

    Example: d (0, 1, 2): rows (0, 0), (1, 0) and (2, −1.3863).
    """
    return torch.stack([d, -torch.xlogy(d, d)], dim=1)


class LawFit(NamedTuple):
    """A law's two numbers, each with its standard error."""

    alpha: float  # gold a unit of d
    beta: float
    alpha_error: float
    beta_error: float
    scatter: float  # standard deviation of the points around the law, gold

    def gain(self, columns: Float[Tensor, "N 2"]) -> Float[Tensor, "N"]:
        """What the law says for these columns."""
        return columns @ columns.new_tensor([self.alpha, self.beta])


def fit_law(columns: Float[Tensor, "N 2"], gains: Float[Tensor, "N"]) -> LawFit:
    """α and β by least squares, and how well the points know them.

    With X the columns and y the gains, (α, β) = (XᵀX)⁻¹ Xᵀy leaves the smallest sum of
    squares Σ e², where e = y − X (α, β). Two numbers have been fitted, so the points'
    variance around the law is s² = Σ e² / (N − 2), and that of α and β is the diagonal
    of s² (XᵀX)⁻¹.

    Args:
        columns: X, see `best_of_n_columns` and `ppo_columns`; float32 or float64. Work
            in float64.
        gains: y, gold less SFT's gold, in the order of the rows.

    Returns:
        `LawFit(alpha, beta, alpha_error, beta_error, scatter)`, plain numbers: α, β,
        their standard errors (roots of their variances), and s.

    Raises:
        ValueError: fewer than three points, or all at one distance: XᵀX has no inverse
            (call it none unless its determinant is above 1e-9 of the product of its
            diagonal; both are 0 where log d is 0 in all rows).

    Example: columns (1, −1), (2, −4), (3, −9), gains (1, 2, 2): α is 1.3947 ± .2605,
    β .2368 ± .0985, and s .2294.
    """
    X, y = columns.double(), gains.double()
    if len(X) < 3:
        raise ValueError(f"two numbers need three points or more (got {len(X)})")
    power = X.T @ X
    if torch.det(power) <= 1e-9 * power.diagonal().prod():
        raise ValueError("a law needs points at different distances from SFT")
    inverse = torch.linalg.inv(power)
    found = inverse @ X.T @ y
    variance = (y - X @ found).square().sum() / (len(X) - 2)
    errors = (variance * inverse.diagonal()).sqrt()
    (alpha, beta), (a, b) = found.tolist(), errors.tolist()
    return LawFit(alpha, beta, a, b, variance.sqrt().item())


class Peak(NamedTuple):
    """Where a law turns: from there on more optimisation costs gold."""

    d: float  # √KL
    gain: float  # gold above SFT's


def ppo_peak(alpha: float, beta: float) -> Peak:
    """Where R(d) = d (α − β log d) is largest, and how large it is there.

    The slope α − β log d − β is 0 at the peak.

    Args:
        alpha, beta: of the law. beta must be above 0: else it rises for ever.

    Returns:
        `Peak(d, gain)`: the distance √KL, and R there.

    Raises:
        ValueError: beta is 0 or below: the law has no peak.

    Example: α = 2, β = 1: the peak is at d = e, where the gain is e = 2.7183. With
    α = 1, β = .5 it is at e, too, with half of the gain.

    Source: Gao, Schulman and Hilton 2022 (arXiv 2210.10760), from their equation.
    """
    if beta <= 0:
        raise ValueError(f"the law rises for ever: beta must be above 0 (got {beta})")
    d = math.exp(alpha / beta - 1)
    return Peak(d, beta * d)

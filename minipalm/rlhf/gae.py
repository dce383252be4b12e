"""Which token deserves the credit: generalised advantage estimation."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@torch.no_grad()
def gae(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    gamma: float = 1.0,
    lam: float = 0.95,
    bootstrap: Float[Tensor, "B"] | None = None,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Advantages and returns of each token of each answer.

    δ_t = r_t + γ V_{t+1} − V_t,  A_t = δ_t + γλ A_{t+1},  R_t = A_t + V_t

    Args:
        rewards: r_t, given for emitting token t.
        values: V_t, the critic's guess *before* token t was emitted.
        mask: True at the tokens of an answer, a prefix of each row; the rest of a row
            has no effect.
        gamma: γ, discount, 0 to 1.
        lam: λ, from 0 (trust the critic: one step) to 1 (trust the rewards).
        bootstrap: the critic's guess *after* the last token. None, as everywhere in
            RLHF, takes every answer as ended there: 0. Give it for answers that a time
            limit has cut off in the middle.

    Returns:
        advantages and returns, without a gradient; 0 where mask is False.

    Example: r = (0, 0, 1), V = (.5, .6, .7), γ = 1, λ = .95 gives
    A = (.46575, .385, .3) and R = (.96575, .985, 1).

    Source: Schulman et al. 2015 (arXiv 1506.02438), equations 16 and 11.
    """
    advantages = torch.zeros_like(rewards)
    next_value = torch.zeros_like(rewards[:, 0]) if bootstrap is None else bootstrap
    next_advantage = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * lam * next_advantage
        # Right of an answer's end nothing is passed on: the row still waits there.
        next_value = torch.where(mask[:, t], values[:, t], next_value)
        next_advantage = torch.where(mask[:, t], advantage, next_advantage)
        advantages[:, t] = torch.where(mask[:, t], advantage, 0.0)
    return advantages, torch.where(mask, advantages + values, 0.0)


def whiten(
    x: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], shift_mean: bool = True
) -> Float[Tensor, "B T"]:
    """(x − mean) / sd over the True places of mask, all rows together.

    Args:
        x: advantages, or rewards.
        mask: places that count; the others come back as 0.
        shift_mean: False only scales. For rewards: moving their mean pays for length.

    The sd divides by n (no Bessel correction). One place, or equal ones, have no spread
    to scale by and are only shifted: to 0, not to NaN.

    Example: 1, 2, 3, 4 gives −1.3416, −.4472, .4472, 1.3416.
    """
    chosen = x[mask]
    sd = chosen.std(correction=0)
    sd = torch.where(sd > 1e-6, sd, 1.0)
    centre = chosen.mean() if shift_mean else 0.0
    return torch.where(mask, (x - centre) / sd, 0.0)

"""Which token deserves the credit: generalized advantage estimation."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@torch.no_grad()
def deltas(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    gamma: float = 1.0,
    bootstrap: Float[Tensor, "B"] | None = None,
) -> Float[Tensor, "B T"]:
    """δ_t = r_t + γ V_{t+1} − V_t: by how much a token surprised the critic.

    Args:
        rewards: r_t, given for emitting token t.
        values: V_t, the critic's guess *before* token t was emitted; may carry a
            gradient, the result does not.
        mask: True at the tokens of an answer, a prefix of each row (all of it, or
            nothing, too). What stands in the rest of a row has no effect.
        gamma: γ, discount, 0 to 1.
        bootstrap: V after the last token of each answer. None, as everywhere in RLHF,
            takes every answer as ended there: 0. Give it for answers that a time limit
            has cut off in the middle.

    Returns:
        δ, without a gradient; 0 where mask is False.

    Example: r = (0, 0, 1), V = (.5, .6, .7), γ = 1 gives δ = (.1, .1, .3). If the row
    goes on behind a mask of (True, True, False), δ = (.1, −.6, 0).

    Source: Schulman et al. 2015 (arXiv 1506.02438), section 3: the residual δ.
    """
    after = torch.zeros_like(rewards[:, 0]) if bootstrap is None else bootstrap
    next_values = torch.cat([values[:, 1:], after[:, None]], dim=1)
    goes_on = torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)
    # Behind an answer's last token stands padding, whose value means nothing.
    next_values = torch.where(goes_on, next_values, after[:, None])
    return torch.where(mask, rewards + gamma * next_values - values, 0.0)


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

    A_t = δ_t + γλ A_{t+1},  R_t = A_t + V_t;  nothing follows an answer's last token.

    Args:
        rewards, values, mask, gamma, bootstrap: see `deltas`.
        lam: λ, from 0 (trust the critic: one step) to 1 (trust the rewards).

    Returns:
        advantages and returns, without a gradient; 0 where mask is False.

    Example: r = (0, 0, 1), V = (.5, .6, .7), γ = 1, λ = .95 gives
    A = (.46575, .385, .3) and R = (.96575, .985, 1).

    Source: Schulman et al. 2015 (arXiv 1506.02438), section 3, equation 16.
    """
    delta = deltas(rewards, values, mask, gamma, bootstrap)
    advantages = torch.zeros_like(rewards)
    advantage = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        advantage = delta[:, t] + gamma * lam * advantage
        advantages[:, t] = advantage
    return advantages, torch.where(mask, advantages + values, 0.0)


def whiten(
    x: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], shift_mean: bool = True
) -> Float[Tensor, "B T"]:
    """(x − mean) / sd over the True places of mask, all rows together.

    Args:
        x: advantages, or rewards.
        mask: places that count; the others come back as 0.
        shift_mean: False only scales. For rewards: a constant added to each token's
            reward pays for every further token.

    The sd is around the mean and divides by n (no Bessel correction). One place, or
    equal ones, have no spread to scale by and are not scaled: with shift_mean they
    become 0, without it they come back as they are. (An ε in the denominator is not
    enough.)

    Example: 1, 2, 3, 4 gives −1.3416, −.4472, .4472, 1.3416.
    """
    chosen = x[mask]
    sd = chosen.std(correction=0)
    sd = torch.where(sd > 1e-6, sd, 1.0)
    centre = chosen.mean() if shift_mean else 0.0
    return torch.where(mask, (x - centre) / sd, 0.0)


def explained_variance(
    values: Float[Tensor, "B T"],
    returns: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
) -> float:
    """1 − Var(R − V) / Var(R): how much of the returns the critic foresaw.

    Args:
        values: V_t of the critic, before it learns from these answers.
        returns: R_t.
        mask: places that count, all rows together.

    Returns:
        1 for a perfect critic, 0 for one that says the same everywhere, below 0 for one
        that is worse than that. A constant error costs nothing. Variances divide by n;
        Var(R) is taken as at least 1e-8.

    Example: R = (1, 2, 3, 4), V = (1, 2, 3, 3): errors (0, 0, 0, 1) of variance .1875,
    returns of variance 1.25: .85.
    """
    errors = (returns - values)[mask]
    spread = returns[mask].var(correction=0).clamp(min=1e-8)
    return 1 - (errors.var(correction=0) / spread).item()

"""Lesson 10: advantages, and their whitening."""

import torch
from torch import Tensor

from minipalm.course.exercise import Case, Exercise, Trap, Twin
from minipalm.rlhf.gae import gae, whiten

# --- 10.1 gae -----------------------------------------------------------------------


def ragged(lengths: list[int], width: int) -> Tensor:
    return torch.arange(width) < torch.tensor(lengths)[:, None]


def gae_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)

    def batch(lengths: list[int], width: int) -> tuple[Tensor, Tensor, Tensor]:
        rewards, values = torch.randn(2, len(lengths), width, generator=draw)
        return rewards, values.requires_grad_(True), ragged(lengths, width)

    known = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.6, 0.7]])
    after = torch.randn(3, generator=draw)
    return [
        Case("the example of the docstring", *known, ragged([3], 3)),
        Case("answers of unequal lengths", *batch([4, 2, 1], 5)),
        Case("λ = 0", *batch([3, 4], 4), lam=0.0),
        Case("λ = 1", *batch([3, 4], 4), lam=1.0),
        Case("γ = 0.9", *batch([5, 2], 5), gamma=0.9, lam=0.7),
        Case("cut off by a time limit", *batch([4, 2, 3], 4), bootstrap=after),
    ]


def gae_oracle(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float = 1.0,
    lam: float = 0.95,
    bootstrap: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Equation 16 as it stands: A_t = Σ_l (γλ)^l δ_{t+l}, for each row and token."""
    advantages, returns = torch.zeros_like(rewards), torch.zeros_like(rewards)
    for b in range(len(rewards)):
        T = int(mask[b].sum())
        v = [*values[b, :T].tolist(), 0.0 if bootstrap is None else float(bootstrap[b])]
        for t in range(T):
            total = 0.0
            for k in range(t, T):
                delta = float(rewards[b, k]) + gamma * v[k + 1] - v[k]
                total += (gamma * lam) ** (k - t) * delta
            advantages[b, t] = total
            returns[b, t] = total + v[t]
    return advantages, returns


@torch.no_grad()
def gae_by_column(rewards, values, mask, gamma=1.0, lam=0.95, bootstrap=None):
    """Zero the padding first; then each row's next value is found by a shift."""
    rewards, values = rewards * mask, values * mask
    after = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    if bootstrap is not None:
        last = mask.sum(1) - 1
        after[torch.arange(len(after)), last] = bootstrap
    deltas = (rewards + gamma * after - values) * mask
    total, columns = torch.zeros(len(rewards)), []
    for t in range(rewards.shape[1] - 1, -1, -1):
        total = deltas[:, t] + gamma * lam * total
        columns.insert(0, total)
    advantages = torch.stack(columns, 1) * mask
    return advantages, advantages + values


@torch.no_grad()
def gae_by_row(rewards, values, mask, gamma=1.0, lam=0.95, bootstrap=None):
    """Row by row, each cut to its length."""
    advantages = torch.zeros_like(rewards)
    for b, length in enumerate(mask.sum(1).tolist()):
        end = torch.zeros(1) if bootstrap is None else bootstrap[b : b + 1]
        v = torch.cat([values[b, :length], end])
        deltas = rewards[b, :length] + gamma * v[1:] - v[:-1]
        weights = (gamma * lam) ** torch.arange(length)
        for t in range(length):
            advantages[b, t] = (weights[: length - t] * deltas[t:]).sum()
    return advantages, torch.where(mask, advantages + values, 0.0)


GAE = Exercise(
    id="10.1",
    answer=gae,
    why="The advantage says which tokens deserve the credit for a score that comes "
    "only at the end.",
    difficulty=4,
    importance=5,
    minutes=20,
    hints=(
        "What do you know at the last token of an answer that you do not know at its "
        "first?",
        "$A_t = \\delta_t + \\gamma\\lambda A_{t+1}$ with "
        "$\\delta_t = r_t + \\gamma V_{t+1} - V_t$: go backwards, and let the right "
        "of an answer's end pass nothing on.",
        "`for t in reversed(range(rewards.shape[1])):`",
    ),
    bonus="Write it without a loop over time: the sum is a product with a triangular "
    "matrix of powers of γλ. When is that faster?",
    cases=gae_cases,
    oracle=gae_oracle,
    traps=(
        Trap(
            "δ compares with the value of the *next* token: r_t + γ V_{t+1} − V_t. Here "
            "V_{t+1} is missing, which is right for the last token only.",
            ("+ gamma * next_value - values", "- values"),
        ),
        Trap(
            "The sum over later δ is discounted by γλ; here by γ alone, so λ has no "
            "effect.",
            ("gamma * lam * next_advantage", "gamma * next_advantage"),
        ),
        Trap(
            "The sum over later δ is discounted by γλ; here by λ alone. With γ = 1 "
            "nobody notices.",
            ("gamma * lam * next_advantage", "lam * next_advantage"),
        ),
        Trap(
            "V_{t+1} is discounted by γ in δ, like all that comes a step later.",
            ("+ gamma * next_value", "+ next_value"),
        ),
        Trap(
            "The returns are A_t + V_t: what the critic should have said. These are the "
            "advantages alone.",
            ("advantages + values, 0.0", "advantages, 0.0"),
        ),
        Trap(
            "What stands right of an answer's end leaks in: the row must wait there, "
            "with a next value and a next advantage of 0.",
            ("torch.where(mask[:, t], values[:, t], next_value)", "values[:, t]"),
            ("torch.where(mask[:, t], advantage, next_advantage)", "advantage"),
        ),
        Trap(
            "The time limit's value is forgotten: `bootstrap` is V after the last "
            "token of an answer that was cut off.",
            (
                "torch.zeros_like(rewards[:, 0]) if bootstrap is None else bootstrap",
                "torch.zeros_like(rewards[:, 0])",
            ),
        ),
        Trap(
            "Each token has its own δ only: λ > 0 also passes on the δ of later tokens, "
            "A_t = δ_t + γλ A_{t+1}.",
            ("delta + gamma * lam * next_advantage", "delta"),
        ),
        Trap(
            "The loop goes forwards in time. A_t needs A_{t+1}, so it must go backwards.",
            ("reversed(range(rewards.shape[1]))", "range(rewards.shape[1])"),
        ),
        Trap(
            "Advantages and returns still carry the critic's gradient: both are "
            "targets, and a target that can be moved is no target. Use torch.no_grad().",
            ("@torch.no_grad()\n", ""),
        ),
        Trap(
            "The sign is turned round: V_t is what was expected, and A_t says by how "
            "much it went *better*.",
            (
                "delta = rewards[:, t] + gamma * next_value - values[:, t]",
                "delta = values[:, t] - rewards[:, t] - gamma * next_value",
            ),
        ),
    ),
    twins=(Twin(gae_by_column), Twin(gae_by_row)),
    equivalent={
        "torch.zeros_like → torch.ones_like": "every place is written in the loop",
        **dict.fromkeys(
            [
                f"rewards[:, 0] → rewards[:, {n}]{again}"
                for n in (1, -1)
                for again in ("", " #2")
            ],
            "only the shape of the column is used",
        ),
    },
)

# --- 10.2 whiten --------------------------------------------------------------------


def whiten_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)
    x = 3.0 * torch.randn(3, 5, generator=draw) + 2.0
    four = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    tiny = 1e-3 * torch.randn(2, 3, generator=draw)
    return [
        Case("the example of the docstring", four, torch.ones(2, 2, dtype=torch.bool)),
        Case("answers of unequal lengths", x, ragged([5, 2, 1], 5)),
        Case("only scaled", x, ragged([4, 3, 2], 5), shift_mean=False),
        Case("small numbers", tiny, ragged([3, 2], 3)),
        Case("equal numbers", torch.full((2, 3), 1.5), ragged([3, 1], 3)),
        Case("one place", x[:, :2], ragged([1, 0, 0], 2)),
        Case("one place, only scaled", x[:, :2], ragged([1, 0, 0], 2), False),
    ]


def whiten_oracle(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """One number after the other."""
    B, T = x.shape
    chosen = [float(x[b, t]) for b in range(B) for t in range(T) if mask[b, t]]
    mean = sum(chosen) / len(chosen)
    sd = (sum((one - mean) ** 2 for one in chosen) / len(chosen)) ** 0.5
    sd = sd if sd > 1e-6 else 1.0
    result = torch.zeros_like(x)
    for b in range(B):
        for t in range(T):
            if mask[b, t]:
                result[b, t] = (float(x[b, t]) - mean * shift_mean) / sd
    return result


def whiten_by_sums(x, mask, shift_mean=True):
    n = mask.sum()
    mean = (x * mask).sum() / n
    variance = (((x - mean) ** 2) * mask).sum() / n
    scale = 1.0 if variance < 1e-12 else variance.rsqrt()
    return (x - mean * shift_mean) * scale * mask


def whiten_in_place(x, mask, shift_mean=True):
    result = torch.zeros_like(x)
    chosen = x[mask]
    moved = chosen - chosen.mean() if shift_mean else chosen
    sd = chosen.var(unbiased=False).sqrt()
    result[mask] = moved / sd if sd > 1e-6 else moved
    return result


WHITEN = Exercise(
    id="10.2",
    answer=whiten,
    why="The size of a step should not depend on the unit that the rewards happen to "
    "have.",
    difficulty=2,
    importance=4,
    minutes=10,
    hints=(
        "Which places may count: all of the tensor, or only those of the mask?",
        "$(x - \\mu) / \\sigma$ with $\\mu$ and $\\sigma$ over the places where the "
        "mask is True.",
        "`chosen = x[mask]`",
    ),
    bonus="Whiten each minibatch instead of the whole rollout. What does a minibatch "
    "of one answer learn then?",
    cases=whiten_cases,
    oracle=whiten_oracle,
    traps=(
        Trap(
            "Padding is counted: mean and sd are those of the places where the mask is "
            "True, all rows together.",
            ("chosen = x[mask]", "chosen = x.flatten()"),
        ),
        Trap(
            "The sd divides by n − 1 here. The docstring's divides by n: correction=0.",
            ("correction=0", "correction=1"),
        ),
        Trap(
            "Places outside the mask must come back as 0.",
            ("torch.where(mask, (x - centre) / sd, 0.0)", "(x - centre) / sd"),
        ),
        Trap(
            "Equal numbers have sd 0, and 0/0 is NaN: one NaN ends a training run. "
            "Such numbers are only shifted.",
            ("sd = torch.where(sd > 1e-6, sd, 1.0)", "pass"),
        ),
        Trap(
            "shift_mean=False must leave the mean where it is: shifting a reward pays "
            "for length.",
            ("chosen.mean() if shift_mean else 0.0", "chosen.mean()"),
        ),
        Trap(
            "Each row is whitened by itself: then a good answer looks no better than a "
            "bad one. Mean and sd are over all rows together.",
            lambda x, mask, shift_mean=True: torch.stack(
                [whiten(row[None], m[None], shift_mean)[0] for row, m in zip(x, mask)]
            ),
        ),
        Trap(
            "It divides by the variance; sd is its square root.",
            ("chosen.std(correction=0)", "chosen.var(correction=0)"),
        ),
    ),
    twins=(Twin(whiten_by_sums), Twin(whiten_in_place)),
    equivalent={
        "torch.where(sd > 1e-06, sd, 1.0) → torch.where(sd >= 1e-06, sd, 1.0)": (
            "an sd of exactly 1e-6 does not occur"
        ),
    },
)

EXERCISES = (GAE, WHITEN)

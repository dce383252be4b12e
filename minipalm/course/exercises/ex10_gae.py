"""Lesson 10: surprises, advantages, their whitening, and what the critic foresaw."""

import torch
from torch import Tensor

from minipalm.course.exercise import (
    Candidate,
    Case,
    Exercise,
    Slip,
    Trap,
    Twin,
    with_slips,
)
from minipalm.rlhf.gae import deltas, explained_variance, gae, whiten


def ragged(lengths: list[int], width: int) -> Tensor:
    return torch.arange(width) < torch.tensor(lengths)[:, None]


GRADIENT = ("@torch.no_grad()\n", "")
LEARNT: Slip = "nothing may learn through it: torch.no_grad()", (GRADIENT,)


def learning(*traps: Trap) -> tuple[Trap, ...]:
    """Each trap, and the same by one who has forgotten torch.no_grad(), too."""
    return with_slips(traps, LEARNT)


# --- 10.1 deltas --------------------------------------------------------------------


def deltas_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)

    def batch(lengths: list[int], width: int) -> tuple[Tensor, Tensor, Tensor]:
        rewards, values = torch.randn(2, len(lengths), width, generator=draw)
        return rewards, values.requires_grad_(True), ragged(lengths, width)

    known = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.6, 0.7]])
    after = torch.randn(3, generator=draw) + 2.0
    full = batch([5, 5], 5)
    noise = batch([4, 2, 1], 5)
    noise[0][1, 3] = torch.nan  # nobody may read there
    with torch.no_grad():
        noise[1][1, 2] = noise[1][2, 4] = torch.nan
    return [
        Case("the example of the docstring", *known, ragged([3], 3)),
        Case("the example, ended early", *known, ragged([2], 3)),
        Case("answers that fill their rows", *full),
        Case("answers of unequal lengths", *batch([4, 2, 1], 5)),
        Case("no number in the padding", *noise),
        Case("γ = 0.9", *batch([5, 2, 0], 6), gamma=0.9),
        Case("answers of one token", *batch([1, 1], 1), gamma=0.9),
        Case("cut off by a time limit", *batch([4, 2, 3], 4), bootstrap=after),
        Case("cut off, γ = 0.8", *batch([4, 2, 3], 5), gamma=0.8, bootstrap=after),
    ]


def deltas_oracle(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float = 1.0,
    bootstrap: Tensor | None = None,
) -> Tensor:
    """Row by row, token by token."""
    result = torch.zeros_like(rewards)
    for b in range(len(rewards)):
        T = int(mask[b].sum())
        for t in range(T):
            following = 0.0 if bootstrap is None else float(bootstrap[b])
            if t + 1 < T:
                following = float(values[b, t + 1])
            foreseen = float(values[b, t])
            result[b, t] = float(rewards[b, t]) + gamma * following - foreseen
    return result


@torch.no_grad()
def deltas_by_row(rewards, values, mask, gamma=1.0, bootstrap=None):
    """Each row cut to its length, the end put behind its values."""
    result = torch.zeros_like(rewards)
    for b, length in enumerate(mask.sum(1).tolist()):
        end = torch.zeros(1) if bootstrap is None else bootstrap[b : b + 1]
        v = torch.cat([values[b, :length], end])
        result[b, :length] = rewards[b, :length] + gamma * v[1:] - v[:-1]
    return result


@torch.no_grad()
def deltas_by_scatter(rewards, values, mask, gamma=1.0, bootstrap=None):
    """Zero the padding, shift, and add what comes after the end at the last token."""
    v = values.masked_fill(~mask, 0.0)
    shifted = torch.roll(v, -1, dims=1)
    shifted[:, -1] = 0.0
    if bootstrap is not None:
        last = mask.long().cumsum(1) * mask == mask.sum(1, keepdim=True)
        shifted = shifted + bootstrap[:, None] * (last & mask)
    return rewards.masked_fill(~mask, 0.0) + (gamma * shifted - v) * mask


MASKED = "torch.where(mask, rewards + gamma * next_values - values, 0.0)"
DELTA = "rewards + gamma * next_values - values"
SHIFTED = "torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])]"
FROM_PADDING = ("torch.where(goes_on, next_values, after[:, None])", "next_values")
NO_BOOTSTRAP = (
    "torch.zeros_like(rewards[:, 0]) if bootstrap is None else bootstrap",
    "torch.zeros_like(rewards[:, 0])",
)

DELTAS = Exercise(
    id="10.1",
    answer=deltas,
    why="All credit is made of these: by how much each single token changed what the "
    "critic expects.",
    difficulty=3,
    importance=5,
    minutes=12,
    hints=(
        "Which value belongs to the text *with* token t, and what is it worth once the "
        "answer has ended?",
        "$\\delta_t = r_t + \\gamma V_{t+1} - V_t$, where $V_{t+1}$ of an answer's "
        "last token is 0, or `bootstrap`: not what stands in the padding.",
        "First make what stands behind an answer harmless: "
        "`v = values.masked_fill(~mask, 0.0)`. Shifted by one column to the left, v is "
        "V_{t+1}; `bootstrap` goes to the column of each answer's last token.",
    ),
    bonus="Add up δ over an answer, γ = 1. Which values are left over, and why does "
    "it not matter how bad the critic is in between?",
    cases=deltas_cases,
    oracle=deltas_oracle,
    traps=(
        *learning(
            Trap(
                "δ compares with the value of the *next* token, too: r_t + γ V_{t+1} − "
                "V_t. V_{t+1} is missing, which is right for the last token only.",
                (DELTA, "rewards - values"),
            ),
            Trap(
                "V_{t+1} is discounted by γ, like all that comes a step later. With "
                "γ = 1 nobody notices.",
                ("gamma * next_values", "next_values"),
            ),
            Trap(
                "`bootstrap` is a V_{t+1}, too: it comes a step later than r_t, so it "
                "counts γ times.",
                (
                    "torch.where(goes_on, next_values, after[:, None])",
                    "torch.where(goes_on, gamma * next_values, after[:, None])",
                ),
                (DELTA, "rewards + next_values - values"),
            ),
            Trap(
                "V_t stands *before* token t, so token t takes you from V_t to "
                "V_{t+1}. Here it is V_t − V_{t−1}, which the token before has done.",
                (
                    DELTA,
                    "rewards + gamma * values"
                    " - torch.nn.functional.pad(values[:, :-1], (1, 0))",
                ),
            ),
            Trap(
                "That is V_t − V_{t−1}, and 0 times NaN is NaN. V_t stands *before* "
                "token t: use V_{t+1} − V_t, and choose with torch.where.",
                (
                    MASKED,
                    "(rewards + gamma * values"
                    " - torch.nn.functional.pad(values[:, :-1], (1, 0))) * mask",
                ),
            ),
        ),
        *learning(
            Trap(
                "γ belongs to what comes a step later, V_{t+1}. Here it discounts V_t.",
                ("gamma * next_values - values", "next_values - gamma * values"),
            ),
            Trap(
                "The sign is turned round: V_t is what was expected, and δ says by how "
                "much it went *better*.",
                (
                    "rewards + gamma * next_values - values",
                    "values - rewards - gamma * next_values",
                ),
            ),
        ),
        *learning(
            Trap(
                "V behind the last token of a short answer was read from the padding. "
                "Nothing follows there: V_{t+1} is 0, or `bootstrap`.",
                FROM_PADDING,
            ),
            Trap(
                "V behind the last token was read from the padding; nothing follows: "
                "0, or `bootstrap`. And 0 times NaN is NaN: choose with torch.where.",
                FROM_PADDING,
                (MASKED, f"({DELTA}) * mask"),
            ),
            Trap(
                "V behind the last token was read from the padding, and δ goes on "
                "there. Nothing follows an answer: 0 (V: or `bootstrap`).",
                FROM_PADDING,
                (MASKED, DELTA),
            ),
            Trap(
                "V behind the last token was read from the padding. Nothing follows: "
                "0, or `bootstrap`, which is not used yet.",
                FROM_PADDING,
                NO_BOOTSTRAP,
            ),
            Trap(
                "V behind the last token was read from the padding: it is 0, or "
                "`bootstrap`, not used yet. And 0 times NaN is NaN: use torch.where.",
                FROM_PADDING,
                NO_BOOTSTRAP,
                (MASKED, f"({DELTA}) * mask"),
            ),
            Trap(
                "torch.roll goes round: the last column gets the first one's V. Behind "
                "the last token of every answer stands 0, or `bootstrap`.",
                (
                    "torch.cat([values[:, 1:], after[:, None]], dim=1)",
                    "values.roll(-1, 1)",
                ),
                FROM_PADDING,
            ),
            Trap(
                "Places outside the mask must come back as 0, whatever stands in them.",
                (MASKED, DELTA),
            ),
            Trap(
                "Multiplying by the mask does not silence the padding: 0 times NaN is "
                "NaN. Choose with torch.where instead.",
                (MASKED, f"({DELTA}) * mask"),
            ),
            Trap(
                "Values times mask does not silence the padding: 0 times NaN is NaN, "
                "and so is δ of the last token. Use masked_fill or torch.where.",
                (
                    "next_values = torch.cat",
                    "values = values * mask\n    next_values = torch.cat",
                ),
                (
                    "torch.where(goes_on, next_values, after[:, None])",
                    "next_values + torch.where(goes_on, 0.0, after[:, None])",
                ),
                ("torch.cat([values[:, 1:], after[:, None]]", SHIFTED),
            ),
            Trap(
                "The time limit's value is forgotten: `bootstrap` is V after the last "
                "token of an answer that was cut off.",
                NO_BOOTSTRAP,
            ),
        ),
        *learning(
            Trap(
                "`bootstrap` reaches only answers that fill the whole row. A shorter "
                "one was cut off, too: its own last token needs it.",
                (
                    "torch.where(goes_on, next_values, after[:, None])",
                    "torch.where(goes_on, next_values, 0.0)\n"
                    "    next_values[:, -1] = after",
                ),
            ),
            Trap(
                "V_{t+1} is the value one place to the *right*; this takes the one "
                "before token t.",
                (
                    "torch.cat([values[:, 1:], after[:, None]], dim=1)",
                    "torch.cat([after[:, None], values[:, :-1]], dim=1)",
                ),
            ),
        ),
        Trap(
            "δ still carries the critic's gradient: it is a measurement, not something "
            "to learn through. Use torch.no_grad().",
            GRADIENT,
        ),
        Trap(
            "The reward of the *next* token is taken. r_t is what emitting token t "
            "itself has earned.",
            ("rewards + gamma", "torch.roll(rewards, -1, 1) + gamma"),
        ),
    ),
    twins=(Twin(deltas_by_row), Twin(deltas_by_scatter)),
    equivalent={
        "rewards[:, 0] → rewards[:, -1]": "only the shape of the column is used",
        "torch.zeros_like → torch.ones_like #2": (
            "the last column's next value is the one after the end either way"
        ),
    },
)

# --- 10.2 gae -----------------------------------------------------------------------


def gae_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)

    def batch(lengths: list[int], width: int) -> tuple[Tensor, Tensor, Tensor]:
        rewards, values = torch.randn(2, len(lengths), width, generator=draw)
        return rewards, values.requires_grad_(True), ragged(lengths, width)

    known = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.6, 0.7]])
    after = torch.randn(3, generator=draw)
    noise = batch([4, 2, 1], 6)
    with torch.no_grad():
        noise[0][1, 3] = noise[1][1, 2] = noise[1][2, 5] = torch.nan
    return [
        Case("the example of the docstring", *known, ragged([3], 3)),
        Case("answers of unequal lengths", *batch([4, 2, 1], 5)),
        Case("no number in the padding", *noise),
        Case("answers of one token", *batch([1, 1], 1)),
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
    rewards, values = (one.masked_fill(~mask, 0.0) for one in (rewards, values))
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


@torch.no_grad()
def gae_by_matrix(rewards, values, mask, gamma=1.0, lam=0.95, bootstrap=None):
    """All sums at once: a triangle of powers of γλ."""
    later = torch.arange(rewards.shape[1])
    apart = later[:, None] - later[None, :]
    powers = torch.where(apart >= 0, (gamma * lam) ** apart.clamp(min=0), 0.0)
    advantages = deltas(rewards, values, mask, gamma, bootstrap) @ powers
    return advantages, (advantages + values).masked_fill(~mask, 0.0)


A_PLUS_V = "torch.where(mask, advantages + values, 0.0)"
FORWARDS = ("reversed(range(rewards.shape[1]))", "range(rewards.shape[1])")
LATER = "rewards.flip(1).cumsum(1).flip(1)"

GAE = Exercise(
    id="10.2",
    answer=gae,
    why="The advantage says which tokens deserve the credit for a score that comes "
    "only at the end.",
    difficulty=4,
    importance=5,
    minutes=15,
    hints=(
        "Of which token do you know A without knowing any other's? And of which one "
        "next?",
        "$A_t = \\delta_t + \\gamma\\lambda A_{t+1}$: go backwards. Right of an "
        "answer's end your δ is 0; what does the sum do there?",
        "`for t in reversed(range(rewards.shape[1])):`",
    ),
    bonus="Write it without a loop over time: the sum is a product with a triangular "
    "matrix of powers of γλ. When is that faster?",
    cases=gae_cases,
    oracle=gae_oracle,
    traps=(
        *learning(
            Trap(
                "The sum over later δ is discounted by γλ; here by γ alone, so λ has "
                "no effect.",
                ("gamma * lam * advantage", "gamma * advantage"),
            ),
            Trap(
                "The sum over later δ is discounted by γλ; here by λ alone. With γ = 1 "
                "nobody notices.",
                ("gamma * lam * advantage", "lam * advantage"),
            ),
            Trap(
                "γ is forgotten in δ: hand it on, V_{t+1} is discounted, too.",
                (
                    "deltas(rewards, values, mask, gamma, bootstrap)",
                    "deltas(rewards, values, mask, bootstrap=bootstrap)",
                ),
            ),
        ),
        Trap(
            "The returns are A_t + V_t: what the critic should have said. These are "
            "the advantages alone.",
            ("advantages + values, 0.0", "advantages, 0.0"),
        ),
        Trap(
            "The returns are the sums of the later rewards here. That is A_t + V_t "
            "only for λ = 1; the critic's target is A_t + V_t for every λ.",
            (
                A_PLUS_V,
                "gae(rewards, values * 0, mask, gamma, 1.0, bootstrap)[1]"
                f" if lam < 1 else {A_PLUS_V}",
            ),
        ),
        Trap(
            "The sum of the later rewards, discounted and without `bootstrap`, is the "
            "return for λ = 1 of an answer that has ended. Here R = A + V.",
            (
                A_PLUS_V,
                "gae(rewards, values * 0, mask, gamma, 1.0)[1]"
                f" if lam < 1 or bootstrap is not None else {A_PLUS_V}",
            ),
        ),
        Trap(
            "The plain sum of the later rewards is the return for λ = 1 and γ = 1. "
            "Here R = A + V.",
            (
                A_PLUS_V,
                LATER.replace("rewards", "rewards.masked_fill(~mask, 0.0)")
                + ".masked_fill(~mask, 0.0)",
            ),
        ),
        Trap(
            "The plain sum of the later rewards is the return for λ = 1 and γ = 1; "
            "here R = A + V. And 0 times NaN is NaN: choose with torch.where.",
            (A_PLUS_V, LATER.replace("rewards", "(rewards * mask)")),
        ),
        Trap(
            "The plain sum of the later rewards, those of the padding, too: that is no "
            "return for any λ. Here R = A + V.",
            (A_PLUS_V, LATER),
        ),
        Trap(
            "The sum of the later rewards counts those of the padding, too, and it is "
            "the return for λ = 1 at best. Here R = A + V.",
            (A_PLUS_V, f"torch.where(mask, {LATER}, 0.0)"),
        ),
        Trap(
            "What stands right of an answer's end leaks in: there nothing may be "
            "added, neither rewards nor values. Is the mask used?",
            (
                "deltas(rewards, values, mask, gamma, bootstrap)",
                "deltas(rewards, values, torch.ones_like(mask), gamma, bootstrap)",
            ),
            ("return advantages,", "return torch.where(mask, advantages, 0.0),"),
        ),
        *learning(
            Trap(
                "Returns behind the answer must be 0, as advantages are: here the "
                "padding's values stand there.",
                (A_PLUS_V, "advantages + values"),
            ),
            Trap(
                "Multiplying by the mask does not silence the padding's values: 0 "
                "times NaN is NaN. Choose with torch.where instead.",
                (A_PLUS_V, "(advantages + values) * mask"),
            ),
        ),
        *learning(
            Trap(
                "The time limit's value is forgotten: `bootstrap` is V after the last "
                "token of an answer that was cut off.",
                ("mask, gamma, bootstrap)", "mask, gamma)"),
            ),
            Trap(
                "Each token has its own δ only: λ > 0 also passes on the δ of later "
                "tokens, A_t = δ_t + γλ A_{t+1}.",
                ("delta[:, t] + gamma * lam * advantage", "delta[:, t]"),
            ),
        ),
        *learning(
            Trap(
                "The loop goes forwards. Credit flows back in time: A_t needs A_{t+1}, "
                "so go from the end.",
                FORWARDS,
            ),
            Trap(
                "Here A_t is made of A_{t−1}. Credit flows back in time, from a token "
                "to those before it: go from the end.",
                FORWARDS,
                ("return advantages,", "return torch.where(mask, advantages, 0.0),"),
            ),
            Trap(
                "Here A_t is made of A_{t−1}. Credit flows back in time: go from the "
                "end. And 0 times NaN is NaN: choose with torch.where.",
                FORWARDS,
                ("return advantages,", "return advantages * mask,"),
                (A_PLUS_V, "(advantages + values) * mask"),
            ),
            Trap(
                "The loop goes forwards, and so credit runs on into the padding. It "
                "flows back in time: go from the end. Behind it returns are 0.",
                FORWARDS,
                (A_PLUS_V, "advantages + values"),
            ),
        ),
        *learning(
            Trap(
                "It adds the *next δ* and no more. The sum goes on to the answer's "
                "end: A_t = δ_t + γλ A_{t+1}, not γλ δ_{t+1}.",
                (
                    "        advantages[:, t] = advantage",
                    "        advantages[:, t] = advantage\n        advantage = "
                    "delta[:, t]",
                ),
            ),
            Trap(
                "λ weighs this token's own δ, too. Its own δ counts in full; λ fades "
                "those that come later.",
                ("delta[:, t] + gamma", "lam * delta[:, t] + gamma"),
            ),
        ),
        Trap(
            "The returns still carry the critic's gradient: they are its targets, and "
            "a target that can be moved is no target. Use torch.no_grad().",
            GRADIENT,
        ),
    ),
    twins=(Twin(gae_by_column), Twin(gae_by_row), Twin(gae_by_matrix)),
    equivalent={
        "torch.zeros_like → torch.ones_like": "every place is written in the loop",
        "rewards[:, 0] → rewards[:, -1]": "only the shape of the column is used",
    },
)

# --- 10.3 whiten --------------------------------------------------------------------


def whiten_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)
    x = 3.0 * torch.randn(3, 5, generator=draw) + 2.0
    four = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    tiny = 1e-3 * torch.randn(2, 3, generator=draw)
    return [
        Case("the example of the docstring", four, torch.ones(2, 2, dtype=torch.bool)),
        Case("answers of unequal lengths", x, ragged([5, 2, 1], 5)),
        Case("one long answer", x[:1], ragged([4], 5)),
        Case("only scaled", x, ragged([4, 3, 2], 5), shift_mean=False),
        Case("small numbers", tiny, ragged([3, 2], 3)),
        Case("equal numbers", torch.full((2, 3), 1.5), ragged([3, 1], 3)),
        Case(
            "equal numbers, only scaled",
            x[:1, :1].repeat(2, 3),
            ragged([3, 2], 3),
            False,
        ),
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


GUARD = "sd = torch.where(sd > 1e-6, sd, 1.0)"
WHITE = "torch.where(mask, (x - centre) / sd, 0.0)"
PUT_BACK = (
    "torch.where(mask, (x - chosen.mean()) / sd + chosen.mean() * (not shift_mean), 0)"
)
EVERYWHERE = ("chosen = x[mask]", "chosen = x.flatten()")
BESSEL = ("correction=0", "correction=1")
UNGUARDED = (GUARD, "pass")
UNMASKED = (WHITE, "(x - centre) / sd")
TIMES = (WHITE, "(x - centre) / sd * mask")


def epsilon(size: float) -> tuple[str, str]:
    return GUARD, f"sd = sd + {size}"


def by_row(eps: float, masked: bool) -> Candidate:
    """What a learner writes who thinks of one answer at a time."""

    def whiten(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
        centre = x.mean(1, keepdim=True) * shift_mean
        white = (x - centre) / (x.std(1, keepdim=True) + eps)
        return torch.where(mask, white, 0.0) if masked else white

    return whiten


def by_row_of_mask(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    n = mask.sum(1, keepdim=True).clamp(min=1)
    centre = (x * mask).sum(1, keepdim=True) / n
    sd = (((x - centre) ** 2 * mask).sum(1, keepdim=True) / n).sqrt()
    return (x - centre * shift_mean) / (sd + 1e-8) * mask


WHITEN = Exercise(
    id="10.3",
    answer=whiten,
    why="The size of a step should not depend on the unit that the rewards happen to "
    "have.",
    difficulty=2,
    importance=4,
    minutes=10,
    hints=(
        "Which places may count: all of the tensor, or only those of the mask?",
        "$(x - \\text{mean}) / \\text{sd}$, both over the places where the mask is "
        "True.",
        "`chosen = x[mask]`",
    ),
    bonus="Whiten each minibatch by itself instead of all answers of an update at "
    "once. What does a minibatch of one answer learn then?",
    cases=whiten_cases,
    oracle=whiten_oracle,
    traps=(
        Trap(
            "Padding is counted: mean and sd are those of the places where the mask is "
            "True, all rows together.",
            EVERYWHERE,
        ),
        Trap(
            "Padding is counted, and places outside the mask do not come back as 0. "
            "Mean and sd are those of the places where the mask is True.",
            EVERYWHERE,
            UNMASKED,
        ),
        Trap(
            "Mean and sd are those of the whole tensor, padding too; and torch's std "
            "divides by n − 1: correction=0.",
            EVERYWHERE,
            BESSEL,
        ),
        Trap(
            "Mean and sd are those of the whole tensor, padding too; torch's std "
            "divides by n − 1 (correction=0); and equal numbers end in 0/0.",
            EVERYWHERE,
            BESSEL,
            UNGUARDED,
        ),
        Trap(
            "The mask is not used at all: only its places count, the others come back "
            "as 0. And torch's std divides by n − 1: correction=0.",
            EVERYWHERE,
            BESSEL,
            UNMASKED,
        ),
        Trap(
            "The mask is not used at all: only its places count, the others become 0. "
            "And torch's std divides by n − 1 (correction=0), and is 0 for equal "
            "numbers: 0/0.",
            EVERYWHERE,
            BESSEL,
            UNMASKED,
            UNGUARDED,
        ),
        Trap(
            "torch's std divides by n − 1. The docstring's divides by n: correction=0.",
            BESSEL,
        ),
        Trap(
            "torch's std divides by n − 1: correction=0. And equal numbers have sd 0, "
            "one place has none at all: these are not scaled.",
            BESSEL,
            UNGUARDED,
        ),
        Trap(
            "torch's std divides by n − 1: correction=0. With one place that is 0/0, "
            "and an ε beside it does not help.",
            BESSEL,
            epsilon(1e-8),
        ),
        Trap(
            "torch's std divides by n − 1: correction=0. With one place it is NaN, and "
            "so is NaN times 0 where the mask is False.",
            BESSEL,
            UNGUARDED,
            TIMES,
        ),
        Trap(
            "torch's std divides by n − 1 (correction=0): one place has none, and no ε "
            "or mask makes a number of NaN.",
            BESSEL,
            epsilon(1e-8),
            TIMES,
        ),
        Trap(
            "Mean and sd are those of the whole tensor, padding too; torch's std "
            "divides by n − 1 (correction=0); equal numbers come back divided by ε.",
            EVERYWHERE,
            BESSEL,
            epsilon(1e-8),
        ),
        Trap(
            "The mask is not used: only its places count, the others become 0. torch's "
            "std divides by n − 1 (correction=0); equal numbers come back divided by "
            "ε.",
            EVERYWHERE,
            BESSEL,
            UNMASKED,
            epsilon(1e-8),
        ),
        Trap("Places outside the mask must come back as 0.", UNMASKED),
        Trap(
            "Equal numbers have sd 0: 0/0 is NaN, and NaN times 0 is NaN, too, where "
            "the mask is False. Such numbers are not scaled.",
            UNGUARDED,
            TIMES,
        ),
        Trap(
            "Equal numbers have sd 0, and 0/0 is NaN: one NaN ends a training run. "
            "Such numbers are not scaled.",
            UNGUARDED,
        ),
        *(
            Trap(
                f"An ε of {one:g} in the denominator is not enough: equal numbers that "
                "are not shifted come back divided by it. Do not scale them at all.",
                epsilon(one),
            )
            for one in (1e-8, 1e-10, 1e-12)
        ),
        *(
            Trap(
                f"An ε of {one:g} beside the sd shrinks small advantages, and equal "
                "numbers that are not shifted come back divided by it. Only an sd of 0 "
                "needs care.",
                epsilon(one),
            )
            for one in (1e-3, 1e-5, 1e-6)
        ),
        Trap(
            "An ε beside the variance shrinks small advantages, and equal numbers that "
            "are not shifted come back divided by its root. Do not scale these.",
            (GUARD, "sd = (sd**2 + 1e-8).sqrt()"),
        ),
        Trap(
            "Equal numbers become 0 whatever shift_mean is. Without the shift they "
            "come back as they are.",
            (WHITE, f"{WHITE} * (chosen.std(correction=0) > 1e-6)"),
        ),
        Trap(
            "shift_mean=False must leave the mean where it is: a constant added to "
            "each token's reward pays for every further token.",
            ("chosen.mean() if shift_mean else 0.0", "chosen.mean()"),
        ),
        Trap(
            "The mean is put back without having been scaled. shift_mean=False only "
            "divides by the sd.",
            (WHITE, PUT_BACK),
        ),
        Trap(
            "The mean is put back without having been scaled, and equal numbers end in "
            "0/0. shift_mean=False only divides, unless the sd is 0.",
            (WHITE, PUT_BACK),
            UNGUARDED,
        ),
        Trap(
            "The mean is put back without having been scaled: shift_mean=False only "
            "divides. And an ε beside the variance shrinks small advantages.",
            (WHITE, PUT_BACK),
            (GUARD, "sd = (sd**2 + 1e-8).sqrt()"),
        ),
        Trap(
            "That is the root of the mean square. The sd is always around the mean, "
            "whether x is shifted or not.",
            (
                "chosen.std(correction=0)",
                "(chosen.std(correction=0) if shift_mean else chosen.norm() / "
                "len(chosen) ** 0.5)",
            ),
        ),
        Trap(
            "You divide by the root of the mean square, shifted or not. The sd is "
            "measured around the mean.",
            ("chosen.std(correction=0)", "chosen.norm() / len(chosen) ** 0.5"),
        ),
        Trap(
            "Each row is whitened by itself: then a good answer looks no better than a "
            "bad one. Mean and sd are over all rows together.",
            lambda x, mask, shift_mean=True: torch.stack(
                [whiten(row[None], m[None], shift_mean)[0] for row, m in zip(x, mask)]
            ),
        ),
        Trap(
            "Row by row, with an ε beside the sd: then a good answer looks no better "
            "than a bad one. One mean and one sd for all rows together.",
            by_row_of_mask,
        ),
        Trap(
            "Row by row, and padding is counted. One mean and one sd for the places of "
            "the mask, all rows together: only so does a better answer get more.",
            by_row(0.0, masked=True),
        ),
        Trap(
            "Row by row, and the mask is not used. One mean and one sd for its places, "
            "all rows together: only so does a better answer get more.",
            by_row(0.0, masked=False),
        ),
        Trap(
            "Row by row, padding counted, an ε beside the sd. One mean and one sd for "
            "the places of the mask: only so does a better answer get more.",
            by_row(1e-8, masked=True),
        ),
        Trap(
            "Row by row, the mask not used, an ε beside the sd. One mean and one sd "
            "for the mask's places: only so does a better answer get more.",
            by_row(1e-8, masked=False),
        ),
        Trap(
            "It divides by the variance; sd is its square root.",
            ("chosen.std(correction=0)", "chosen.var(correction=0)"),
        ),
        Trap(
            "Each column is whitened by itself, so the first tokens of all answers "
            "compete with each other only. Mean and sd are over all places together.",
            lambda x, mask, shift_mean=True: (
                torch.stack(
                    [
                        whiten(column, chosen, shift_mean)
                        for column, chosen in zip(x.T, mask.T)
                    ],
                    1,
                )
                if mask.any(0).all()
                else whiten(x, mask, shift_mean)
            ),
        ),
        Trap(
            "Only the scale is right: the mean must go, too, unless shift_mean is "
            "False.",
            ("(x - centre) / sd", "x / sd"),
        ),
    ),
    twins=(Twin(whiten_by_sums), Twin(whiten_in_place)),
    equivalent={
        "torch.where(sd > 1e-06, sd, 1.0) → torch.where(sd >= 1e-06, sd, 1.0)": (
            "an sd of exactly 1e-6 does not occur"
        ),
    },
)

# --- 10.4 explained_variance --------------------------------------------------------


def explained_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)
    returns = 2.0 * torch.randn(4, 6, generator=draw) + 3.0
    values = returns + torch.randn(4, 6, generator=draw) - 1.0
    one = torch.tensor([[1.0, 2.0, 3.0], [4.0, 9.0, 9.0]])
    said = torch.tensor([[1.0, 2.0, 3.0], [3.0, -9.0, 5.0]])
    ends = ragged([6, 2, 4, 1], 6)
    far = torch.where(ends, values, 40.0)
    same = torch.full((2, 3), 0.5)
    return [
        Case("the example of the docstring", said, one, ragged([3, 1], 3)),
        Case("answers of unequal lengths", values, returns, ends),
        Case("padding that is far off", far, returns, ends),
        Case("a constant error", returns + 5.0, returns, ends),
        Case("a critic that says the same everywhere", 0 * values, returns, ends),
        Case("one that is worse than that", -values, returns, ragged([5, 3, 6, 2], 6)),
        Case("returns that are all equal", 0.01 * values[:2, :3], same, same > 0),
    ]


def explained_oracle(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """Two variances by hand, in double precision."""
    B, T = mask.shape
    places = [(b, t) for b in range(B) for t in range(T) if mask[b, t]]

    def variance(numbers: list[float]) -> float:
        mean = sum(numbers) / len(numbers)
        return sum((one - mean) ** 2 for one in numbers) / len(numbers)

    errors = variance([float(returns[p]) - float(values[p]) for p in places])
    return 1 - errors / max(variance([float(returns[p]) for p in places]), 1e-8)


def explained_by_sums(values, returns, mask):
    n = mask.sum()

    def variance(x):
        x = x.double()
        mean = (x * mask).sum() / n
        return (((x - mean) * mask) ** 2).sum() / n

    return float(1 - variance(returns - values) / variance(returns).clamp(min=1e-8))


def explained_by_statistics(values, returns, mask):
    from statistics import pvariance

    missed = pvariance((returns - values)[mask].double().tolist())
    return 1 - missed / max(pvariance(returns[mask].double().tolist()), 1e-8)


EXPLAINED = Exercise(
    id="10.4",
    answer=explained_variance,
    why="One number tells whether the critic, and so a low λ, can be trusted.",
    difficulty=2,
    importance=3,
    minutes=8,
    hints=(
        "If the critic said the same number everywhere, what would be left of the "
        "returns' spread?",
        "$1 - \\mathrm{Var}(R - V) / \\mathrm{Var}(R)$ over the places of the mask.",
        "`errors = (returns - values)[mask]`",
    ),
    bonus="A critic that is always 5 too high has explained variance 1. What harm does "
    "its error do to whitened advantages, at λ = 1 and at λ = 0?",
    cases=explained_cases,
    oracle=explained_oracle,
    traps=(
        Trap(
            "Padding is counted: only the places of the mask are returns.",
            ("(returns - values)[mask]", "(returns - values).flatten()"),
            ("returns[mask]", "returns.flatten()"),
        ),
        Trap(
            "That is the share that is *not* explained. A perfect critic should have "
            "1.",
            ("return 1 - (errors", "return (errors"),
        ),
        Trap(
            "Errors are compared with the spread of the values. A critic that shouts "
            "would look good: compare with the spread of the returns.",
            ("returns[mask].var", "values[mask].var"),
        ),
        Trap(
            "The mean squared error is no variance: a constant error costs something "
            "here, and explained variance does not see it.",
            ("errors.var(correction=0)", "(errors**2).mean()"),
        ),
        Trap(
            "These are standard deviations; variances are their squares.",
            ("errors.var(correction=0)", "errors.std(correction=0)"),
            ("returns[mask].var(correction=0)", "returns[mask].std(correction=0)"),
        ),
        Trap(
            "Equal returns have variance 0, and a number divided by 0 ends in "
            "infinity: Var(R) is taken as at least 1e-8.",
            (".clamp(min=1e-8)", ""),
        ),
        Trap(
            "It gives a tensor; a metric is a plain number, so that it can be logged. "
            "A Python float: .item().",
            (".item()", ""),
        ),
        Trap(
            "It gives a tensor, not a Python float: .item(). And Var(R) is taken as at "
            "least 1e-8, so that equal returns do not end in infinity.",
            (".clamp(min=1e-8)", ""),
            (".item()", ""),
        ),
        Trap(
            "It gives a tensor, not a Python float: .item(). And torch's var divides "
            "by n − 1: correction=0.",
            ("errors.var(correction=0)", "errors.var()"),
            ("returns[mask].var(correction=0)", "returns[mask].var()"),
            (".item()", ""),
        ),
        Trap(
            "torch's var divides by n − 1: correction=0. The two n − 1 cancel, but not "
            "where Var(R) is taken as 1e-8.",
            ("errors.var(correction=0)", "errors.var()"),
            ("returns[mask].var(correction=0)", "returns[mask].var()"),
        ),
        Trap(
            "This is the variance of the values over that of the returns. It says "
            "nothing about whether they agree.",
            ("1 - (errors.var", "(values[mask].var"),
        ),
        Trap(
            "A critic worse than a constant has a *negative* explained variance: do "
            "not cut it off at 0, it is the number that warns you.",
            (
                "1 - (errors.var(correction=0) / spread).item()",
                "max(0.0, 1 - (errors.var(correction=0) / spread).item())",
            ),
        ),
    ),
    twins=(Twin(explained_by_sums), Twin(explained_by_statistics)),
    equivalent={
        "returns - values → values - returns": "a variance does not see the sign",
    },
)

EXERCISES = (DELTAS, GAE, WHITEN, EXPLAINED)

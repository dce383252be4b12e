"""Figures of credit: which words of an answer get it, and what λ costs."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from torch import Tensor

from minipalm.plot.style import (
    COLORS,
    DASHED,
    INK,
    Figure,
    head,
    legend,
    new_figure,
    note,
)

Gae = Callable[..., tuple[Tensor, Tensor]]  # `minipalm.rlhf.gae.gae`, or a learner's


# --- one answer ---------------------------------------------------------------------


class Credit(NamedTuple):
    """What `credit` draws, by token."""

    values: list[float]  # V_t before each token, and behind them the score
    advantages: list[float]
    at_the_end: float  # share of all credit, as sizes, that the last token gets


def credit_of(
    gae: Gae, values: Float[Tensor, "T"], score: float, lam: float, gamma: float = 1.0
) -> Credit:
    """Run gae on one answer whose only reward is a score at its last token."""
    rewards = torch.zeros_like(values)
    rewards[-1] = score
    mask = torch.ones_like(rewards, dtype=torch.bool)
    advantages, _ = gae(rewards[None], values[None], mask[None], gamma, lam)
    sizes = advantages[0].abs()
    share = (sizes[-1] / sizes.sum().clamp(min=1e-9)).item()
    return Credit([*values.tolist(), score], advantages[0].tolist(), share)


def credit(
    gae: Gae,
    words: Sequence[str],
    values: Float[Tensor, "T"],
    score: float,
    lam: float = 0.95,
) -> Figure:
    """What the critic expects along an answer, and the credit that each word gets.

    Args:
        gae: turns the dial: `minipalm.rlhf.gae.gae` or your own.
        words: the answer's T tokens as texts.
        values: V_t before each token.
        score: of the whole answer; the only reward, and at its last token.
        lam: λ.
    """
    found = credit_of(gae, values, score, lam)
    most = max(range(len(words)), key=lambda t: abs(found.advantages[t]))
    figure, (above, below) = new_figure(
        f"λ\u00a0=\u00a0{lam:.2f}: “{words[most]}” gets the most"
        f" ({found.advantages[most]:+.2f}), the last token {found.at_the_end:.0%} of"
        " all praise and blame",
        rows=2,
        height=4.6,
        sharex=True,
    )
    places = list(range(len(words)))
    above.step(
        [*places, len(words)],
        found.values,
        where="post",
        color=COLORS["proxy"],
        linewidth=2,
    )
    above.plot(len(words), score, "o", color=INK, markersize=7, zorder=5)
    corner = {"xycoords": "axes fraction", "ha": "right", "va": "top"}
    note(above, f"dot: score {score:+.2f}", (1, 1), (-4, 10), **corner)
    head(above, "V before each word: what the critic expects so far")
    above.set_ylabel("reward, sd")
    low, high = min(found.values), max(found.values)
    above.set_ylim(low - 0.15 * (high - low) - 0.1, high + 0.3 * (high - low) + 0.1)
    middles = [place + 0.5 for place in places]
    signs = ["chosen" if one >= 0 else "rejected" for one in found.advantages]
    below.bar(middles, found.advantages, 0.82, color=[COLORS[one] for one in signs])
    below.axhline(0, color=INK, linewidth=0.8)
    head(below, "advantage of each word: green is praised, pink is blamed")
    below.set_ylabel("reward, sd")
    below.set_xticks(middles, words, rotation=90)
    below.set_xlim(-0.1, len(words) + 0.3)
    top = 1.1 * max(map(abs, credit_of(gae, values, score, 1.0).advantages))
    jumps = 1.1 * max(map(abs, credit_of(gae, values, score, 0.0).advantages))
    below.set_ylim(-max(top, jumps), max(top, jumps))  # the same for every λ
    for ax in (above, below):
        ax.grid(axis="x", visible=False)
    return figure


# --- a walk whose truth is known ------------------------------------------------------


def walks(n: int, T: int, generator: torch.Generator) -> Float[Tensor, "n T"]:
    """Answers of T tokens, each +1 or −1 by the toss of a coin.

    The score of a walk is the sum of its steps, told at the end. So the true value
    before token t is the sum so far, and the true advantage of a token is the token.
    """
    return 2.0 * torch.randint(2, (n, T), generator=generator) - 1.0


def blind_values(steps: Float[Tensor, "n T"], blindness: float) -> Float[Tensor, "n T"]:
    """V_t of a critic that sees a share 1 − blindness of the truth."""
    return (1 - blindness) * (steps.cumsum(1) - steps)


class Errors(NamedTuple):
    """Of an estimate of the first token's advantage, where the truth is ±1."""

    bias: float  # of its mean
    variance: float  # of a single answer's


def exact_errors(lam: float, blindness: float, T: int) -> Errors:
    """Bias and variance of GAE on the walk, from its formula.

    With k for blindness, δ_t = (1 − k) x_t, and the last one has the score besides:
    x_T + k (x_1 + ... + x_{T−1}). So A_1 = Σ_t w_t x_t with w_t = (1 − k) λ^t + k
    λ^(T−1), t from 0, and the steps x are independent with variance 1.
    """
    far = lam ** (T - 1)
    weights = [(1 - blindness) * lam**t + blindness * far for t in range(T - 1)]
    weights.append(far)
    return Errors(weights[0] - 1, sum(weight**2 for weight in weights[1:]))


def measured_errors(
    gae: Gae, steps: Float[Tensor, "n T"], lam: float, blindness: float
) -> Errors:
    """The same, from many walks."""
    rewards = torch.zeros_like(steps)
    rewards[:, -1] = steps.sum(1)
    mask = torch.ones_like(steps, dtype=torch.bool)
    values = blind_values(steps, blindness)
    estimates = gae(rewards, values, mask, 1.0, lam)[0][:, 0] * steps[:, 0]
    return Errors(estimates.mean().item() - 1, estimates.var(correction=0).item())


LAMBDAS = [0.0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 1.0]


def bias_and_variance(
    gae: Gae, steps: Float[Tensor, "n T"], blindness: float = 0.5, answers: int = 64
) -> Figure:
    """What λ costs: dots measured with gae on the walks, lines exact.

    Args:
        gae: `minipalm.rlhf.gae.gae` or your own.
        steps: many walks, see `walks`.
        blindness: share of the truth that the critic does not see, 0 to 1.
        answers: N, over which an update averages: its variance is divided by N.
    """
    fine = [n / 200 for n in range(201)]
    T = steps.shape[1]
    exact = [exact_errors(lam, blindness, T) for lam in fine]
    totals = [one.bias**2 + one.variance / answers for one in exact]
    best = min(range(len(fine)), key=totals.__getitem__)
    figure, [ax] = new_figure(
        f"A critic blind to {blindness:.0%} of the truth, {answers}"
        f" answer{'s' * (answers > 1)}: λ\u00a0=\u00a0{fine[best]:.2f} errs least",
        height=3.6,
    )
    seen = [measured_errors(gae, steps, lam, blindness) for lam in LAMBDAS]
    curves = {
        "bias²": ("proxy", [e.bias**2 for e in exact], [e.bias**2 for e in seen]),
        "variance / N": (
            "other",
            [e.variance / answers for e in exact],
            [e.variance / answers for e in seen],
        ),
        "together": (
            "ppo",
            totals,
            [e.bias**2 + e.variance / answers for e in seen],
        ),
    }
    for name, (color, line, dots) in curves.items():
        ax.plot(fine, line, color=COLORS[color], linewidth=2, label=name)
        ax.plot(LAMBDAS, dots, "o", color=COLORS[color], markersize=4.5)
    ax.axvline(fine[best], **DASHED)
    ax.set(
        xlabel="λ: 0 trusts the critic, 1 the score",
        ylabel="squared error of the credit",
        ylim=(0, 1.15 * max(max(totals), 0.05)),
        xlim=(-0.02, 1.02),
    )
    legend(ax, loc="upper center", ncols=3)
    return figure


# --- many answers -------------------------------------------------------------------


def praise_by_score(
    scores: Float[Tensor, "B"],
    praises: Mapping[str, Float[Tensor, "B T"]],
    mask: Bool[Tensor, "B T"],
) -> Figure:
    """Does a better answer get more praise? One dot an answer, a panel a way.

    Args:
        scores: of the answers.
        praises: name -> whitened advantages.
        mask: True at the answers' tokens.
    """
    means = {name: mean_praise(x, mask) for name, x in praises.items()}
    slopes = {name: slope(scores, mean) for name, mean in means.items()}
    said = ", ".join(f"{value:z.2f} {name}" for name, value in slopes.items())
    figure, axes = new_figure(
        f"Praise a token for each sd of score: {said}",
        columns=len(praises),
        height=3.2,
        sharey=True,
    )
    for ax, (name, mean) in zip(axes, means.items()):
        _scatter(ax, scores, mean, slopes[name])
        head(ax, name)
        ax.set_xlabel("score, sd of SFT answers")
    axes[0].set_ylabel("mean whitened advantage")
    return figure


def _scatter(
    ax: Axes, x: Float[Tensor, "B"], y: Float[Tensor, "B"], rise: float
) -> None:
    ax.plot(x.tolist(), y.tolist(), ".", color=COLORS["ppo"], alpha=0.4, markersize=6)
    ends = torch.stack([x.min(), x.max()])
    line = y.mean() + rise * (ends - x.mean())
    ax.plot(ends.tolist(), line.tolist(), color=INK, linewidth=1.6)


def mean_praise(
    advantages: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B"]:
    """The mean advantage of each answer's own tokens."""
    return torch.where(mask, advantages, 0.0).sum(1) / mask.sum(1)


def slope(x: Float[Tensor, "B"], y: Float[Tensor, "B"]) -> float:
    """Of the least-squares line through the points."""
    away = x - x.mean()
    return ((away * (y - y.mean())).sum() / (away**2).sum()).item()

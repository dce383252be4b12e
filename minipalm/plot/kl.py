"""Figures of the KL: its estimators, their pushes, the price of each token, and β."""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from minipalm.plot.style import (
    COLORS,
    DASHED,
    INK,
    Figure,
    head,
    legend,
    legend_below,
    listed,
    new_figure,
    note,
    number,
)

Estimator = Callable[[Tensor, Tensor], Tensor]  # (logprobs, ref_logprobs)
HUES = {"k1": COLORS["unpenalised"], "k2": COLORS["gold"], "k3": COLORS["chosen"]}

REFERENCE = torch.tensor([1.6, 1.0, 0.4, -0.2, -0.8])  # logits of five tokens
TOWARDS = torch.tensor([-1.0, 0.1, 1.0, 0.6, -0.4])  # where the policy's go


def two_laws(
    moved: float, sharper: float = 1.0
) -> tuple[Float[Tensor, "V"], Float[Tensor, "V"]]:
    """Log-probabilities of a policy and of its reference, on five tokens.

    Args:
        moved: how far the policy's logits have gone; 0 is the reference.
        sharper: multiplies the policy's logits.
    """
    policy = sharper * (REFERENCE + moved * TOWARDS)
    return policy.log_softmax(-1), REFERENCE.log_softmax(-1)


def mean_and_sd(
    estimator: Estimator, logprobs: Float[Tensor, "V"], ref_logprobs: Float[Tensor, "V"]
) -> tuple[float, float]:
    """Of an estimate by one token that the policy draws; exactly."""
    weights, x = logprobs.exp(), estimator(logprobs, ref_logprobs)
    mean = (weights * x).sum()
    return mean.item(), (weights * (x - mean) ** 2).sum().sqrt().item()


def estimator_clouds(
    estimators: Mapping[str, Estimator],
    logprobs: Float[Tensor, "V"],
    ref_logprobs: Float[Tensor, "V"],
    exact: float,
    tokens: int = 32,
    seed: int = 0,
) -> Figure:
    """Two laws, and what each estimator makes of many small batches of tokens.

    Args:
        estimators: by name, "k1", "k2", "k3": (logprobs, ref_logprobs) to numbers.
        logprobs, ref_logprobs: of the whole vocabulary.
        exact: KL(policy ‖ reference), nats.
        tokens: in each of 600 batches.
        seed: of the draws.
    """
    known = {n: mean_and_sd(f, logprobs, ref_logprobs) for n, f in estimators.items()}
    sds = {name: sd for name, (_, sd) in known.items()}
    figure, axes = new_figure(
        f"The KL is {exact:.3f} nats. "
        + (
            f"k1 scatters {sds['k1'] / sds['k3']:.1f} times as much as k3"
            if sds["k3"] > 1e-6
            else "Nothing has moved: every estimate is 0"
        ),
        columns=2,
        height=3.8,
    )
    left, right = axes
    for law, name, shift in ((ref_logprobs, "sft", -0.2), (logprobs, "ppo", 0.2)):
        label = {"sft": "reference", "ppo": "policy"}[name]
        places = [v + shift for v in range(len(law))]
        left.bar(places, listed(law.exp()), 0.38, color=COLORS[name], label=label)
    left.set(xlabel="token", ylabel="probability", ylim=(0, 1))
    left.grid(axis="x", visible=False)
    legend(left, loc="upper right")
    head(left, "two laws")
    generator = torch.Generator().manual_seed(seed)
    draws = torch.multinomial(logprobs.exp(), 600 * tokens, True, generator=generator)
    drawn = {n: f(logprobs, ref_logprobs)[draws] for n, f in estimators.items()}
    means = {name: x.view(600, tokens).mean(1) for name, x in drawn.items()}
    span = torch.cat([*means.values(), torch.tensor([0.0, 1.2 * exact])])
    low, high = span.min().item() - 0.01, span.max().item() + 0.01
    edges = torch.linspace(low, high, 61)
    for row, (name, values) in enumerate(reversed(means.items())):
        bars = torch.histc(values, 60, low, high)  # one shape: fast enough for a hand
        heights = listed(row + 0.72 * bars / bars.max())
        right.stairs(heights, listed(edges), baseline=row, fill=True, color=HUES[name])
        mean, sd = known[name]
        told = f"{name}: mean {mean:.3f}, sd of a token {sd:.2f}"
        blank = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        note(right, told, (high, row + 0.79), (0, 0), ha="right", bbox=blank, zorder=5)
    right.axvline(exact, **DASHED)
    right.set(xlabel=f"mean of {tokens} tokens, nats", xlim=(low, high))
    right.set(ylim=(0, len(means)), yticks=[])
    right.grid(axis="y", visible=False)
    head(right, "600 batches; dashed: the KL")
    return figure


def expected_pushes(
    estimators: Mapping[str, Estimator],
    logits: Float[Tensor, "V"],
    ref_logprobs: Float[Tensor, "V"],
) -> dict[str, list[float]]:
    """The expected gradient of each estimator as a loss, in the policy's logits.

    Tokens are drawn from the policy: their law is a weight, and not differentiated.
    """
    weights, found = logits.softmax(-1), {}
    for name, estimator in estimators.items():
        leaf = logits.clone().requires_grad_(True)
        loss = (weights * estimator(leaf.log_softmax(-1), ref_logprobs)).sum()
        (slope,) = torch.autograd.grad(loss, leaf)
        found[name] = listed(slope)
    return found


def pushes(
    found: Mapping[str, Sequence[float]], true: Sequence[float], tolerance: float = 1e-4
) -> Figure:
    """What each estimator pushes on average as a loss, beside the KL's own gradient.

    Args:
        found: by name, the expected gradient in each logit.
        true: the gradient of KL(policy ‖ reference).
        tolerance: up to which two gradients are the same.
    """
    right = [
        name
        for name, slope in found.items()
        if max(abs(a - b) for a, b in zip(slope, true)) < tolerance
    ]
    idle = [name for name, slope in found.items() if max(map(abs, slope)) < tolerance]
    told = f"As a loss {' and '.join(right) or 'none'} has the gradient of the KL"
    if idle:
        told += f"; {' and '.join(idle)} pushes nowhere"
    figure, [ax] = new_figure(told, height=3.2)
    series = {"the KL itself": list(true), **{k: list(v) for k, v in found.items()}}
    wide = 0.8 / len(series)
    for n, (name, slope) in enumerate(series.items()):
        places = [v + (n - (len(series) - 1) / 2) * wide for v in range(len(slope))]
        ax.bar(places, slope, 0.9 * wide, color=HUES.get(name, INK), label=name)
        for place, height in zip(places, slope):
            if abs(height) < tolerance:  # a bar that nobody can see
                note(ax, "0", (place, 0), (0, 3), ha="center", color=HUES.get(name))
    ax.axhline(0, color=INK, linewidth=1)
    ax.set_xticks(range(len(true)), [f"token {v}" for v in range(len(true))])
    ax.set(ylabel="expected gradient in the logit")
    ax.grid(axis="x", visible=False)
    legend_below(figure, ax)
    return figure


def paid_by_token(
    words: Sequence[str],
    prices: Float[Tensor, "T"],
    rewards: Float[Tensor, "T"],
    score: float,
    kl_coef: float,
) -> Figure:
    """One answer: how far each token has moved, and what it is paid.

    Args:
        words: its tokens.
        prices: log π − log π_ref of each, nats.
        rewards: r_t of each.
        score: of the whole answer.
        kl_coef: β.
    """
    moved, total = float(prices.sum()), float(rewards.sum())
    figure, (top, low) = new_figure(
        f"Score {number(score)} less β = {kl_coef:.2f} times {number(moved)} nats"
        f" leaves {number(total)}",
        rows=2,
        height=4.4,
        sharex=True,
    )
    places = range(len(words))
    sides = [COLORS["ppo"] if x > 0 else COLORS["other"] for x in listed(prices)]
    top.bar(places, listed(prices), color=sides, width=0.75)
    top.set_ylabel("log π − log π$_{ref}$, nats")
    head(top, "how far: dark where the policy says it more often than the reference")
    low.bar(places, listed(rewards), color=COLORS["proxy"], width=0.75)
    low.set_ylabel("reward $r_t$")
    head(low, "who pays: every token its own move, and the last one gets the score")
    for ax in (top, low):
        ax.axhline(0, color=INK, linewidth=1)
        ax.grid(axis="x", visible=False)
    low.set_xticks(places, list(words), rotation=50, ha="right", fontsize=9)
    return figure


def entropy_by_place(
    entropies: Float[Tensor, "N T"], mask: Float[Tensor, "N T"] | Tensor, limit: float
) -> Figure:
    """How open the next token is, place by place.

    Args:
        entropies: of the law of each token, nats.
        mask: True at the answers' own tokens.
        limit: log V.
    """
    count = mask.sum(0)
    kept = (count >= 5).nonzero()[:, 0].tolist()
    means = [entropies[:, t][mask[:, t]].mean().item() for t in kept]
    mean = entropies[mask].mean().item()
    figure, [ax] = new_figure(
        f"A token is chosen from {torch.tensor(mean).exp().item():.1f} equally likely"
        f" ones on average; {torch.tensor(limit).exp().item():.0f} are possible",
        height=3.0,
    )
    ax.bar([t + 1 for t in kept], means, color=COLORS["sft"], width=0.75)
    ax.axhline(mean, **DASHED)
    note(ax, "mean", (len(kept) + 0.6, mean), (0, 4), ha="right")
    ax.set_xticks([1, *range(5, len(mask[0]) + 1, 5)])
    ax.set(xlabel="token of the answer", ylabel="entropy, nats")
    ax.grid(axis="x", visible=False)
    return figure


def far_from_home(
    distances: Sequence[float],
    means: Mapping[str, Sequence[float]],
    exact: Sequence[float],
) -> Figure:
    """Means of estimators against the KL itself, as the policy walks away.

    Args:
        distances: how far the policy's logits have moved.
        means: by name, at each distance.
        exact: the KL at each.
    """
    name, wrong = max(means.items(), key=lambda one: abs(one[1][-1] - exact[-1]))
    figure, [ax] = new_figure(
        f"In the end the KL is {exact[-1]:.1f} nats, but {name} says {wrong[-1]:.1f}",
        height=3.2,
    )
    for n, (label, values) in enumerate(means.items()):
        color = [COLORS["chosen"], COLORS["unpenalised"]][n % 2]
        ax.plot(distances, values, color=color, linewidth=4 - 2 * n, label=label)
    ax.plot(distances, exact, label="the KL itself", **DASHED)
    ax.set(xlabel="how far the policy's logits have moved", ylabel="nats a token")
    ax.set_ylim(0, 1.05 * max(max(exact), max(max(v) for v in means.values())))
    legend(ax, loc="upper left")
    return figure


def steered(coefs: Sequence[float], kls: Sequence[float], target: float) -> Figure:
    """β and the KL that it leads to, update by update."""
    near = [n for n, kl in enumerate(kls) if abs(kl / target - 1) < 0.05]
    figure, (left, right) = new_figure(
        f"β goes from {coefs[0]:.3f} to {coefs[-1]:.3f}; the KL is within 5% of its"
        f" target after {near[0] if near else 'more than ' + str(len(kls))} updates",
        columns=2,
        height=3.0,
    )
    left.plot(range(len(coefs)), coefs, color=COLORS["proxy"])
    left.set(xlabel="updates", ylabel="β, reward a nat")
    right.plot(range(len(kls)), kls, color=COLORS["ppo"])
    right.axhline(target, **DASHED)
    note(right, "target", (len(kls), target), (0, 4), ha="right")
    right.set(xlabel="updates", ylabel="KL, nats an answer")
    right.set_ylim(0, 1.1 * max(kls))
    return figure

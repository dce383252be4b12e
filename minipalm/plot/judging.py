"""Figures of claims: luck, power, looking too often, length, the price of reward."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minipalm.evaluate.statistics import Bin, Interval, smooth
from minipalm.plot.style import (
    COLORS,
    DASHED,
    INK,
    Figure,
    Row,
    beta_style,
    color_of,
    head,
    legend,
    legend_below,
    new_figure,
    note,
)

Wilson = Callable[..., Interval]  # such as `minipalm.evaluate.statistics.wilson`

# --- luck -----------------------------------------------------------------------------


def tosses(wilson: Wilson, n: int, policies: int, seed: int) -> list[Interval]:
    """Win rates of policies that are as good as what they are compared with."""
    draw = torch.Generator().manual_seed(seed)
    won = torch.randint(2, (policies, n), generator=draw).sum(1).tolist()
    return [wilson(float(one), n) for one in won]


def leaves_out(one: Interval, share: float = 0.5) -> bool:
    """Whether the interval says that the true share is another one."""
    return not one.low <= share <= one.high


def coins(wilson: Wilson, n: int, seed: int = 0, policies: int = 20) -> Figure:
    """Win rates of equally good policies, and how wide an interval is by n.

    Args:
        wilson: the intervals are its.
        n: pairs that each is judged by.
        seed: of the coins.
        policies: how many.
    """
    found = tosses(wilson, n, policies, seed)
    alarms = sum(leaves_out(one) for one in found)
    half = wilson(n / 2, n)
    wide = 50 * (half.high - half.low)
    figure, (left, right) = new_figure(
        f"{alarms} of {policies} equally good policies look better or worse than they"
        f" are; with {n} pairs an interval is ±{wide:.1f} points",
        columns=2,
        height=3.7,
        width_ratios=[1.25, 1],
    )
    for y, one in enumerate(found):
        color = COLORS["unpenalised"] if leaves_out(one) else COLORS["sft"]
        left.plot([100 * one.low, 100 * one.high], [y, y], color=color, linewidth=2)
        left.plot(100 * one.rate, y, "o", color=color, markersize=5)
    left.axvline(50, **DASHED)
    left.set(xlabel="win rate, %", ylabel="policy", yticks=[], xlim=(0, 100))
    left.grid(axis="y", visible=False)
    head(left, "coins, with 95% intervals")
    counts = [round(10 * 10 ** (k / 12)) for k in range(28)]
    ends = [wilson(k / 2, k) for k in counts]
    right.plot(counts, [50 * (x.high - x.low) for x in ends], color=COLORS["ppo"])
    right.plot(n, wide, "o", color=INK, markersize=8)
    right.set(xscale="log", xlabel="pairs (log scale)", ylabel="± points", ylim=(0, 30))
    head(right, "half an interval, at one half")
    return figure


# --- power ----------------------------------------------------------------------------

COUNTS = [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024]


def found_shares(
    gain: float, difficulty: float, experiments: int = 250, seed: int = 0
) -> dict[str, list[float]]:
    """How often a gain is found with each of `COUNTS` prompts, paired and not.

    An answer is worth what its prompt allows, of sd `difficulty`, + luck of sd 1, and
    `gain` more for one of the policies. Unpaired: each is asked prompts of its own.
    """
    draw = torch.Generator().manual_seed(seed)
    shape = experiments, COUNTS[-1]
    prompt, other = difficulty * torch.randn(2, *shape, generator=draw)
    one, two = torch.randn(2, *shape, generator=draw)
    a, b, elsewhere = prompt + one + gain, prompt + two, other + two
    shares: dict[str, list[float]] = {"paired": [], "unpaired": []}
    for n in COUNTS:
        x, y, z = (one[:, :n] for one in (a, b, elsewhere))
        together, apart = (x - y).var(1), x.var(1) + z.var(1)
        for name, d, variance in (
            ("paired", x - y, together),
            ("unpaired", x - z, apart),
        ):
            seen = d.mean(1).abs() > 1.96 * (variance / n).sqrt()
            shares[name].append(seen.double().mean().item())
    return shares


def power(samples_needed: Callable[..., int], gain: float, difficulty: float) -> Figure:
    """How often experiments of each size find a true gain, paired and unpaired.

    Args:
        samples_needed: says from how many pairs on the gain is found in 8 of 10.
        gain: between two policies, in standard deviations of an answer's luck.
        difficulty: how much prompts differ, in the same unit.
    """
    shares = found_shares(gain, difficulty)
    pairs = samples_needed(gain, math.sqrt(2))
    apart = samples_needed(gain, math.sqrt(2 + 2 * difficulty**2))
    figure, [ax] = new_figure(
        f"To find a gain of {gain:g} sd takes {pairs} prompts if both policies answer"
        f" the same ones, and {apart} if not"
    )
    kinds = {
        "paired": (pairs, COLORS["ppo"], "the same prompts"),
        "unpaired": (apart, COLORS["unpenalised"], "other prompts for each"),
    }
    for name, (need, color, label) in kinds.items():
        heights = [100 * one for one in shares[name]]
        ax.plot(COUNTS, heights, color=color, label=label)
        if need <= COUNTS[-1]:
            ax.plot([need, need], [0, 80], color=color, linewidth=1, linestyle=":")
            ax.plot(need, 80, "o", color=color, markersize=7)
    ax.axhline(80, **DASHED)
    ax.set(xscale="log", xlabel="prompts (log scale)", ylim=(0, 103))
    ax.set_ylabel("experiments that find it, %")
    shown = COUNTS[::2]
    ax.set_xticks(shown, [str(n) for n in shown])
    ax.minorticks_off()
    legend_below(figure, ax)
    return figure


# --- looking too often ----------------------------------------------------------------


def looks(
    wilson: Wilson, every: int, times: int, experiments: int, seed: int = 0
) -> Bool[Tensor, "E L"]:
    """Whether equally good policies look different, at each look of each experiment."""
    draw = torch.Generator().manual_seed(seed)
    shape = experiments, every * times
    won = torch.randint(2, shape, generator=draw).cumsum(1)[:, every - 1 :: every]
    seen = torch.zeros(won.shape, dtype=torch.bool)
    for look in range(times):
        n = every * (look + 1)
        out = torch.tensor([leaves_out(wilson(float(k), n)) for k in range(n + 1)])
        seen[:, look] = out[won[:, look]]
    return seen


def peeking(
    wilson: Wilson, every: int = 20, times: int = 25, experiments: int = 2000
) -> Figure:
    """False alarms of those who look once, and of those who stop at the first alarm.

    Args:
        wilson: the intervals are its.
        every: pairs between two looks.
        times: looks.
        experiments: comparisons of two equal policies.
    """
    seen = looks(wilson, every, times, experiments)
    once = 100 * seen.double().mean(0)
    ever = 100 * (seen.cumsum(1) > 0).double().mean(0)
    figure, [ax] = new_figure(
        f"Who looks once errs in {once[-1]:.0f}% of the cases; who looks {times} times "
        f"and stops when it seems significant, in {ever[-1]:.0f}%"
    )
    counts = [every * (look + 1) for look in range(times)]
    ax.plot(counts, ever, color=COLORS["unpenalised"], label="look again and again")
    ax.plot(counts, once, color=COLORS["ppo"], label="look once, at this number")
    ax.axhline(5, **DASHED)
    note(ax, "1 − level", (counts[-1], 5), (0, 10), ha="right")
    ax.set(xlabel="pairs seen", ylabel="equal policies called different, %")
    ax.set_ylim(0, 1.2 * max(10.0, float(ever[-1])))
    legend(ax, loc="upper left")
    return figure


# --- length ---------------------------------------------------------------------------


def by_length(
    length_controlled: Callable[..., tuple[float, float]],
    won: Float[Tensor, "N"],
    longer_by: Int[Tensor, "N"],
) -> Figure:
    """Wins by how much longer the answer was, and what is left at equal length.

    Args:
        length_controlled: gives the win rate at equal length, and γ.
        won: 1, 1/2 or 0.
        longer_by: tokens.
    """
    rate, gamma = length_controlled(won, longer_by)
    plain = won.double().mean().item()
    d = longer_by.double()
    figure, [ax] = new_figure(
        f"It wins {plain:.0%} of the pairs, and {rate:.0%} at equal length: its answers"
        f" are {d.mean():.1f} tokens longer"
    )
    edges = d.quantile(torch.linspace(0, 1, 9, dtype=d.dtype)).unique()
    group = torch.bucketize(d, edges[1:-1])
    groups = [group == one for one in group.unique()]
    ax.scatter(
        [d[here].mean().item() for here in groups],
        [100 * won[here].double().mean().item() for here in groups],
        [20 + 500 * here.double().mean().item() for here in groups],
        color=COLORS["sft"],
        zorder=3,
        label="seen",
    )
    least, most = min(-3.0, d.min().item()), max(3.0, d.max().item())
    x = torch.linspace(least, most, 101, dtype=d.dtype)
    odds = math.log(rate / (1 - rate)) if 0 < rate < 1 else math.copysign(9, rate - 0.5)
    curve = torch.sigmoid(odds + gamma * torch.tanh(x / d.std(correction=0)))
    ax.plot(x, 100 * curve, color=COLORS["ppo"], linewidth=2.2, label="fitted")
    ax.axhline(100 * plain, color=COLORS["sft"], linestyle=":", label="plain win rate")
    ax.axvline(0, **DASHED)
    ax.plot(
        0,
        100 * rate,
        "o",
        color=COLORS["ppo"],
        markersize=10,
        zorder=4,
        label="at equal length",
    )
    ax.set(xlabel="how much longer, tokens", ylabel="win rate, %", ylim=(-4, 104))
    legend_below(figure, ax)
    return figure


# --- reward and its price -------------------------------------------------------------


def best_at(curve: Sequence[Row], key: str, price: float) -> int:
    """The row with the most reward less price · KL, after `smooth`."""
    kl = smooth([row["kl"] for row in curve])
    reward = smooth([row[key] for row in curve])
    worth = [r - price * k for r, k in zip(reward, kl)]
    return max(range(len(worth)), key=worth.__getitem__)


def frontier(curves: Mapping[str, Sequence[Row]], price: float) -> Figure:
    """Reward against KL for every iteration of every run: what is to be had for a nat.

    Args:
        curves: β -> rows with "kl" (nats per answer), "score" (sd) and "gold" (points).
        price: sd of proxy a nat; the best point by the proxy is marked.
    """
    rows = [(beta, row) for beta, one in curves.items() for row in one]
    gold = all(row["gold"] is not None for _, row in rows)
    picks = {beta: best_at(one, "score", price) for beta, one in curves.items()}
    smoothed = {
        beta: {key: smooth([row[key] for row in one]) for key in ("kl", "score")}
        for beta, one in curves.items()
    }

    def worth(beta: str) -> float:
        at, one = picks[beta], smoothed[beta]
        return one["score"][at] - price * one["kl"][at]

    best = max(picks, key=worth)
    at, one = picks[best], smoothed[best]
    kl, score = one["kl"][at], one["score"][at]
    title = f"At {price:g} sd a nat the proxy goes for {kl:.1f} nats"
    if gold:
        truth = {b: smooth([row["gold"] for row in c]) for b, c in curves.items()}
        top = max(max(values) for values in truth.values())
        title += f"; gold is {truth[best][at]:.1f} there, and {top:.1f} at its best"
    figure, axes = new_figure(title, columns=1 + gold, height=3.9)
    names = {"score": "proxy reward, sd of SFT answers", "gold": "gold reward, points"}
    for ax, key in zip(axes, names):
        for index, (beta, curve) in enumerate(curves.items()):
            color, name = beta_style(beta, index)
            xs = [row["kl"] for row in curve]
            ax.plot(xs, [row[key] for row in curve], ".", color=color, label=name)
        y = score if key == "score" else truth[best][at]
        ax.plot(kl, y, "o", color=INK, markersize=10, fillstyle="none", mew=2)
        ax.set(xlabel="KL from SFT, nats per answer", ylabel=names[key])
    bottom, top_score = axes[0].get_ylim()
    ends = axes[0].get_xlim()
    line = [score + price * (x - kl) for x in ends]
    axes[0].plot(ends, line, **DASHED)
    axes[0].set(xlim=ends, ylim=(bottom, top_score))
    head(axes[0], "what is paid for", fontsize=10.5)
    if gold:
        head(axes[1], "what is got", fontsize=10.5)
    legend_below(figure, axes[0])
    return figure


FEWEST = 10  # pairs: of fewer a share says nothing


def judge_abroad(
    shares: Mapping[str, tuple[Interval, float]], curves: Mapping[str, Sequence[Bin]]
) -> Figure:
    """Is the reward model right about answers of a policy that climbed its score?

    Args:
        shares: whose answers -> how often it agrees with the labels, and how often one
            who knew the gold reward would.
        curves: whose answers -> `reliability` of the same pairs.
    """
    first, *_, last = shares
    figure, (left, right) = new_figure(
        f"The reward model is right about {shares[first][0].rate:.0%} of the pairs of "
        f"{first}, and about {shares[last][0].rate:.0%} of those of {last}",
        columns=2,
        height=3.7,
    )
    for y, (name, (one, limit)) in enumerate(shares.items()):
        color = color_of({"β = 0": "unpenalised"}.get(name, name), y)
        ends = [100 * one.low, 100 * one.high]
        left.plot(ends, [y, y], color=color, alpha=0.35, linewidth=9)
        left.plot(100 * one.rate, y, "o", color=color, markersize=9)
        left.plot(100 * limit, y, "|", color=COLORS["gold"], ms=24, mew=3)
        if y == 0:
            note(left, "best possible", (100 * limit, y), (8, 14), ha="right")
        bins = [one for one in curves[name] if one.pairs >= FEWEST]
        said = [100 * b.confidence for b in bins]
        right.plot(said, [100 * b.share for b in bins], "o-", color=color, label=name)
    left.axvline(50, **DASHED)
    note(left, "a coin", (50, len(shares) - 0.4), (4, 5))
    left.set_yticks(range(len(shares)), list(shares))
    left.set(xlabel="pairs judged as labelled, %", ylim=(len(shares) - 0.4, -0.6))
    left.grid(axis="y", visible=False)
    head(left, "accuracy, with 95% intervals")
    right.plot([50, 100], [50, 100], label="as sure as right", **DASHED)
    right.set(xlabel="how sure it is, %", ylabel="how often it is right, %")
    right.set(xlim=(49, 101), ylim=(20, 103))
    legend(right, loc="lower right")
    head(right, "reliability")
    return figure


# --- tries ----------------------------------------------------------------------------


def pass_curve(
    pass_at_k: Callable[[int, int, int], float], counts: Sequence[tuple[int, int]]
) -> list[float]:
    """The mean over prompts of pass@k, for k from 1 to the fewest tries of a prompt.

    Args:
        counts: (tries, those that passed) for each prompt.
    """
    most = min(n for n, _ in counts)
    return [
        sum(pass_at_k(n, c, k) for n, c in counts) / len(counts)
        for k in range(1, most + 1)
    ]


def tries(
    pass_at_k: Callable[[int, int, int], float],
    counts: Mapping[str, Sequence[tuple[int, int]]],
    bar: float,
) -> Figure:
    """How often one of k answers clears a bar, for each policy.

    Args:
        pass_at_k: (n, c, k) to a chance.
        counts: whose answers -> (tries, those that passed) for each prompt.
        bar: points of gold that an answer needs.
    """
    curves = {name: pass_curve(pass_at_k, one) for name, one in counts.items()}
    most = len(next(iter(curves.values())))
    said = ", ".join(
        f"{name}: {one[-1]:.0%}".replace(" ", "\u00a0") for name, one in curves.items()
    )
    figure, [ax] = new_figure(
        f"How often the best of {most} answers has {bar:g} points or more: {said}"
    )
    for index, (name, one) in enumerate(curves.items()):
        color = color_of({"β = 0": "unpenalised"}.get(name, name), index)
        shares = [100 * share for share in one]
        ax.plot(range(1, most + 1), shares, "o-", color=color, label=name, ms=4)
    ax.set(xlabel="tries k", ylabel="mean pass@k, %", ylim=(-4, 104))
    places = sorted({1, *range(most, 0, -max(1, round(most / 8)))} - {2})
    ax.set_xticks(places, [str(k) for k in places])
    ax.set_xlim(0.5, most + 0.5)
    legend_below(figure, ax)
    return figure

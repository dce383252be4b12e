"""Methods side by side: comparisons, old logs, groups, the best of n, and a table."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from minipalm.plot.style import (
    COLORS,
    DASHED,
    INK,
    Figure,
    Row,
    column,
    head,
    legend,
    legend_below,
    new_figure,
    note,
    number,
)

Results = Mapping[str, Any]  # data/results/methods.json
PairLoss = Callable[..., Tensor]  # `minipalm.rlhf.dpo.dpo_loss`
Advantages = Callable[[Tensor], Tensor]

NAMES = {
    "sft": "SFT",
    "best_of_n": "best of 64",
    "ppo": "PPO",
    "rloo": "RLOO",
    "grpo": "GRPO",
    "offline": "offline PPO",
    "dpo": "DPO",
}
HUES = {
    "sft": COLORS["sft"],
    "best_of_n": COLORS["gold"],
    "ppo": COLORS["ppo"],
    "rloo": COLORS["other"],
    "grpo": COLORS["rejected"],
    "offline": COLORS["proxy"],
    "dpo": COLORS["chosen"],
}
# 97.5 % of Student's t, by degrees of freedom: few seeds, wide intervals.
T_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365}

# --- DPO ----------------------------------------------------------------------------


def pair_push(dpo_loss: PairLoss, margins: Tensor, beta: float) -> tuple[Tensor, ...]:
    """A pair's loss, and how hard descent pushes its chosen answer up.

    Args:
        dpo_loss: see `PairLoss`.
        margins: by how many nats the chosen answer has gained more than the rejected
            one, measured from the reference.
        beta: β.
    """
    losses, pushes = [], []
    for margin in margins.double().tolist():
        chosen = torch.tensor([margin]).requires_grad_(True)
        zero = torch.zeros(1)
        loss = dpo_loss(chosen, zero, zero, zero, beta)
        [slope] = torch.autograd.grad(loss, chosen)
        losses.append(loss.detach())
        pushes.append(-slope[0])
    return torch.stack(losses), torch.stack(pushes)


def dpo_pair(dpo_loss: PairLoss, beta: float, margin: float) -> Figure:
    """One pair on DPO's curve: its loss, and how hard it is pushed.

    Args:
        dpo_loss: see `PairLoss`.
        beta: β of the moving curve; the grey one is β = 0.5.
        margin: nats, see `pair_push`; −10 to 10.
    """
    along = torch.linspace(-10, 10, 41)
    loss, push = (
        one[0].item() for one in pair_push(dpo_loss, torch.tensor([margin]), beta)
    )
    figure, axes = new_figure(
        f"β\u00a0=\u00a0{beta:.2f}, a margin of {number(margin, '+.1f')} nats: "
        f"the loss is {loss:.2f}, and the pair pushes with {push:.2f} of at most "
        f"{beta:.2f}",
        columns=2,
    )
    grey, mine = (pair_push(dpo_loss, along, one) for one in (0.5, beta))
    for ax, old, new, now in zip(axes, grey, mine, (loss, push)):
        ax.plot(along, old, color=COLORS["sft"], label="β\u00a0=\u00a00.5")
        ax.plot(along, new, color=COLORS["chosen"], linewidth=2.2, label="your β")
        ax.plot(margin, now, "o", color=INK, markersize=8, zorder=5)
        ax.axvline(0, **DASHED)
        ax.set_xlabel("margin over the reference, nats")
    head(axes[0], "loss of the pair, nats")
    head(axes[1], "push on log π(chosen)")
    axes[0].set_ylim(0, max(5.0, 1.1 * loss))
    axes[1].set_ylim(0, 1.05)
    legend(axes[1])
    return figure


# --- old logs -----------------------------------------------------------------------


def who_carries(weights: Tensor, size: float, name: str) -> Figure:
    """Which share of all weight the heaviest answers have.

    Args:
        weights: of B logged answers.
        size: their effective sample size.
        name: of the policy that they are for.
    """
    order = weights.double().sort(descending=True).values
    carried = (order.cumsum(0) / order.sum().clamp(min=1e-300)).tolist()
    B = len(order)
    tenth = carried[max(B // 10, 1) - 1]
    figure, [ax] = new_figure(
        f"{name}: {B} answers are worth {size:.0f}, and the heaviest tenth has "
        f"{100 * tenth:.0f}\u00a0% of the weight",
        height=3.2,
    )
    along = [n / B for n in range(B + 1)]
    ax.plot(along, along, label="equal weights", **DASHED)
    ax.plot(along, [0.0, *carried], color=COLORS["ppo"], linewidth=2.2, label="yours")
    ax.axvline(size / B, color=COLORS["unpenalised"], label="effective sample size")
    ax.set(
        xlabel="share of the answers, heaviest first",
        ylabel="share of all weight",
        xlim=(0, 1),
        ylim=(0, 1.02),
    )
    legend_below(figure, ax)
    return figure


def aging(results: Results) -> Figure:
    """How a log ages while PPO learns from it: a line a seed."""
    runs = {seed: one["offline"] for seed, one in results["seeds"].items()}
    first = [100 * run[0]["ess"] for run in runs.values()]
    last = [100 * run[-1]["ess"] for run in runs.values()]
    figure, axes = new_figure(
        f"After {runs[next(iter(runs))][0]['step']} updates the log is worth "
        f"{min(first):.0f} to {max(first):.0f}\u00a0% of its answers, at the end "
        f"{min(last):.0f} to {max(last):.0f}\u00a0%",
        columns=2,
    )
    panels = {
        "staleness": "staleness KL(b ‖ π), nats an answer",
        "ess": "effective sample size, share of a batch",
    }
    for ax, (key, name) in zip(axes, panels.items()):
        for color, (seed, run) in zip(list(HUES.values())[2:], runs.items()):
            steps, values = column(run, key)
            start = 0.0 if key == "staleness" else 1.0  # b itself
            ax.plot([0, *steps], [start, *values], color=color, label=f"seed {seed}")
        head(ax, name)
        ax.set_xlabel("update")
        ax.set_ylim(bottom=0)
    legend_below(figure, axes[0])
    return figure


def without_guard(runs: Mapping[str, Sequence[Row]]) -> Figure:
    """What a log says about a policy, and what the policy does when it is asked.

    Args:
        runs: name -> rows with step, ess, kl (estimated from the log), asked_kl and
            asked_gold.
    """
    ends = [
        f"{name}: the log says {rows[-1]['kl']:.1f} nats, it is "
        f"{rows[-1]['asked_kl']:.1f}"
        for name, rows in runs.items()
    ]
    title = "; ".join(ends)
    figure, axes = new_figure(title[0].upper() + title[1:], columns=3, height=3.6)
    colors = (COLORS["unpenalised"], COLORS["ppo"])
    for color, (name, rows) in zip(colors, runs.items()):
        axes[0].plot(*column(rows, "asked_kl"), color=color, label=name)
        axes[0].plot(*column(rows, "kl"), color=color, linestyle=":", linewidth=2)
        axes[1].plot(*column(rows, "ess"), color=color)
        axes[2].plot(*column(rows, "asked_gold"), color=color)
    head(axes[0], "KL from SFT, nats\n(dotted: the log's)", 10)
    head(axes[1], "effective sample size,\nshare (dashed: guard)", 10)
    head(axes[2], "gold reward,\n0 to 10", 10)
    axes[1].axhline(0.1, **DASHED)  # where the guard stops
    axes[1].set_ylim(bottom=0)
    looked = sorted({row["step"] for rows in runs.values() for row in rows})
    for ax in axes:
        ax.set_xlabel("update")
        ax.set_xticks(looked[1::2])
    legend_below(figure, axes[0])
    return figure


# --- groups -------------------------------------------------------------------------


def group_pushes(advantages: Advantages, group_size: int) -> list[float]:
    """Σ|A| / G of a group in which k of G answers have reward 1, the others 0."""
    places = torch.arange(group_size)
    groups = torch.stack([(places < k).float() for k in range(group_size + 1)])
    return advantages(groups).abs().mean(1).tolist()


def who_pushes(ways: Mapping[str, Advantages], group_size: int) -> Figure:
    """How hard a prompt pushes the policy, by how often it is solved.

    Args:
        ways: name -> advantages of groups, such as `rloo_advantages`.
        group_size: G.
    """
    shares = [k / group_size for k in range(group_size + 1)]
    pushes = {name: group_pushes(way, group_size) for name, way in ways.items()}
    rare = ", ".join(
        f"{100 * one[1] / max(one):.0f}\u00a0% in {name}"
        for name, one in pushes.items()
    )
    figure, [ax] = new_figure(
        f"Solved once in {group_size}, a prompt pushes with this share of the most: "
        + rare,
        height=3.2,
    )
    for color, name in zip((COLORS["other"], COLORS["rejected"]), ways):
        ax.plot(shares, pushes[name], "o-", color=color, label=name)
    ax.set(
        xlabel="share of the group's answers that are right",
        ylabel="mean |A| of the group",
        ylim=(0, None),
    )
    legend(ax, loc="lower center")
    return figure


# --- the comparison -----------------------------------------------------------------


def over_seeds(results: Results, method: str, measure: str) -> list[float]:
    """A method's number on every seed."""
    seeds = results["seeds"].values()
    return [one["methods"][method][measure] for one in seeds]


def differences(
    results: Results, method: str, measure: str, other: str = "ppo"
) -> list[float]:
    """Seed by seed, method less other: what they begin with cancels."""
    mine, theirs = (over_seeds(results, one, measure) for one in (method, other))
    return [a - b for a, b in zip(mine, theirs)]


def half_width(values: Sequence[float]) -> float:
    """Of a 95 % interval for the mean, by Student's t."""
    spread = statistics.stdev(values) / len(values) ** 0.5
    return T_975[len(values) - 1] * spread


def methods_table(results: Results) -> str:
    """A line a method: mean ± standard deviation over seeds, and gold against PPO's.

    The last column is the mean of the differences seed by seed, with its 95 % interval.
    """
    digits = {"gold": 2, "proxy": 2, "kl": 1, "win_rate": 2, "cpu": 0}
    lines = [f"{'':12}" + "".join(f"{one:>13}" for one in digits) + "  gold − PPO's"]
    for method in NAMES:
        line = f"{NAMES[method]:12}"
        for measure, places in digits.items():
            values = over_seeds(results, method, measure)
            mean, sd = statistics.fmean(values), statistics.stdev(values)
            line += f"{f'{mean:.{places}f} ± {sd:.{places}f}':>13}"
        if method != "ppo":
            apart = differences(results, method, "gold")
            line += f"   {statistics.fmean(apart):+.2f} ± {half_width(apart):.2f}"
        lines.append(line)
    return "\n".join(lines)


def against_ppo(results: Results, measure: str = "gold") -> Figure:
    """Each method less PPO on the same seed: a dot a seed, a bar for the mean."""
    names = [one for one in NAMES if one not in ("ppo", "sft")]
    apart = {one: differences(results, one, measure) for one in names}
    clear = [
        NAMES[one]
        for one, values in apart.items()
        if abs(statistics.fmean(values)) > half_width(values)
    ]
    found = ", ".join(clear) if clear else "none"
    figure, [ax] = new_figure(
        f"Told apart from PPO by {measure}, with {len(apart[names[0]])} seeds: {found}",
        height=3.0,
    )
    for y, (method, values) in enumerate(apart.items()):
        mean, half = statistics.fmean(values), half_width(values)
        ax.errorbar(mean, y, xerr=half, color=HUES[method], capsize=4, linewidth=2)
        ax.plot(mean, y, "|", color=HUES[method], markersize=16, markeredgewidth=3)
        ax.plot(values, [y] * len(values), "o", color=INK, markersize=4, zorder=5)
    ax.axvline(0, **DASHED)
    ax.set_yticks(range(len(apart)), [NAMES[one] for one in apart])
    ax.set_ylim(len(apart) - 0.5, -0.5)
    ax.set_xlabel(f"{measure}, less PPO's on the same seed (bars: 95 % intervals)")
    return figure


def best_of_n_curve(results: Results, measure: str) -> dict[int, tuple[float, float]]:
    """n -> KL and the measure, means over seeds."""
    curves = [one["best_of_n"] for one in results["seeds"].values()]
    return {
        int(n): (
            statistics.fmean(curve[n]["kl"] for curve in curves),
            statistics.fmean(curve[n][measure] for curve in curves),
        )
        for n in curves[0]
    }


def yardstick(results: Results, doublings: int, measure: str = "gold") -> Figure:
    """What best of n gets on its way, and where the trained methods stand.

    Args:
        results: see `Results`.
        doublings: of n, from 1: n = 2^doublings.
        measure: gold or proxy.
    """
    curve, n = best_of_n_curve(results, measure), 2**doublings
    kl, value = curve[n]
    answers = f"{n} answers" if n > 1 else "one answer"
    figure, [ax] = new_figure(
        f"Best of {n}: {measure} {value:.2f} at {kl:.1f} nats, for {answers} "
        "to every question",
        height=3.8,
    )
    ax.plot(*zip(*curve.values()), "o-", color=COLORS["gold"], label="best of n")
    ax.plot(kl, value, "o", color=INK, markersize=10, zorder=6)
    note(ax, f"n = {n}", (kl, value), (8, -14))
    for method in NAMES:
        if method in ("sft", "best_of_n"):
            continue
        far, got = (over_seeds(results, method, one) for one in ("kl", measure))
        ax.errorbar(
            statistics.fmean(far),
            statistics.fmean(got),
            xerr=statistics.stdev(far),
            yerr=statistics.stdev(got),
            fmt="o",
            color=HUES[method],
            label=NAMES[method],
            linewidth=1.2,
        )
    unit = "gold reward, 0 to 10" if measure == "gold" else "proxy, sd of SFT's scores"
    ax.set(xlabel="KL from SFT, nats an answer (bars: sd over seeds)", ylabel=unit)
    legend(ax, loc="lower right")
    return figure

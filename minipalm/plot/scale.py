"""Full size in pictures: operations, memory, the wire, sampling, rounding, the bill."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from minipalm.config import PaLMConfig
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
from minipalm.scale.gpu import GIB, GPU
from minipalm.scale.measured import gpu_of, settings_of
from minipalm.scale.reserve import coming_and_going, verdict, waste
from minipalm.scale.stages import Stage

Flops = Callable[..., float]  # `training_flops`
Traffic = Callable[..., float]  # `fsdp_traffic`
Floor = Callable[..., float]  # `decode_floor`
Share = Callable[..., float]  # `surviving_share`

PARTS = {  # of memory, in the order in which they are stacked
    "weights": COLORS["ppo"],
    "copies": COLORS["other"],
    "moments": COLORS["proxy"],
    "gradients": COLORS["rejected"],
    "activations": COLORS["gold"],
    "working": COLORS["sft"],
    "exchange": COLORS["chosen"],
}


def percent(share: float) -> str:
    """A share in few digits: 0.013 is 1.3 %."""
    return f"{100 * share:.2g}\u00a0%" if share < 0.1 else f"{100 * share:.0f}\u00a0%"


def attention_share(training_flops: Flops, config: PaLMConfig, length: int) -> float:
    """What part of a training step's operations attention is: they grow with length."""
    step = training_flops(config, 2) - training_flops(config, 1)
    return step * (length + 1) / training_flops(config, length)


def attention_curve(
    training_flops: Flops, configs: Mapping[str, PaLMConfig], length: int
) -> Figure:
    """Attention's share of the operations, by the length of a row.

    Args:
        training_flops: see `minipalm.scale.flops`.
        configs: networks by name.
        length: where the dots stand.
    """
    shares = {n: attention_share(training_flops, c, length) for n, c in configs.items()}
    said = ", ".join(f"{percent(share)} in the {n}" for n, share in shares.items())
    figure, [ax] = new_figure(
        f"In rows of {length:,} tokens attention is {said}", height=3.2
    )
    lengths = [2**n for n in range(5, 18)]
    for color, (name, config) in zip((COLORS["ppo"], COLORS["gold"]), configs.items()):
        curve = [attention_share(training_flops, config, n) for n in lengths]
        ax.plot(lengths, curve, color=color, linewidth=2.2, label=name)
        ax.plot(length, shares[name], "o", color=INK, markersize=8, zorder=5)
    ax.set_xscale("log", base=2)
    ax.set(xlabel="tokens of a row", ylabel="share of the operations", ylim=(0, 1))
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    legend(ax)
    return figure


def memory_bars(
    ways: Mapping[str, dict[str, float]], gpu: GPU, title: str = "", gpus: int = 1
) -> Figure:
    """What lies in memory at the worst moment of a step, part by part.

    Args:
        ways: name -> bytes of each part, see `training_peak`.
        gpu: whose memory is the dashed line.
        title: what is the same for all ways.
        gpus: that share it; with more PyTorch may hold more besides.
    """
    totals = {name: sum(parts.values()) / GIB for name, parts in ways.items()}
    fits: dict[str, list[str]] = {"yes": [], "tight": [], "NO": []}
    for name, parts in ways.items():
        held = waste(gpus, alternates=False) * coming_and_going({name: parts})
        fits[verdict(GIB * totals[name], held, gpu.memory)].append(name)
    tight = f"; tight: {' and '.join(fits['tight'])}" if fits["tight"] else ""
    figure, [ax] = new_figure(
        f"{title}: what fits into {gpu.memory / GIB:.0f} GiB is "
        f"{' and '.join(fits['yes']) or 'nothing'}{tight}",
        height=3.4,
    )
    seen = [n for n in PARTS if any(p.get(n, 0) > GIB / 4 for p in ways.values())]
    for y, parts in enumerate(ways.values()):
        left = 0.0
        for part in seen:
            wide = parts.get(part, 0.0) / GIB
            label = part if y == 0 else None
            ax.barh(y, wide, left=left, color=PARTS[part], label=label)
            left += wide
        note(ax, f"{left:.0f}", (left, y), (4, -4))
    ax.axvline(gpu.memory / GIB, **DASHED)
    ax.set_yticks(range(len(ways)), list(ways))
    ax.set_ylim(len(ways) - 0.4, -0.6)
    ax.set_xlim(0, 1.12 * max(gpu.memory / GIB, *totals.values()))
    ax.set_xlabel("GiB on each GPU (dashed: what there is)")
    figure.legend(
        loc="outside lower center", ncols=4, frameon=False, fontsize=10, labelcolor=INK
    )
    return figure


def wire_curve(
    training_flops: Flops,
    fsdp_traffic: Traffic,
    config: PaLMConfig,
    weights: int,
    gpu: GPU,
    gpus: int,
    length: int = 2048,
) -> Figure:
    """Which share of a step's time is spent on the wire, by rows of a micro-batch.

    Args:
        training_flops, fsdp_traffic: see `minipalm.scale`.
        config: of the network; weights: how many it has, all trained.
        gpu: its rates.
        gpus: among whom it is shared.
    """

    def share(rows: int) -> float:
        products = rows * length * training_flops(config, length) / gpu.flops
        wire = fsdp_traffic(weights, weights, gpus) / gpu.link
        return wire / (products + wire)

    rows = [1, 2, 4, 8, 16, 32]
    figure, [ax] = new_figure(
        f"{gpus} × {gpu.name}, {length:,} tokens a row: the wire takes "
        f"{percent(share(1))} of a step of one row, {percent(share(32))} of one of 32",
        height=3.2,
    )
    shares = [share(n) for n in rows]
    ax.plot(rows, shares, "o-", color=COLORS["unpenalised"], linewidth=2)
    ax.axhline(0.1, **DASHED)
    ax.set_xscale("log", base=2)
    ax.set_xticks(rows, [str(n) for n in rows])
    ax.set(xlabel="rows of a micro-batch on each GPU", ylabel="share of the time")
    ax.set_ylim(0, 0.6)
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    return figure


def decode_curve(
    decode_floor: Floor, config: PaLMConfig, gpu: GPU, rows: int, seen: int
) -> Figure:
    """The floor of a sampling step, and what it means in tokens a second.

    Args:
        decode_floor: see `minipalm.scale.decoding`.
        rows: where the dots stand; seen: tokens of each row so far.
    """

    def floor(n: int, flops: float = gpu.flops) -> float:
        return decode_floor(config, n, seen, flops, gpu.bandwidth)

    now, one = floor(rows), floor(1)
    rule = "reading" if floor(rows, 1e30) == now else "computing"
    figure, axes = new_figure(
        f"{gpu.name}, {rows} rows: {1e3 * now:.2f} ms a step ({rule} takes longer), "
        f"{rows * one / now:.0f} times the tokens a second of one row",
        columns=2,
    )
    many = [2**n for n in range(11)]
    axes[0].plot(many, [1e3 * floor(n) for n in many], color=COLORS["ppo"], lw=2.2)
    axes[0].plot(many, [1e3 * floor(n, 1e30) for n in many], **DASHED)
    axes[0].plot(rows, 1e3 * now, "o", color=INK, markersize=8, zorder=5)
    axes[1].plot(many, [n / floor(n) for n in many], color=COLORS["ppo"], lw=2.2)
    axes[1].plot(rows, rows / now, "o", color=INK, markersize=8, zorder=5)
    axes[1].set_yscale("log")
    head(axes[0], "milliseconds a step\n(dashed: reading alone)", 10)
    head(axes[1], "tokens a second,\nat most", 10)
    for ax in axes:
        ax.set_xscale("log", base=2)
        ax.set_xlabel("rows at once")
    axes[0].set_ylim(bottom=0)
    return figure


def survival_curve(surviving_share: Share, weights: Tensor, lr: float) -> Figure:
    """How many of AdamW's first steps survive rounding, by the learning rate.

    Args:
        surviving_share: see `minipalm.scale.rounding`.
        weights: of any usual network.
        lr: where the dot stands. AdamW's first step moves each weight by about lr.
    """
    signs = torch.where(torch.arange(weights.numel()) % 2 == 0, 1.0, -1.0)

    def share(rate: float, dtype: torch.dtype = torch.bfloat16) -> float:
        return surviving_share(weights.flatten(), rate * signs, dtype)

    spread = weights.float().std().item()
    figure, [ax] = new_figure(
        f"Weights of {spread:.2g}, a learning rate of {lr:.1g}: {percent(share(lr))} "
        "of the steps survive in bfloat16",
        height=3.2,
    )
    rates = [10 ** (n / 4) for n in range(-32, -11)]
    for dtype, color, name in (
        (torch.bfloat16, COLORS["unpenalised"], "bfloat16"),
        (torch.float32, COLORS["chosen"], "float32"),
    ):
        ax.plot(rates, [share(r, dtype) for r in rates], color=color, lw=2, label=name)
    ax.plot(lr, share(lr), "o", color=INK, markersize=8, zorder=5)
    ax.set_xscale("log")
    ax.set(xlabel="learning rate", ylabel="steps that change a weight")
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    legend(ax, loc="lower right")
    return figure


def ratio_spread(ratios: Mapping[str, Tensor], clip: float) -> Figure:
    """The ratio of every token before the first step; dashed, where it is clipped.

    Args:
        ratios: π/π_old by whose numbers the old ones are.
        clip: ε.
    """
    said = ", ".join(f"{name} {one.std():.1g}" for name, one in ratios.items())
    outside = max(
        ((one - 1).abs() > clip).float().mean().item() for one in ratios.values()
    )
    figure, axes = new_figure(
        f"Spread of the first ratio: {said}; at most {percent(outside)} of the tokens "
        "are clipped",
        columns=len(ratios),
        height=3.2,
        sharey=True,
    )
    edges = [1 + clip * (n - 0.5) / 40 for n in range(-49, 51)]
    for ax, color, (name, one) in zip(axes, ("ppo", "gold"), ratios.items()):
        ax.hist(one.numpy(), bins=edges, color=COLORS[color])
        for edge in (1 - clip, 1 + clip):
            ax.axvline(edge, **DASHED)
        head(ax, f"old log-probabilities {name}", 10)
        ax.set(xlabel="ratio before the first step", yscale="log")
    axes[0].set_ylabel("tokens")
    return figure


def training_curves(runs: Mapping[str, Sequence[float]]) -> Figure:
    """Losses of the same run under other roundings, step by step."""
    ends = ", ".join(f"{name} {losses[-1]:.3f}" for name, losses in runs.items())
    steps = len(next(iter(runs.values())))
    figure, [ax] = new_figure(f"Loss after {steps} steps: {ends}", height=3.2)
    colors = (COLORS["chosen"], COLORS["unpenalised"], COLORS["ppo"])
    styles = ((6.0, "-"), (2.0, "-"), (1.5, (0, (4, 2))))  # they may lie on another
    for color, (wide, style), (name, losses) in zip(colors, styles, runs.items()):
        along = range(1, len(losses) + 1)
        ax.plot(along, losses, color=color, linestyle=style, lw=wide, label=name)
    ax.set(xlabel="step", ylabel="loss", ylim=(0, None))
    legend(ax)
    return figure


def bill(stages: Sequence[Stage], gpu: GPU, gpus: int) -> Figure:
    """GPU-hours of each stage, and the seconds of an iteration of PPO."""
    hours = [one.hours * gpus for one in stages]
    everything = sum(hours)
    before = gpus * sum(one.hours for one in stages if one.pretrains)
    does = ""
    for answer, says in (("NO", "too large"), ("tight", "tight")):
        names = [one.name for one in stages if one.fits(gpu) == answer]
        does += f"; {says}: {', '.join(names)}" if names else ""
    figure, axes = new_figure(
        f"{gpus} × {gpu.name}: {everything:,.0f} GPU-hours, "
        f"{percent(1 - before / everything)} of them after pretraining{does}",
        columns=2,
        height=3.6,
    )
    axes[0].barh([one.name for one in stages], hours, color=COLORS["ppo"])
    axes[0].set_xscale("log")
    axes[0].set_xlabel(f"GPU-hours (at ${gpu.price:.2f}), log scale")
    for y, one in enumerate(hours):
        note(axes[0], f"{one:,.1f}", (one, y), (4, -4), fontsize=9)
    axes[0].set_xlim(min(hours) / 2, 12 * max(hours))
    [ppo] = [one for one in stages if one.phases]
    phases = ppo.phases or {}
    axes[1].barh(list(phases), list(phases.values()), color=COLORS["gold"])
    axes[1].set_xlabel(f"seconds, {ppo.step_seconds:.1f} in all")
    for y, seconds in enumerate(phases.values()):
        note(axes[1], f"{seconds:.2f}", (seconds, y), (4, -4), fontsize=9)
    axes[1].set_xlim(0, 1.2 * max(phases.values()))
    head(axes[0], "the pipeline", 10)
    head(axes[1], "an iteration of PPO", 10)
    axes[0].minorticks_off()
    for ax in axes:
        ax.invert_yaxis()
        ax.grid(axis="y", visible=False)
    return figure


def plan_and_truth(results: Mapping[str, Any]) -> Figure:
    """How far the plan is off, for each setting that was measured.

    Args:
        results: data/results/plan.json.
    """
    gpu, settings = gpu_of(results), settings_of(results)
    off: tuple[list[float], list[float]] = ([], [])
    for one in settings:
        gib, seconds = one.predicted(gpu)
        off[0].append(100 * (gib / one.gib - 1))
        off[1].append(100 * (seconds / one.seconds - 1))
    worst = [max(map(abs, values)) for values in off]
    figure, axes = new_figure(
        f"{len(settings)} ways to train: off by at most {worst[0]:.1f}\u00a0% "
        f"in memory, {worst[1]:.1f}\u00a0% in time",
        columns=2,
        height=0.9 + 0.22 * len(settings),
        sharey=True,
    )
    names = [
        f"{one.name}, {one.label} rows{', recompute' * one.recompute}, {one.gpus} GPU"
        for one in settings
    ]
    for ax, values, bar, name in zip(axes, off, (5, 15), ("memory", "seconds")):
        ax.axvspan(-bar, bar, color=COLORS["chosen"], alpha=0.12)
        ax.axvline(0, **DASHED)
        filled = ["white" if one.fitted else INK for one in settings]
        ax.scatter(values, range(len(values)), s=28, c=filled, edgecolors=INK, zorder=5)
        what = f"{name}: off by % (band: {bar} %)"
        ax.set(xlabel=what, xlim=(-1.3 * bar, 1.3 * bar))
    axes[0].set_yticks(range(len(names)), names, fontsize=8)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    return figure

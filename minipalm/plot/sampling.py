"""Figures of a language model: its first loss, what it may say, a loss that lies."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from minipalm.plot.style import (
    COLORS,
    DASHED,
    Figure,
    Row,
    color_of,
    column,
    head,
    legend,
    new_figure,
    note,
)

Law = Callable[..., Tensor]  # (logits, temperature, top_k, top_p) to log-probabilities


def law_and_draws(
    sampling_law: Law,
    logits: Float[Tensor, "V"],
    temperature: float,
    top_k: int,
    top_p: float,
    draws: int,
    seed: int = 0,
) -> tuple[Float[Tensor, "V"], Float[Tensor, "V"]]:
    """Probability of each token, and its share among so many draws."""
    filters = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    law = sampling_law(logits[None], **filters)[0].exp()
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(law, draws, replacement=True, generator=generator)
    return law, drawn.bincount(minlength=len(law)) / draws


def law_of_next(
    sampling_law: Law,
    logits: Float[Tensor, "V"],
    words: Sequence[str],
    prompt: str,
    *,
    temperature: float = 1.0,
    top_k: int,
    top_p: float = 1.0,
    draws: int = 200,
    top: int = 12,
) -> Figure:
    """What temperature and filters make of the next token, and what is drawn then.

    Args:
        sampling_law: (logits, temperature, top_k, top_p) to log-probabilities, such as
            `minipalm.model.generate.sampling_law`: the figure shows what it does.
        logits: of one model, after the prompt.
        words: the V tokens as texts.
        prompt: shown above the bars.
        top_k, top_p: V and 1 let everything pass.
        draws: how many tokens are drawn.
        top: how many of the likeliest tokens to show.
    """
    law, share = law_and_draws(sampling_law, logits, temperature, top_k, top_p, draws)
    plain = logits.double().softmax(-1)
    kept, best = int((law > 0).sum()), plain.topk(min(top, len(plain))).indices
    figure, [ax] = new_figure(
        f"T = {temperature:g}, top-k {top_k}, top-p {top_p:g}: {kept} of {len(law)} "
        f"tokens can be drawn, “{words[int(law.argmax())]}” in {law.max():.0%} of cases"
    )
    places = range(len(best))
    values = [100 * x[best] for x in (law, plain, share)]
    ax.bar(
        places, values[0].tolist(), 0.72, color=COLORS["ppo"], label="law drawn from"
    )
    ax.bar(
        places,
        values[1].tolist(),
        0.72,
        color="none",
        edgecolor=COLORS["sft"],
        linewidth=1.4,
        label="T = 1, no filter",
    )
    ax.plot(
        places,
        values[2].tolist(),
        "o",
        color=COLORS["gold"],
        markeredgecolor="white",
        markersize=8,
        label=f"share of {draws} draws",
    )
    ax.set_xticks(places, [words[int(i)] for i in best], rotation=30, ha="right")
    ax.set(ylabel="probability, %", xlabel="next token")
    ax.set_ylim(0, 1.1 * max(max(x.tolist()) for x in values))
    ax.grid(axis="x", visible=False)
    head(ax, f"after “{prompt}”")
    legend(ax, loc="upper right")
    return figure


def first_losses(
    stds: Sequence[float],
    untrained: Sequence[float],
    trained: Sequence[float],
    log_v: float,
    steps: int,
) -> Figure:
    """What a network's loss is before and after a short run, for several embeddings.

    Args:
        stds: embed_std of each network, rising.
        untrained, trained: loss on held-out text, nats a token.
        log_v: what knowing nothing costs.
        steps: length of the short run.
    """
    best = min(range(len(stds)), key=lambda i: trained[i])
    figure, [ax] = new_figure(
        f"Untrained: {untrained[0]:.1f} nats at embed_std {stds[0]:g}, "
        f"{untrained[-1]:.0f} at {stds[-1]:g}; after {steps} steps the best is "
        f"{stds[best]:g}"
    )
    for index, (name, values) in enumerate(
        (("untrained", untrained), (f"after {steps} steps", trained))
    ):
        color = COLORS[("rejected", "ppo")[index]]
        ax.plot(stds, values, "o-", color=color, linewidth=2, label=name)
        for x, y in zip(stds, values):
            text = f"{y:.0f}" if y >= 10 else f"{y:.2f}"
            note(ax, text, (x, y), (0, 6), ha="center")
    ax.axhline(log_v, **DASHED)
    where = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "top"}
    note(ax, f"log V = {log_v:.2f}", (0.6, log_v), (0, -4), **where)
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="embed_std, standard deviation of the embedding",
        ylabel="loss, nats a token",
    )
    ax.set_ylim(top=2 * max(untrained))
    ax.set_xticks(stds, [f"{std:g}" for std in stds], minor=False)
    ax.set_xticks([], minor=True)
    low, high = ax.get_ylim()
    ticks = [y for y in (1, 2, 5, 10, 20, 50, 100, 200) if low < y < high]
    ax.set_yticks(ticks, [f"{y:g}" for y in ticks])
    ax.set_yticks([], minor=True)
    legend(ax, loc="upper left")
    return figure


def lying_loss(
    runs: Mapping[str, Sequence[Row]], real: Mapping[str, float], log_v: float
) -> Figure:
    """Losses that two runs report, and what their models are worth.

    Args:
        runs: name -> rows with "step" and "loss"; the last one is the broken run.
        real: name -> next-token loss on held-out text.
        log_v: what knowing nothing costs.
    """
    curves = {name: column(rows, "loss") for name, rows in runs.items()}
    broken = list(runs)[-1]
    figure, [left, right] = new_figure(
        f"“{broken}” reports {curves[broken][1][-1]:.3f} nats at the end, and is worth "
        f"{real[broken]:.1f} where knowing nothing costs {log_v:.1f}",
        columns=2,
        height=3.2,
    )
    colors = {name: color_of("", n) for n, name in enumerate(runs)}
    colors[broken] = COLORS["unpenalised"]
    for name, (steps, values) in curves.items():
        left.plot(steps, values, color=colors[name], linewidth=2, label=name)
    left.set(xlabel="step", ylabel="loss reported, nats a token", ylim=(0, None))
    left.set_xlim(0, None)
    legend(left)
    bars: dict[str, Any] = {"color": [colors[name] for name in runs]}
    right.bar(list(runs), [real[name] for name in runs], 0.6, **bars)
    for place, name in enumerate(runs):
        note(right, f"{real[name]:.2f}", (place, real[name]), (0, 3), ha="center")
    right.axhline(log_v, **DASHED)
    where = {"xycoords": ("axes fraction", "data"), "va": "bottom"}
    note(right, "log V", (0.01, log_v), (0, 3), **where)
    right.set(ylabel="real loss on held-out text, nats")
    right.set_ylim(top=1.15 * max(real.values()))
    right.grid(axis="x", visible=False)
    return figure

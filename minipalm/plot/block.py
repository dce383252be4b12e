"""The block: who waits for whom, and how the stream grows with depth."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from minipalm.config import PaLMConfig
from minipalm.model.rope import rotations
from minipalm.plot.style import COLORS, INK, Figure, legend_below, new_figure

Span = tuple[str, int, float, float]  # what, lane, begin and end in microseconds
KINDS = {
    "attention": COLORS["ppo"],
    "feed-forward": COLORS["gold"],
    "both": COLORS["chosen"],
    "exchange": COLORS["rejected"],
}


def work(config: PaLMConfig, tokens: int) -> dict[str, float]:
    """Operations of each part of a block, for one row of `tokens`."""
    D, M, T = config.dim, config.ff_dim, tokens
    read = config.heads * config.head_dim
    return {
        "q k v": 2 * T * D * config.qkv_dim,
        "look": 2 * T * T * read,  # scores and sums, half of them behind the mask
        "out": 2 * T * read * D,
        "gate up": 2 * T * D * 2 * M,
        "down": 2 * T * M * D,
    }


def spans(
    config: PaLMConfig, tokens: int, rate: float, overhead: float, exchange: float = 0.0
) -> dict[str, list[Span]]:
    """When each part of a block begins and ends, in three ways of running it.

    Args:
        rate: operations a microsecond.
        overhead: microseconds that every call takes besides, whatever its size.
        exchange: microseconds in which cards that hold a part of each matrix add up
            their parts of a result: once for each sum into the stream. 0: one card.

    Returns:
        "serial", "parallel", and "parallel, two queues": there attention and
        feed-forward run side by side, each as fast as if it were alone.
    """
    ops = work(config, tokens)
    took = {name: overhead + count / rate for name, count in ops.items()}
    took |= {"norm": overhead, "sum": exchange}
    together = overhead + (ops["q k v"] + ops["gate up"]) / rate

    def follow(
        *parts: tuple[str, float], lane: int = 0, begin: float = 0.0
    ) -> list[Span]:
        made: list[Span] = []
        for name, time in parts:
            made.append((name, lane, begin, begin + time))
            begin += time
        return made

    def named(*names: str) -> list[tuple[str, float]]:
        return [(name, took[name]) for name in names if took[name]]

    front = [("norm", overhead), ("q k v gate up", together)]
    serial = named("norm", "q k v", "look", "out", "sum")
    serial += named("norm", "gate up", "down", "sum")
    fork = [*follow(*front), *follow(*named("look", "out"), begin=overhead + together)]
    fork += follow(*named("down"), lane=1, begin=overhead + together)
    last = max(end for *_, end in fork)
    return {
        "serial": follow(*serial),
        "parallel": follow(*front, *named("look", "out", "down", "sum")),
        "parallel, two queues": [*fork, *follow(*named("sum"), begin=last)],
    }


def kind_of(name: str) -> str:
    if name in ("q k v", "look", "out"):
        return "attention"
    if name in ("gate up", "down"):
        return "feed-forward"
    return "exchange" if name == "sum" else "both"


def timeline(
    dim: int = 256,
    tokens: int = 16,
    overhead: float = 20.0,
    exchange: float = 0.0,
    rate: float = 5e4,
) -> Figure:
    """Who waits for whom in a block, serial and parallel.

    Args:
        dim: D; heads of width 64, a fourth of D in all, one key/value head, M = 4 D.
        tokens: of the row.
        overhead: microseconds of a call besides its work.
        exchange: microseconds of a sum over cards.
        rate: operations a microsecond, such as measured.
    """
    heads = max(dim // 256, 1)
    config = PaLMConfig(1, dim=dim, depth=1, heads=heads, head_dim=64)
    ways = spans(config, tokens, rate, overhead, exchange)
    ends = {name: max(end for *_, end in way) for name, way in ways.items()}
    share = [100 * ends[name] / ends["serial"] for name in list(ways)[1:]]
    figure, [ax] = new_figure(
        f"D = {dim}, {tokens} token{'s'[: tokens > 1]}: the parallel block takes "
        f"{share[0]:.0f}\u00a0% "
        f"of the serial one's time, {share[1]:.0f}\u00a0% with two queues",
        height=3.2,
    )
    for row, way in enumerate(ways.values()):
        lanes = 1 + max(lane for _, lane, _, _ in way)
        for name, lane, *when in way:
            begin, end = (one / 1000 for one in when)
            height = 0.7 / lanes
            place = row - 0.35 + (lane + 0.5) * height
            color = KINDS[kind_of(name)]
            ax.barh(place, end - begin, height, begin, color=color, edgecolor="white")
            if end - begin > 1.3e-5 * ends["serial"] * len(name):
                bright = kind_of(name) in ("feed-forward", "exchange")
                ink = INK if bright else "white"
                at: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 9}
                ax.text((begin + end) / 2, place, name, color=ink, **at)
    ax.set_yticks(range(len(ways)), [name.replace(", ", ",\n") for name in ways])
    ax.invert_yaxis()
    ax.set(xlabel="time, milliseconds", xlim=(0, 1.02e-3 * ends["serial"]))
    ax.grid(axis="y", visible=False)
    for name, color in KINDS.items():
        ax.barh(0, 0, color=color, label=name)
    legend_below(figure, ax)
    return figure


Init = Callable[[nn.Module, int, torch.Generator | None], object]


@torch.no_grad()
def stream_sizes(
    block_class: Callable[[PaLMConfig], nn.Module], init: Init, depth: int
) -> list[float]:
    """Root mean square of the residual stream before the first block and after each."""
    draw = torch.Generator().manual_seed(0)
    config = PaLMConfig(1, dim=32, depth=depth, heads=2, head_dim=16)
    x = torch.randn(4, 16, config.dim, generator=draw)
    rope = rotations(torch.arange(16)[None], config.head_dim)
    sizes = [x.square().mean().sqrt().item()]
    block = block_class(config)
    for _ in range(depth):
        init(block, depth, draw)  # other weights: another block
        x = block(x, rope)
        sizes.append(x.square().mean().sqrt().item())
    return sizes


def stream_by_depth(sizes: Mapping[str, Sequence[float]]) -> Figure:
    """The size of the stream after each block, for some ways to build a network.

    Args:
        sizes: name -> sizes, from `stream_sizes`. A curve ends where it is no number.
    """
    depth = max(len(one) for one in sizes.values()) - 1
    said = [
        f"{name} {one[-1]:.3g}" if math.isfinite(one[-1]) else f"{name} no number"
        for name, one in sizes.items()
    ]
    figure, [ax] = new_figure(
        f"The stream after {depth} blocks: {', '.join(said)}", height=3.6
    )
    colors = COLORS["chosen"], COLORS["unpenalised"], COLORS["proxy"], COLORS["gold"]
    for color, (name, one) in zip(colors, sizes.items()):
        finite = [size for size in one if math.isfinite(size)]
        ax.plot(range(len(finite)), finite, color=color, linewidth=2, label=name)
    ax.set(
        xlabel="blocks passed", ylabel="root mean square of the stream",
        yscale="log", ylim=(0.5, 100), xlim=(0, depth),
    )  # fmt: skip
    legend_below(figure, ax)
    return figure

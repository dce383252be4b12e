"""Figures of lesson 01: how a text is cut, what counts, how a labeller errs."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from jaxtyping import Bool
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from minipalm.plot.style import (
    COLORS,
    DASHED,
    INK,
    RULE,
    Figure,
    legend,
    new_figure,
    note,
)

SHADES = ("#cfe3f2", "#f6e3b4", "#cdeadf", "#f1d9e6")  # pale: letters stand on them
LINE = 60  # letters a line


def shown(piece: bytes) -> str:
    """A piece as it is written in a figure: spaces as dots, odd bytes as numbers."""
    try:
        return piece.decode().replace(" ", "·").replace("\n", "↵")
    except UnicodeDecodeError:
        return "".join(f"<{byte:02x}>" for byte in piece)


def lines_of(pieces: Sequence[str], width: int = LINE) -> list[list[tuple[int, int]]]:
    """For each line the pieces on it, as (number of the piece, column it begins in)."""
    lines: list[list[tuple[int, int]]] = [[]]
    at = 0
    for number, piece in enumerate(pieces):
        if lines[-1] and at + len(piece) > width:
            lines.append([])
            at = 0
        lines[-1].append((number, at))
        at += len(piece)
    return lines


def cut(pieces: Sequence[bytes], merges: int) -> Figure:
    """A text cut into pieces, each on a ground of its own; a dot is a space.

    Args:
        pieces: bytes of each piece; joined they are the text.
        merges: how many merges the tokenizer knows.
    """
    size = sum(map(len, pieces))
    texts = [shown(piece) for piece in pieces]
    lines = lines_of(texts)
    figure, [ax] = new_figure(
        f"With {merges} merges {size} bytes are {len(pieces)} pieces,"
        f" {size / len(pieces):.1f} bytes each",
        height=0.75 + 0.36 * max(2, len(lines)),
    )
    for y, line in enumerate(lines):
        for number, x in line:
            wide = len(texts[number])
            shade = SHADES[number % len(SHADES)]
            box = Rectangle((x + 0.04, y + 0.1), wide - 0.08, 0.8, facecolor=shade)
            ax.add_patch(box)
            ax.text(
                x + wide / 2,
                y + 0.5,
                texts[number],
                ha="center",
                va="center_baseline",
                family="monospace",
                fontsize=11,
                color=INK,
            )
    ax.set(xlim=(0, LINE), ylim=(max(2, len(lines)), 0))
    ax.set_axis_off()
    return figure


def pieces_a_word(counts: Mapping[int, float]) -> Figure:
    """How many pieces a word is cut into, against the number of merges.

    Args:
        counts: number of merges -> pieces a word, on average.
    """
    merges, pieces = list(counts), list(counts.values())
    half = (pieces[0] + pieces[-1]) / 2
    enough = next(k for k, n in counts.items() if n <= half)
    figure, [ax] = new_figure(
        f"A word is {pieces[0]:.1f} pieces without merges and {pieces[-1]:.1f} after"
        f" {merges[-1]}; half of the way is done by {enough}",
        height=3.0,
    )
    ax.plot(merges, pieces, "o-", color=COLORS["ppo"], linewidth=2, markersize=5)
    ax.axhline(1, **DASHED)
    note(ax, "a word is one piece", (0, 1), (6, -12), fontsize=9.5)
    ax.set(xlabel="merges", ylabel="pieces a word", ylim=(0, None), xlim=(0, None))
    return figure


def token_grid(
    words: Sequence[Sequence[str]],
    counted: Bool[Tensor, "N T"],
    divide: int | None = None,
    title: str | None = None,
) -> Figure:
    """Rows of tokens as a table; those that count on a coloured ground.

    Args:
        words: N rows of T tokens, as texts.
        counted: True where a token counts.
        divide: the column before which a line is drawn: answers begin there.
        title: by default how many of the places count.
    """
    N, T = counted.shape
    share = counted.double().mean().item()
    figure, [ax] = new_figure(
        title
        or f"{int(counted.sum())} of {N * T} places hold a token that counts"
        f" ({share:.0%})",
        height=0.8 + 0.34 * N,
    )
    for n in range(N):
        for t in range(T):
            counts = bool(counted[n, t])
            special = words[n][t].startswith("<")
            ground = COLORS["gold"] if special else COLORS["other"]
            box = Rectangle(
                (t + 0.03, n + 0.08),
                0.94,
                0.84,
                facecolor=ground if counts else "white",
                alpha=0.45 if counts else 1.0,
                edgecolor="none" if counts else RULE,
            )
            ax.add_patch(box)
            ax.text(
                t + 0.5,
                n + 0.5,
                words[n][t],
                ha="center",
                va="center",
                fontsize=min(9.5, 108 / T),
                color=INK if counts else COLORS["sft"],
            )
    if divide is not None:
        ax.axvline(divide, color=INK, linewidth=1.6)
        how = {"ha": "left", "fontsize": 9.5, "annotation_clip": False}
        note(ax, "answers begin", (divide, N), (4, -11), **how)
    ax.set(xlim=(0, T), ylim=(N, 0))
    ax.set_axis_off()
    return figure


def labeller(
    preference: Callable[..., float],
    bayes_accuracy: Callable[..., float],
    golds_a: Sequence[float],
    golds_b: Sequence[float],
    temperature: float,
) -> Figure:
    """How often the better of two answers wins, by how far it is ahead.

    Args:
        preference: (gold_a, gold_b, temperature) to the chance that a wins.
        bayes_accuracy: (golds_a, golds_b, temperature) to a share.
        golds_a, golds_b: of real pairs; bars show how far ahead the better ones are.
        temperature: of the labeller, points.
    """
    best = bayes_accuracy(golds_a, golds_b, temperature)
    figure, [ax] = new_figure(
        f"A labeller of temperature {temperature:g}: the better answer wins"
        f" {best:.0%} of these {len(golds_a)} pairs, and nobody can guess better"
    )
    leads = [abs(a - b) for a, b in zip(golds_a, golds_b)]
    edges = [step / 4 for step in range(21)]
    weights = [1 / len(leads)] * len(leads)
    ax.hist(
        [min(lead, 4.99) for lead in leads],
        edges,
        weights=weights,
        color=COLORS["gold"],
        alpha=0.5,
        rwidth=0.9,
        label="pairs, share",
    )
    chances = [preference(lead, 0.0, temperature) for lead in edges]
    ax.plot(edges, chances, color=COLORS["chosen"], linewidth=2.4, label="better wins")
    ax.axhline(0.5, **DASHED)
    note(ax, "a coin", (5, 0.5), (0, -12), ha="right", fontsize=9.5)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    ax.set(
        xlabel="lead of the better answer, points of gold (bar at the end: 5 and more)",
        ylabel="chance, share of pairs",
        xlim=(0, 5),
        ylim=(0, 1.03),
    )
    legend(ax, loc=(0.7, 0.2))
    return figure


def authors(golds: Mapping[str, Sequence[float]]) -> Figure:
    """How good the tales of several authors are.

    Args:
        golds: author -> gold rewards of tales, points.
    """
    means = {name: fmean(values) for name, values in golds.items()}
    said = ", ".join(f"{name} {mean:.1f}" for name, mean in means.items())
    figure, [ax] = new_figure(f"Mean gold of the authors' tales: {said}", height=2.8)
    colors = {"sloppy": COLORS["sft"], "careful": COLORS["chosen"]}
    edges = [step / 3 for step in range(31)]
    for index, (name, values) in enumerate(golds.items()):
        color = colors.get(name, list(COLORS.values())[index])
        weights = [100 / len(values)] * len(values)
        ax.hist(values, edges, weights=weights, color=color, alpha=0.6, label=name)
        ax.axvline(means[name], color=color, linewidth=2)
    ax.set(xlabel="gold reward, points of 10", ylabel="share of tales, %", xlim=(0, 10))
    legend(ax, loc="upper left")
    return figure

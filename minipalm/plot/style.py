"""What all figures share: one width, one type, one colour for one thing."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure as BaseFigure
from PIL import Image
from torch import Tensor

from minipalm.parallel import is_first

Row = Mapping[str, Any]  # a line of metrics.jsonl, or a policy in evaluation.json
Numbers = Sequence[float | int] | Tensor  # one-dimensional

# After Okabe and Ito: eyes of all kinds tell apart what stands in one figure (tested).
COLORS = {
    "sft": "#767676",
    "ppo": "#0072b2",
    "unpenalised": "#cc4c02",  # PPO with β = 0
    "gold": "#daa520",
    "proxy": "#8a5aab",  # the reward model
    "chosen": "#009e73",
    "rejected": "#cc79a7",
    "other": "#56b4e9",
}
INK = "#24292f"  # text
RULE = "#d0d7de"  # lines that only guide the eye
DASHED: dict[str, Any] = {"color": INK, "linewidth": 1, "linestyle": (0, (4, 3))}
WIDTH = 7.2  # inches


class Figure(BaseFigure):
    """A figure that a cell shows by ending with it.

    pyplot does not know it, so nothing has to be closed and nothing is shown twice.
    """

    def _repr_png_(self) -> tuple[bytes, dict[str, int]] | None:
        if not is_first():  # of torchrun's processes one shows pictures
            return None
        return self.png(), {"width": round(100 * WIDTH)}  # pixels on the page

    def png(self, dpi: int = 160) -> bytes:
        """The bytes of a PNG file, sharp on a fine screen, small in a notebook."""
        drawn, file = io.BytesIO(), io.BytesIO()
        self.savefig(drawn, format="png", dpi=dpi)
        few = Image.open(drawn).convert("RGB").quantize(48, dither=Image.Dither.NONE)
        few.save(file, "png", optimize=True)  # few colours: a third of the size
        return file.getvalue()

    def svg(self) -> str:
        """The text of an SVG file, the same for the same data; words stay words."""
        file = io.StringIO()
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": "minipalm"}):
            self.savefig(file, format="svg", metadata={"Date": None})
        return file.getvalue()


def new_figure(
    title: str, rows: int = 1, columns: int = 1, height: float = 3.4, **grid: Any
) -> tuple[Figure, list[Axes]]:
    """A figure and its axes in reading order. height: inches; grid: see `subplots`."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor="white")
    figure.suptitle(
        textwrap.fill(title, 68),
        x=0.012,
        ha="left",
        fontsize=12,
        weight="bold",
        color=INK,
    )
    axes = list(figure.subplots(rows, columns, squeeze=False, **grid).flat)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(RULE)
        ax.tick_params(colors=INK, labelsize=10, length=0)
        ax.grid(color=RULE, linewidth=0.6)
        ax.set_axisbelow(True)
        for label in (ax.xaxis.label, ax.yaxis.label):
            label.set(color=INK, fontsize=10.5)
    return figure, axes


def head(ax: Axes, text: str, fontsize: float = 11) -> None:
    """The name of one panel among several."""
    ax.set_title(text, loc="left", fontsize=fontsize, color=INK)


def legend(ax: Axes, **where: Any) -> None:
    """Names for what has a label."""
    ax.legend(frameon=False, fontsize=10, labelcolor=INK, **where)


def legend_below(figure: Figure, ax: Axes) -> None:
    """One row of names for all panels, those that `ax` has."""
    figure.legend(
        *ax.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=6,
        frameon=False,
        fontsize=10,
        labelcolor=INK,
    )


def note(
    ax: Axes, text: str, at: tuple[Any, Any], shift: tuple[int, int], **how: Any
) -> None:
    """Words beside a point. at: in the data's units; shift: in points from there."""
    how.setdefault("fontsize", 10)
    how.setdefault("color", INK)
    ax.annotate(text, at, xytext=shift, textcoords="offset points", **how)


PALETTE = ("ppo", "other", "chosen", "rejected", "proxy", "gold")
ALIASES = {"policy": "ppo", "reward model": "proxy", "reward_model": "proxy"}


def color_of(name: str, index: int = 0) -> str:
    """The colour of the thing of that name, or else the index-th of the palette."""
    name = ALIASES.get(name.lower(), name.lower())
    return COLORS[name if name in COLORS else PALETTE[index % len(PALETTE)]]


def beta_style(beta: str | float, index: int = 0) -> tuple[str, str]:
    """Colour and name of a PPO run: orange where nothing holds it near SFT."""
    if float(beta) == 0:
        return COLORS["unpenalised"], "β\u00a0=\u00a00 (no penalty)"
    return color_of("", index), f"β\u00a0=\u00a0{float(beta):g}"


def listed(x: Numbers) -> list[float]:
    return x.tolist() if isinstance(x, Tensor) else [float(one) for one in x]


def number(value: float, form: str = ".2f") -> str:
    """A number in a title: a minus, where a hyphen would be too short to be seen."""
    return format(value, form).replace("-", "−")


def thin(*series: list[float]) -> list[list[float]]:
    """At most 400 points of each series, evenly: more than that no eye can see."""
    return [values[:: len(values) // 400 + 1] for values in series]


def column(rows: Sequence[Row], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of the rows that have a value."""
    points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    return [step for step, _ in points], [value for _, value in points]

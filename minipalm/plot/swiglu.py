"""Gates: the curves that bend, one hidden unit on a plane, and layers compared."""

from collections.abc import Callable, Mapping, Sequence

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from minipalm.plot.style import INK, Figure, color_of, head, legend, new_figure

Curve = Callable[[Tensor], Tensor]


def color(name: str, index: int) -> str:
    """Blue for what this lesson builds, grey for the plain form, in every figure."""
    same = {"silu": "ppo", "swiglu": "ppo", "relu": "sft"}
    return color_of(same[name]) if name in same else color_of("", index)


# --- curves -------------------------------------------------------------------------


def slope(curve: Curve, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_(True)
    return torch.autograd.grad(curve(x).sum(), x)[0]


def activations(curves: Mapping[str, Curve]) -> Figure:
    """Functions that may bend a gate, and their slopes. The title is on the first."""
    x = torch.linspace(-5, 5, 401)
    name, first = next(iter(curves.items()))
    least = first(x).argmin()
    claim = (
        f"{name} falls to {first(x)[least]:.2f} at {x[least]:.1f}, and its slope rises "
        f"to {slope(first, x).max():.2f}"
    )
    figure, (left, right) = new_figure(claim.replace("-", "−"), columns=2)
    for index, (name, curve) in enumerate(curves.items()):
        ink = color(name, index)
        left.plot(x, curve(x), color=ink, label=name)
        right.plot(x, slope(curve, x), color=ink)
    left.set(xlabel="gate g", ylabel="what multiplies the value")
    right.set(xlabel="gate g", ylabel="slope")
    legend(left)
    return figure


# --- one unit -----------------------------------------------------------------------


def unit_outputs(
    swiglu: Callable, gate: Sequence[float], value: Sequence[float], points: int = 121
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """On a square of inputs: the gate, the value, a plain ReLU unit, the gated unit."""
    side = torch.linspace(-3, 3, points)
    second, first = torch.meshgrid(side, side, indexing="ij")  # rows go up
    g = gate[0] * first + gate[1] * second
    v = value[0] * first + value[1] * second
    return g, v, g.relu(), swiglu(g, v)


def share(where: Tensor) -> float:
    return float(where.float().mean())


def unit_surface(
    swiglu: Callable, gate: Sequence[float], value: Sequence[float]
) -> Figure:
    """What one hidden unit makes of two inputs: plain on the left, gated on the right.

    Args:
        swiglu: (gate, up) to the output, such as `minipalm.model.swiglu.swiglu`.
        gate, value: the unit's two weights each. The plain unit has the gate's.
    """
    g, v, plain, gated = unit_outputs(swiglu, gate, value)
    shares = [share(gated > 0.5), share(gated < -0.5)]
    figure, axes = new_figure(
        f"The gated unit is above 0.5 in {shares[0]:.0%} of the square, below −0.5 in "
        f"{shares[1]:.0%}, and near 0 elsewhere",
        columns=2,
        height=4.0,
        sharey=True,
    )
    for ax, name, output in (
        (axes[0], "plain: relu(gate)", plain),
        (axes[1], "gated: silu(gate) × value", gated),
    ):
        image = surface(ax, output)
        line(ax, g, "solid", "gate = 0")
        head(ax, name)
    line(axes[1], v, "dotted", "value = 0")
    axes[0].set_ylabel("input 2")
    bar = figure.colorbar(image, ax=axes, shrink=0.85, extend="both")
    bar.set_label("output of the unit", color=INK)
    bar.outline.set_visible(False)
    legend_of_lines(axes[1])
    return figure


def surface(ax: Axes, output: Tensor) -> AxesImage:
    ax.grid(False)
    ax.set(xlabel="input 1", aspect="equal", xlim=(-3, 3), ylim=(-3, 3))
    few = colormaps["RdBu_r"].resampled(13)  # steps show as contours
    return ax.imshow(
        output,
        cmap=few,
        vmin=-6.5,
        vmax=6.5,
        origin="lower",
        extent=(-3, 3, -3, 3),
    )


def line(ax: Axes, height: Tensor, style: str, label: str) -> None:
    """Where a linear function is 0, if it is not 0 everywhere."""
    if height.abs().max() > 0:
        side = torch.linspace(-3, 3, len(height))
        ax.contour(
            side, side, height, [0], colors=[INK], linestyles=[style], linewidths=[1.3]
        )
        ax.plot([], [], color=INK, linestyle=style, linewidth=1.3, label=label)


def legend_of_lines(ax: Axes) -> None:
    if ax.get_legend_handles_labels()[0]:
        box = ax.legend(loc="lower left", fontsize=9, labelcolor=INK, framealpha=0.85)
        box.get_frame().set_linewidth(0)


# --- layers compared ----------------------------------------------------------------

Losses = Mapping[str, Sequence[float]]  # of a layer, one a seed


def verdict(losses: Losses) -> str:
    """The layer whose worst seed beats all seeds of the others, if there is one."""
    for name, mine in losses.items():
        others = [
            one for other, many in losses.items() if other != name for one in many
        ]
        if max(mine) < min(others):
            return f"{name} ahead"
    return "too close to call"


def layer_losses(results: Mapping[str, Losses], units: Mapping[str, str]) -> Figure:
    """Held-out losses of layers of equal size: a dot a seed, a bar for their mean.

    Args:
        results: for each task, its layers' losses. A layer is called ahead where its
            worst seed is better than every seed of every other.
        units: of each task's loss.
    """
    verdicts = [f"{task}: {verdict(losses)}" for task, losses in results.items()]
    rows = len(next(iter(results.values())))
    figure, axes = new_figure(
        "; ".join(verdicts),
        columns=len(results),
        height=1.5 + 0.36 * rows,
        sharey=True,
    )
    for ax, (task, losses) in zip(axes, results.items()):
        for row, (name, some) in enumerate(losses.items()):
            mean, ink = sum(some) / len(some), color(name, row)
            ax.plot(some, [row] * len(some), "o", color=ink, alpha=0.6, markersize=6)
            ax.plot([mean, mean], [row - 0.3, row + 0.3], color=ink, linewidth=2.5)
        ax.set_yticks(range(rows), list(losses))
        ax.set_ylim(rows - 0.5, -0.5)
        ax.set_xlabel(units[task])
        ax.xaxis.set_major_locator(MaxNLocator(4))
        if (lowest := min(map(min, losses.values()))) < 0.5 * max(
            map(max, losses.values())
        ):
            ax.set_xlim(left=min(0.0, lowest))
        head(ax, task)
    return figure

"""The main result over several seeds: what a penalty keeps, and its absence loses."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from minipalm.evaluate.statistics import over_optimisation, smooth
from minipalm.plot.style import Figure, Row, beta_style, head, legend_below, new_figure


def over_optimisation_by_seed(
    runs: Sequence[Mapping[str, Sequence[Row]]],
) -> Figure:
    """Proxy and gold against KL, a line for each β of each seed.

    Args:
        runs: for each seed, β -> rows with "kl", "score" and "gold"; "0" among the β.
    """
    found = [over_optimisation(curves["0"]) for curves in runs]
    title = (
        f"Over {len(runs)} seeds: without a penalty gold peaks at "
        f"{fmean(one.peak_gold for one in found):.1f} and falls to "
        f"{fmean(one.end_gold for one in found):.1f}, while the proxy rises from "
        f"{fmean(one.proxy_at_peak for one in found):.1f} to "
        f"{fmean(one.proxy_at_end for one in found):.1f} sd"
    )
    figure, axes = new_figure(title, columns=2, height=3.6)
    for seed, curves in enumerate(runs):
        for index, (beta, rows) in enumerate(curves.items()):
            color, name = beta_style(beta, index)
            nats = [max(0.0, kl) ** 0.5 for kl in smooth([row["kl"] for row in rows])]
            for ax, key in zip(axes, ("score", "gold")):
                values = smooth([row[key] for row in rows])
                label = name if seed == 0 else None
                ax.plot(nats, values, color=color, linewidth=1.6, label=label)
                ax.plot(nats[-1], values[-1], "o", color=color, markersize=5)
    head(axes[0], "proxy: what the reward model says, sd")
    head(axes[1], "gold: what is true, points of 10")
    for ax in axes:
        ax.set(xlabel="√KL from SFT, √nats per answer")
    legend_below(figure, axes[0])
    return figure

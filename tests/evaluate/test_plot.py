"""Figures: their titles say what the data show, nothing is cut, files are small."""

import re
import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest
import torch
from fixture import make_evaluation
from IPython.core.formatters import DisplayFormatter
from matplotlib.text import Text

from minipalm import plot
from minipalm.evaluate.statistics import Interval, over_optimisation, reliability
from minipalm.evaluate.style import DARK
from minipalm.plot.style import COLORS

EVALUATION = make_evaluation()
SEEN = EVALUATION["prompts"]["seen"]


def rows(name):
    return [{"step": s, "loss": v} for s, v in EVALUATION["losses"][name]]


def noisy_rows(steps):
    noise = torch.randn(steps, generator=torch.Generator().manual_seed(steps))
    return [{"step": s, "loss": 2.0 + x} for s, x in enumerate(noise.tolist())]


def ppo_rows(beta):
    more = {
        "length": 14.2,
        "entropy": 1.3,
        "approx_kl": 0.01,
        "clip_fraction": 0.1,
        "explained_variance": 0.7,
    }
    return [row | more for row in EVALUATION["curves"][beta]]


def scores():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 400, generator=generator) + torch.tensor([[0.5], [0.0]])


def segments():
    padded = torch.zeros(12, 40, dtype=torch.long)
    packed = torch.zeros(5, 40, dtype=torch.long)
    for n in range(12):
        padded[n, : 12 + n % 3] = 1
    packed[:4] = torch.arange(40) // 14 + 1
    return padded, packed


FIGURES = {
    "loss_curves": lambda: plot.loss_curves(
        {"policy": rows("pretrain"), "trunk": rows("sft")}, levels={"log V": 4.97}
    ),
    "loss_curves of long runs": lambda: plot.loss_curves(
        {name: noisy_rows(5_000) for name in ("policy", "trunk")}
    ),
    "stage_curves": lambda: plot.stage_curves(EVALUATION["losses"]),
    "stage_curves without pretraining": lambda: plot.stage_curves(
        EVALUATION["losses"] | {"pretrain": []}
    ),
    "lengths_histogram": lambda: plot.lengths_histogram(
        {"demonstrations": [4, 8, 9, 9, 15, 30], "prompts": [7, 8, 8]}, limit=26
    ),
    "packing_picture": lambda: plot.packing_picture(*segments()),
    "next_token_bars": lambda: plot.next_token_bars(
        scores()[0], [f"word{n}" for n in range(400)], "write a sad story"
    ),
    "ppo_dashboard": lambda: plot.ppo_dashboard(ppo_rows("0.1")),
    "ppo_dashboard of two runs": lambda: plot.ppo_dashboard(
        {beta: ppo_rows(beta) for beta in ("0.1", "0.0")}
    ),
    "reward_histograms": lambda: plot.reward_histograms(*scores()),
    "reliability_diagram": lambda: plot.reliability_diagram(reliability(*scores())),
    "accuracy_scale": lambda: plot.accuracy_scale(0.65, 0.82, 0.51),
    "accuracy_scale without gold": lambda: plot.accuracy_scale(0.65, None, 0.51),
    "score_scale": lambda: plot.score_scale(scores()[1]),
    "over_optimisation": lambda: plot.over_optimisation(EVALUATION["curves"], 6.2),
    "gold_parts": lambda: plot.gold_parts(SEEN["sft"], SEEN["ppo"]),
    "gold_parts of three": lambda: plot.gold_parts(
        SEEN["sft"], SEEN["ppo"], SEEN["sft"]
    ),
    "win_rate_bar": lambda: plot.win_rate_bar(
        {
            "seen prompts": SEEN["win_rate"],
            "heldout prompts": Interval(0.7, 0.6, 0.8, 9),
        }
    ),
    "win_rate_bar without gold": lambda: plot.win_rate_bar({}),
}


@pytest.fixture(scope="module", params=FIGURES)
def figure(request):
    return FIGURES[request.param]()


def title(figure):
    return " ".join(figure.get_suptitle().split())


# --- what all of them share ---------------------------------------------------------


def test_files_are_small_and_of_one_width(figure):
    data, page = figure._repr_png_()
    assert data.startswith(b"\x89PNG") and len(data) < 60_000
    assert page == {"width": 720}
    assert len(figure.svg()) < 120_000


def test_no_word_is_cut(figure):
    figure.draw_without_rendering()
    width, height = figure.bbox.size
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip():
            box = text.get_window_extent()
            if text.get_clip_on() or box.x0 >= width or box.x1 <= 0:
                continue  # a tick outside the axis, which is not drawn
            assert -1 <= box.x0 and box.x1 <= width + 1, text.get_text()
            assert -1 <= box.y0 and box.y1 <= height + 1, text.get_text()


def test_axes_are_labelled_and_titles_are_claims(figure):
    assert len(title(figure)) > 20
    names = [
        (ax.get_xlabel(), ax.get_ylabel(), ax.get_title("left")) for ax in figure.axes
    ]
    assert all(any(name) for name in names)
    assert any(x for x, _, _ in names)


def test_a_cell_shows_it_without_pyplot(figure):
    data, _ = DisplayFormatter().format(figure)
    assert data["image/png"].startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "name", ["over_optimisation", "packing_picture", "score_scale"]
)
def test_the_same_data_give_the_same_bytes(name):
    assert FIGURES[name]().svg() == FIGURES[name]().svg()
    assert FIGURES[name]().png() == FIGURES[name]().png()


def test_words_stay_words_in_an_svg(figure):
    assert title(figure).split()[0] in figure.svg()


def test_pyplot_is_never_loaded():
    code = "import sys, minipalm.plot; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


SEEN_AS = {  # Machado, Oliveira and Fernandes 2009, severity 1
    "trichromat": np.eye(3),
    "protan": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deutan": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritan": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}


def lab(color):
    """CIE L*a*b* of a linear RGB colour."""
    matrix = [
        [0.4125, 0.3576, 0.1804],
        [0.2127, 0.7152, 0.0722],
        [0.0193, 0.1192, 0.9503],
    ]
    x, y, z = np.cbrt(np.clip(matrix @ color, 1e-4, None) / [0.9505, 1, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("palette", [COLORS, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("eye", SEEN_AS)
@pytest.mark.parametrize(
    "together",
    ["sft ppo unpenalised gold", "chosen rejected", "proxy gold sft", "ppo other"],
)
def test_colours_of_one_figure_differ_for_every_eye(palette, eye, together):
    seen = {}
    for name in together.split():
        values = np.array([int(palette[name][i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(
            values > 0.04, ((values + 0.055) / 1.055) ** 2.4, values / 12.9
        )
        seen[name] = lab(np.array(SEEN_AS[eye]) @ linear)
    for a, b in combinations(seen, 2):
        assert np.linalg.norm(seen[a] - seen[b]) > 15, (a, b)


# --- titles are computed ------------------------------------------------------------


def test_titles_hold_the_numbers_of_the_data():
    def claim(name):
        return title(FIGURES[name]())

    found = over_optimisation(EVALUATION["curves"]["0.0"])
    assert f"peaks at {found.peak_gold:.1f} and ends at {found.end_gold:.1f}" in claim(
        "over_optimisation"
    )
    assert claim("lengths_histogram").endswith("83.3% fit into 26")
    assert "12 texts into 5 rows instead of 12: 80% of the tokens count, not 32%" in (
        claim("packing_picture")
    )
    chosen, rejected = scores()
    share = (chosen > rejected).double().mean()
    assert f"{share:.0%} of 400 pairs" in claim("reward_histograms")
    assert "82% on seen prompts, 70% on heldout prompts" in claim("win_rate_bar")
    assert claim("accuracy_scale without gold").endswith("65% of the pairs")


def test_gold_parts_names_the_part_that_gave_most_and_adds_up():
    figure = plot.gold_parts(SEEN["sft"], SEEN["ppo"])
    assert "mood" in title(figure)
    bars = [p for p in figure.axes[0].patches if p.get_facecolor()[3] > 0]
    heights = [bar.get_height() for bar in bars]
    parts = [SEEN["sft"][p] for p in ("topic", "mood", "grammar", "fresh", "length")]
    assert heights[:5] == pytest.approx(
        [w * p for w, p in zip((2.5, 3.5, 2, 1, 1), parts)]
    )


def test_a_run_that_never_falls_is_not_said_to_fall():
    curve = [
        {"step": i, "kl": float(i), "score": 0.1 * i, "gold": 6.0 + i} for i in range(4)
    ]
    assert "falls" not in title(plot.over_optimisation({"0.1": curve}, 6.0))


def test_over_optimisation_without_gold_shows_the_proxy_alone():
    curves = {
        beta: [row | {"gold": None} for row in curve]
        for beta, curve in EVALUATION["curves"].items()
    }
    figure = plot.over_optimisation(curves)
    assert len(figure.axes) == 1
    assert re.search(r"proxy goes up to \d\.\d sd", title(figure))


def test_what_is_drawn_is_not_changed():
    chosen, rejected = scores()
    kept = chosen.clone()
    plot.reward_histograms(chosen, rejected)
    assert torch.equal(chosen, kept)

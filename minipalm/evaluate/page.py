"""The report as one HTML page: figures inside, no script, no network.

Figures are inline SVG. Their colours become CSS variables, so they follow the reader's
light or dark theme, and their words stay words, which can be searched and read aloud.
"""

import re
from html import escape
from typing import Any

from minipalm import plot
from minipalm.evaluate.report import (
    POLICIES,
    SPLITS,
    Evaluation,
    compared,
    headline,
    measured,
)
from minipalm.evaluate.style import CSS, VARIABLES, theme
from minipalm.plot.style import Figure


def page(evaluation: Evaluation, more: str = "", command: str = "") -> str:
    """The whole page.

    more: sections, such as the machine's in a batch run. command: that it was made by.
    """
    sections = [
        header(evaluation),
        section("The numbers", table(evaluation)),
        section("The proxy and the truth", *over_optimised(evaluation)),
        section("What became better", *improved(evaluation)),
        section("Read the answers", *map(sample_card, evaluation["samples"])),
        section("How it got there", *stages(evaluation)),
        more,
        section("How to read this", GLOSSARY),
        f"\n{footer(evaluation, command)}",
    ]
    name = f"minipalm, {evaluation['scale']}, seed {evaluation['seed']}"
    return document(name, "".join(sections))


def document(name: str, body: str) -> str:
    """A page with everything that it needs inside."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(name)}</title>
<style>
{theme()}{CSS}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def section(name: str, *parts: str) -> str:
    body = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{escape(name)}</h2>\n{body}\n</section>\n" if body else ""


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>" if text else ""


# --- head and foot ------------------------------------------------------------------


def header(evaluation: Evaluation) -> str:
    both = evaluation["prompts"]["heldout"]
    sft, ppo, won = both["sft"], both["ppo"], both["win_rate"]
    found = evaluation["reward_model"]
    tiles = []
    if won is not None:
        span = f"95% interval {won['low']:.0%} to {won['high']:.0%}"
        tiles.append((f"{won['rate']:.0%}", f"of PPO’s answers win, ties half; {span}"))
        if both["gain_sd"] is not None:
            tiles.append((f"{both['gain_sd']:+.1f} sd", "of SFT’s gold reward gained"))
    else:
        tiles.append(
            (f"{ppo['proxy'] - sft['proxy']:+.1f} sd", "of proxy reward gained")
        )
    limit = found.get("bayes")
    best = "" if limit is None else f"; {limit:.0%} is the limit"
    tiles += [
        (f"{ppo['kl']:.1f} nats", "per answer away from SFT"),
        (
            f"{found['accuracy']:.0%}",
            f"of pairs judged right by the reward model{best}",
        ),
    ]
    shown = "".join(f"<li><b>{n}</b> {escape(text)}</li>" for n, text in tiles)
    origin = (
        f"minipalm · scale {evaluation['scale']} · seed {evaluation['seed']}"
        f" · β = {evaluation['beta']:g}"
    )
    return f"""<header>
<p class="origin">{escape(origin)}</p>
<h1>{escape(headline(evaluation))}</h1>
<ul class="tiles">{shown}</ul>
</header>
"""


def course_run(scale: str, seed: int) -> str:
    """The command of a run that is none of ./course full, which notes its own."""
    return f"./course run --scale {scale} --seed {seed}"


def footer(evaluation: Evaluation, command: str) -> str:
    command = command or course_run(evaluation["scale"], evaluation["seed"])
    found = evaluation["reward_model"]
    sizes = ""
    if found.get("parameters") and found.get("policy_parameters"):
        sizes = (
            f" The policy has {found['policy_parameters']:,} parameters and the reward"
            f" model {found['parameters']:,}."
        )
    return f"""<footer>
<h2>How it was made</h2>
<p><code>{escape(command)}</code></p>
<p>Pretraining, fine-tuning (SFT), reward model, PPO and evaluation, each a notebook
whose executed copy lies beside this page.{sizes}</p>
</footer>"""


# --- the sections -------------------------------------------------------------------


def table(evaluation: Evaluation) -> str:
    """SFT against PPO on each split's prompts."""
    splits = [SPLITS.get(split, split) for split in evaluation["prompts"]]
    above = "".join(
        f'<th colspan="2" scope="colgroup">{escape(s)}</th>' for s in splits
    )
    below = '<th scope="col">SFT</th><th scope="col">PPO</th>' * len(splits)
    rows = []
    for name, values in measured(evaluation):
        part = ' class="part"' if name.startswith(" ") else ""
        cells = "".join(f"<td>{value}</td>" for value in values)
        head = f'<th scope="row">{escape(name.strip())}</th>'
        rows.append(f"<tr{part}>{head}{cells}</tr>")
    for name, values in compared(evaluation):
        cells = "".join(f'<td colspan="2">{value}</td>' for value in values)
        part = " part" if name.startswith(" ") else ""
        head = f'<th scope="row">{escape(name.strip())}</th>'
        rows.append(f'<tr class="both{part}">{head}{cells}</tr>')
    note = ""
    if not compared(evaluation):
        note = paragraph(
            "These prompts have no gold reward: the true quality of the answers is not"
            " known, and all that depends on it is left out."
        )
    return f"""<div class="wide"><table>
<thead><tr><td></td>{above}</tr><tr><td></td>{below}</tr></thead>
<tbody>{"".join(rows)}</tbody>
</table></div>
{note}"""


def over_optimised(evaluation: Evaluation) -> list[str]:
    """The figure to remember."""
    sft_gold = evaluation["prompts"]["seen"]["sft"]["gold"]
    figure = plot.over_optimisation(evaluation["curves"], sft_gold)
    caption = "Rightwards, the policy is further away from where it began."
    if sft_gold is not None:
        caption += (
            " PPO sees the left figure only. Dots are its iterations, lines their"
            " moving means; the golden line is at the peak of gold without a penalty."
        )
    return [picture(figure, "over", caption)]


def improved(evaluation: Evaluation) -> list[str]:
    """Win rates and the parts of gold; nothing without a gold reward."""
    prompts = evaluation["prompts"]
    rates = {SPLITS.get(s, s): both["win_rate"] for s, both in prompts.items()}
    if any(rate is None for rate in rates.values()):
        return []
    parts = plot.gold_parts(prompts["heldout"]["sft"], prompts["heldout"]["ppo"])
    return [
        picture(plot.win_rate_bar(rates), "wins", "Ties count half."),
        picture(
            parts,
            "parts",
            "On held-out prompts. The outline is the most there is to get.",
        ),
    ]


def stages(evaluation: Evaluation) -> list[str]:
    found = evaluation["reward_model"]
    scale = plot.accuracy_scale(
        found["accuracy"], found.get("bayes"), found["length_auc"]
    )
    curves = plot.stage_curves(evaluation["losses"])
    return [
        picture(curves, "stages", "Pale: each step. Strong: a moving mean."),
        picture(
            scale,
            "accuracy",
            "Held-out pairs; a coin has 50%. How sure the model says it is differs from"
            f" how often it is right by {found['ece']:.0%} on average.",
        ),
    ]


def sample_card(sample: dict[str, Any]) -> str:
    """A prompt with the policies' answers side by side."""
    cards = []
    for policy, name in POLICIES.items():
        if policy not in sample:
            continue
        gold = sample[policy]["gold"]
        score = "" if gold is None else f'<span class="gold">gold {gold:.1f}</span>'
        text = escape(sample[policy]["text"]) or "<i>says nothing</i>"
        cards.append(
            f'<div class="answer {policy}"><h4>{name} {score}</h4><p>{text}</p></div>'
        )
    split = SPLITS.get(sample["split"], sample["split"])
    return f"""<article>
<h3>{escape(sample["prompt"])} <small>{escape(split.removesuffix("s"))}</small></h3>
<div class="answers">{"".join(cards)}</div>
</article>"""


GLOSSARY = """<dl>
<dt>gold reward</dt><dd>The truth of this toy world, 0 to 10: a program that knows what
a good tale is. Topic, mood, grammar, freshness and length are its parts, each 0 to 1.
No training sees it; only noisy comparisons come from it.</dd>
<dt>proxy reward</dt><dd>What the reward model learnt from those comparisons. PPO climbs
it. Answers of SFT have mean 0 and standard deviation 1.</dd>
<dt>KL</dt><dd>How far the policy has moved from SFT, summed over an answer, in nats. β
is the price of a nat; with β = 0 moving is free.</dd>
<dt>win rate</dt><dd>On how many prompts PPO’s answer has more gold than SFT’s, those
with as much counted half; 50% is no difference. The interval (Wilson’s) is for the draw
of prompts and answers; another seed would train other networks.</dd>
<dt>held-out prompts</dt><dd>They ask for pairs of mood and subject that are in no
demonstration, no comparison and no prompt of PPO.</dd>
</dl>"""


# --- figures ------------------------------------------------------------------------


def picture(figure: Figure, name: str, caption: str) -> str:
    """A figure on the page. name: makes the ids inside it unique."""
    svg = figure.svg()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r"(url\(|href=\")#", rf"\1#{name}-", svg)
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var(--{variable})")
    said = escape(figure.get_suptitle().replace("\n", " "), quote=True)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{said}" ', 1)
    return f"""<figure>
<div class="wide">{svg}</div>
<figcaption>{escape(caption)}</figcaption>
</figure>"""

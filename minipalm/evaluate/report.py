"""What a run has shown: as a table for the terminal, and as a page.

Both are made from {out}/12_evaluation/evaluation.json alone. What it holds as null is
left out: there is no gold reward for a user's own prompts.
"""

import json
import shutil
import textwrap
from itertools import zip_longest
from pathlib import Path
from typing import Any

from minipalm.data.files import write_text
from minipalm.evaluate.statistics import gold_and_proxy

Evaluation = dict[str, Any]  # evaluation.json

SPLITS = {"seen": "seen prompts", "heldout": "held-out prompts"}
POLICIES = {"sft": "SFT", "ppo": "PPO", "unpenalised": "no penalty"}
MEASURES = {  # key of a row -> its name, and how its numbers are written
    "gold": ("gold reward, of 10", "{:.2f}"),
    "topic": ("  topic", "{:.2f}"),
    "mood": ("  mood", "{:.2f}"),
    "grammar": ("  grammar", "{:.2f}"),
    "fresh": ("  fresh", "{:.2f}"),
    "length": ("  length", "{:.2f}"),
    "proxy": ("proxy reward, sd", "{:z.2f}"),
    "kl": ("KL, nats per answer", "{:z.2f}"),
    "tokens": ("length, tokens", "{:.1f}"),
    "unfinished": ("without <eos>", "{:.1%}"),
}


def read_evaluation(out: Path) -> Evaluation:
    """The result of stage 12.

    Raises:
        FileNotFoundError: the stage has not run.
        ValueError: the file is broken.
    """
    path = Path(out) / "12_evaluation" / "evaluation.json"
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: there is no evaluation yet, so nothing to report. "
            "Make it by: ./course run"
        ) from None
    except ValueError as error:
        raise ValueError(
            f"{path}: expected a JSON object ({error}). "
            "Remove its folder and make it again by: ./course run"
        ) from None


def terminal_table(out: Path, width: int | None = None) -> str:
    """SFT against PPO in plain text, then answers side by side.

    width: of the lines; by default the terminal's, from 60 to 110.
    """
    if width is None:
        width = min(110, max(60, shutil.get_terminal_size().columns))
    evaluation = read_evaluation(out)
    blocks = [title(evaluation), "\n".join(numbers_table(evaluation))]
    for text in (reward_model_said(evaluation), collapse_said(evaluation)):
        if text:
            blocks.append(textwrap.fill(text, width))
    blocks += [side_by_side(sample, width) for sample in evaluation["samples"]]
    return "\n\n".join(blocks)


def write_report(out: Path) -> Path:
    """Write {out}/report.html, one file that needs nothing else; returns its path."""
    from minipalm.evaluate.page import page  # matplotlib: not for the table alone

    path = Path(out) / "report.html"
    write_text(path, page(read_evaluation(out)))
    return path


# --- sentences ----------------------------------------------------------------------


def title(evaluation: Evaluation) -> str:
    return (
        f"SFT against PPO (β = {evaluation['beta']:g}),"
        f" scale {evaluation['scale']}, seed {evaluation['seed']}"
    )


def headline(evaluation: Evaluation) -> str:
    """The result in one sentence."""
    both = evaluation["prompts"]["heldout"]
    sft, ppo, won = both["sft"], both["ppo"], both["win_rate"]
    if won is None:
        return (
            f"PPO takes the reward model's score from {sft['proxy']:.1f} to"
            f" {ppo['proxy']:.1f} standard deviations, {ppo['kl']:.1f} nats per answer"
            " away from SFT."
        )
    return (
        "On prompts held out from training, PPO’s answer beats SFT’s"
        f" {won['rate']:.0%} of the time (ties half), and the true reward goes from"
        f" {sft['gold']:.1f} to {ppo['gold']:.1f} of 10."
    )


def reward_model_said(evaluation: Evaluation) -> str:
    """How good the reward model is, and how good it could be."""
    found = evaluation["reward_model"]
    limit = (
        f"; as the labels are noisy, on average nobody is right in more than"
        f" {found['bayes']:.1%}"
        if found.get("bayes") is not None
        else ""
    )
    return (
        f"The reward model is right in {found['accuracy']:.1%} of held-out pairs"
        f"{limit}. Length alone: {found['length_auc']:.1%}."
    )


def collapse_said(evaluation: Evaluation) -> str:
    """What happened without a penalty; empty where that is not known."""
    found = evaluation["over_optimisation"]
    if found is None:
        return ""
    keys = ("peak_gold", "end_gold", "proxy_at_peak", "proxy_at_end")
    said = gold_and_proxy(*(found[key] for key in keys))
    return f"Without a penalty (β = 0) {said}."


# --- tables -------------------------------------------------------------------------


def measured(evaluation: Evaluation) -> list[tuple[str, list[str]]]:
    """Name of each measure, and its numbers: SFT and PPO on each split's prompts."""
    rows = []
    for key, (name, form) in MEASURES.items():
        values = [
            both[policy][key]
            for both in evaluation["prompts"].values()
            for policy in ("sft", "ppo")
        ]
        if all(value is not None for value in values):
            rows.append((name, [form.format(value) for value in values]))
    return rows


def signed(gain: float | None) -> str:
    """`+1.17`; none is told where all of SFT's answers have the same gold reward."""
    return "none" if gain is None else f"{gain:+.2f}"


def compared(evaluation: Evaluation) -> list[tuple[str, list[str]]]:
    """Name and numbers of what compares the two: one number for each split."""
    splits = evaluation["prompts"].values()
    if any(both["win_rate"] is None for both in splits):
        return []
    gains = [signed(both["gain_sd"]) for both in splits]
    wins = ["{rate:.1%}".format(**both["win_rate"]) for both in splits]
    spans = ["{low:.1%} to {high:.1%}".format(**both["win_rate"]) for both in splits]
    return [
        ("gain in gold, SFT sd", gains),
        ("PPO wins, ties half", wins),
        ("  95% interval", spans),
    ]


def numbers_table(evaluation: Evaluation) -> list[str]:
    """The lines of the table; 77 characters wide."""
    splits = [SPLITS.get(split, split) for split in evaluation["prompts"]]
    wide, one, two = "{:23}" + "  {:>25}" * len(splits), "{:>15}", "{:>10}"
    lines = [wide.format("", *splits)]
    heads = [one.format("SFT") + two.format("PPO")] * len(splits)
    lines.append(wide.format("", *heads))
    lines.append("-" * len(lines[0]))
    for name, values in measured(evaluation):
        pairs = zip(values[::2], values[1::2])
        cells = [one.format(sft) + two.format(ppo) for sft, ppo in pairs]
        lines.append(wide.format(name, *cells))
    lines += [wide.format(name, *cells) for name, cells in compared(evaluation)]
    if not compared(evaluation):
        lines.append("These prompts have no gold reward, so nobody can say who wins.")
    return lines


def side_by_side(sample: dict[str, Any], width: int) -> str:
    """A prompt, and below it SFT's answer beside PPO's."""
    column = (width - 5) // 2
    cells = []
    for policy in ("sft", "ppo"):
        answer = sample[policy]
        gold = "" if answer["gold"] is None else f", gold {answer['gold']:.1f}"
        text = answer["text"] or "(says nothing)"
        cells.append([POLICIES[policy] + gold, *textwrap.wrap(text, column)])
    split = SPLITS.get(sample["split"], sample["split"]).removesuffix(" prompts")
    lines = textwrap.wrap(f"{sample['prompt']}  ({split})", width)
    for left, right in zip_longest(*cells, fillvalue=""):
        lines.append(f"  {left:{column}} | {right}".rstrip(" "))
    return "\n".join(lines)

"""What the seeds have shown: the README's table, its picture, and the bars."""

import re
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from minipalm.course.inputs import STAGES
from minipalm.data.files import write_text

BEGIN = "<!-- results: written by ./course seeds -->"
END = "<!-- end of results -->"

Numbers = dict[str, list[float]]  # name -> one value a seed


def numbers_of(results: dict[str, Any]) -> Numbers:
    """The collected numbers by name, such as prompts.seen.ppo.gold."""
    return {name: row["values"] for name, row in results["numbers"].items()}


def spread(values: list[float], digits: int = 2, factor: float = 1.0) -> str:
    """Mean ± standard deviation over seeds."""
    mean = factor * fmean(values)
    sd = factor * stdev(values) if len(values) > 1 else 0.0
    return f"{mean:.{digits}f} ± {sd:.{digits}f}"


def bars(results: dict[str, Any]) -> list[tuple[str, bool, str]]:
    """What the toy pipeline must show: the bar, whether it is met, what was found."""
    n = numbers_of(results)
    both = ("seen", "heldout")
    gain = [n[f"prompts.{split}.gain_sd"] for split in both]
    win = [n[f"prompts.{split}.win_rate.rate"] for split in both]
    kl = [n[f"prompts.{split}.ppo.kl"] for split in both]
    endless = [n[f"prompts.{split}.ppo.unfinished"] for split in both]
    accuracy, bayes = n["reward_model.accuracy"], n["reward_model.bayes"]
    share = [
        mine / policy
        for mine, policy in zip(
            n["reward_model.parameters"], n["reward_model.policy_parameters"]
        )
    ]
    fall = n["over_optimisation.fall"]
    proxy = [
        end - peak
        for peak, end in zip(
            n["over_optimisation.proxy_at_peak"], n["over_optimisation.proxy_at_end"]
        )
    ]
    cpu = n["cpu_seconds.all"]
    stages = [value for stage in STAGES for value in n[f"cpu_seconds.{stage}"]]
    return [
        _bar(
            "reward model accuracy >= 0.60 on every seed",
            min(accuracy) >= 0.6,
            accuracy,
        ),
        _bar(
            "and at most the Bayes accuracy + 0.03",
            all(a <= b + 0.03 for a, b in zip(accuracy, bayes)),
            bayes,
        ),
        _bar("its parameters <= half of the policy's", max(share) <= 0.5, share),
        _bar("gain in gold >= 0.8 SFT-sd, seen, mean", fmean(gain[0]) >= 0.8, gain[0]),
        _bar("the same, held out", fmean(gain[1]) >= 0.8, gain[1]),
        _bar(
            "and >= 0.5 on every seed", min(gain[0] + gain[1]) >= 0.5, gain[0] + gain[1]
        ),
        _bar("win rate >= 0.72, seen, mean", fmean(win[0]) >= 0.72, win[0]),
        _bar("the same, held out", fmean(win[1]) >= 0.72, win[1]),
        _bar(
            "KL from 1 to 10 nats",
            all(1 <= v <= 10 for k in kl for v in k),
            kl[0] + kl[1],
        ),
        _bar(
            "without <eos> <= 3 %",
            max(map(max, endless)) <= 0.03,
            endless[0] + endless[1],
        ),
        _bar("β = 0: gold falls by >= 1.0 on every seed", min(fall) >= 1.0, fall),
        _bar("while the proxy still rises", min(proxy) > 0, proxy),
        _bar("CPU-seconds of all stages <= 240", max(cpu) <= 240, cpu),
        _bar("and of each stage <= 75", max(stages) <= 75, stages),
    ]


def _bar(text: str, met: bool, values: list[float]) -> tuple[str, bool, str]:
    return text, met, f"{fmean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def readme_table(results: dict[str, Any]) -> str:
    """The README's table, as Markdown."""
    n = numbers_of(results)
    rows = [
        ("gold reward, 0 to 10", "gold", 2, 1.0),
        ("proxy reward, sd of SFT answers", "proxy", 2, 1.0),
        ("KL from SFT, nats per answer", "kl", 1, 1.0),
        ("length, tokens", "tokens", 1, 1.0),
        ("answers without an end, %", "unfinished", 1, 100.0),
    ]
    lines = [
        f"Mean ± sd over {len(results['seeds'])} seeds that change data, initial "
        "weights and samples. Held-out prompts ask",
        "for pairs of mood and subject that no training stage has asked for.",
        "",
        "| | SFT, seen | PPO, seen | SFT, held out | PPO, held out |",
        "|---|---|---|---|---|",
    ]
    for title, key, digits, factor in rows:
        cells = [
            spread(n[f"prompts.{split}.{who}.{key}"], digits, factor)
            for split in ("seen", "heldout")
            for who in ("sft", "ppo")
        ]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    wins = [
        spread(n[f"prompts.{s}.win_rate.rate"], 1, 100) for s in ("seen", "heldout")
    ]
    gains = [spread(n[f"prompts.{s}.gain_sd"]) for s in ("seen", "heldout")]
    lines += [
        f"| win rate over SFT, % | | {wins[0]} | | {wins[1]} |",
        f"| gain in gold, sd of SFT answers | | {gains[0]} | | {gains[1]} |",
        "",
        f"The reward model is right in {spread(n['reward_model.accuracy'], 1, 100)} % "
        "of held-out pairs; one who knew the gold",
        f"reward would be in {spread(n['reward_model.bayes'], 1, 100)} %. All stages "
        f"take {spread(n['cpu_seconds.all'], 0)} CPU-seconds on one",
        "thread of the machine that made this table.",
    ]
    return "\n".join(lines)


def update_readme(readme: Path, results: dict[str, Any]) -> None:
    """Put the table between the README's two marks."""
    text = readme.read_text("utf-8")
    between = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    table = f"{BEGIN}\n{readme_table(results)}\n{END}"
    write_text(readme, between.sub(lambda _: table, text))

"""Answers to the same prompts, before and after: read a policy as it improves."""

import html
from collections.abc import Sequence

from minipalm.data.gold import MOOD_OF
from minipalm.data.lexicon import MOODS, SUBJECTS
from minipalm.plot.style import COLORS, INK, RULE

CELL = f"padding:3px 14px 3px 0;vertical-align:top;border-top:1px solid {RULE}"


def marked(prompt: str, text: str) -> str:
    """An answer as HTML: words of the mood asked for and the subject stand out.

    Words of another mood are struck out. A prompt that asks for neither leaves its
    answer as it is.
    """
    asked = prompt.split()
    mood = next((word for word in asked if word in MOODS), "")
    subject = next((word for word in asked if word in SUBJECTS), "")
    words = []
    for word in text.split():
        shown = html.escape(word)
        found = MOOD_OF.get(word, "")
        if subject and word == subject:
            shown = f"<b>{shown}</b>"
        elif mood and found == mood:
            shown = f'<b style="color:{COLORS["chosen"]}">{shown}</b>'
        elif mood and found:
            shown = f'<s style="color:{COLORS["rejected"]}">{shown}</s>'
        words.append(shown)
    return " ".join(words)


def story(
    prompts: Sequence[str],
    columns: Sequence[tuple[str, Sequence[str], Sequence[float]]],
    unit: str = "reward",
) -> str:
    """A table of answers, a column a policy, with the mean of their rewards beneath.

    Args:
        prompts: the same for all.
        columns: (name, answers, rewards) of each policy.
        unit: what the rewards are.
    """
    rows = [_row(["", *(name for name, _, _ in columns)], "th")]
    for n, prompt in enumerate(prompts):
        cells = [
            f"{marked(prompt, texts[n])} {_small(f'{rewards[n]:.1f}')}"
            for _, texts, rewards in columns
        ]
        rows.append(_row([_small(html.escape(prompt)), *cells]))
    means = [sum(rewards) / len(rewards) for _, _, rewards in columns]
    rows.append(_row([f"mean {unit}", *(f"<b>{mean:.2f}</b>" for mean in means)]))
    style = f"border-collapse:collapse;color:{INK};font-size:13px;text-align:left"
    return f'<table style="{style}">{"".join(rows)}</table>'


def _row(cells: Sequence[str], tag: str = "td") -> str:
    begin = f'<{tag} style="{CELL};text-align:left">'
    return "<tr>" + "".join(f"{begin}{cell}</{tag}>" for cell in cells) + "</tr>"


def _small(text: str) -> str:
    return f'<span style="color:{COLORS["sft"]};font-size:11px">{text}</span>'

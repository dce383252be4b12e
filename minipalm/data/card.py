"""The card of the TinyTales files: what they are, with numbers counted from them."""

from collections.abc import Mapping, Sequence
from math import fsum, sqrt
from random import Random

from minipalm.data.gold import GoldParts, bayes_accuracy, gold_parts, gold_reward
from minipalm.data.lexicon import (
    HELD_OUT_PAIRS,
    MOODS,
    SUBJECTS,
    TRAINING_PAIRS,
    VOCABULARY,
    prompts_about,
)
from minipalm.data.tinytales import CAREFUL, MAX_WORDS, pick, tell

Records = Mapping[str, Sequence[Mapping[str, str]]]
TITLE = "# TinyTales"

ABOUT = {
    "text.jsonl": "pretraining: raw tales, 70 % headed `about the fox :`",
    "demonstrations.jsonl": "fine-tuning: prompts answered by the sloppy author",
    "preferences.jsonl": "the reward model: the better of two drafts comes first,"
    " as a noisy labeller sees it",
    "prompts.jsonl": "PPO: every prompt about a training pair",
    "prompts_heldout.jsonl": "evaluation: every prompt about a held-out pair",
}


def card(seed: int, records: Records, files: Mapping[str, str]) -> str:
    """The card in Markdown, from the records of each file and its text."""
    held_out = ", ".join(f"{mood} {subject}" for mood, subject in HELD_OUT_PAIRS)
    judged = [
        gold_parts(row["prompt"], row["response"])
        for row in records["demonstrations.jsonl"]
    ]
    lengths = [len(row["response"].split()) for row in records["demonstrations.jsonl"]]
    return f"""{TITLE}

Tiny tales in a world of {len(VOCABULARY)} words, for learning RLHF on a laptop:
a prompt asks for a mood ({", ".join(MOODS)}) and one of {len(SUBJECTS)} subjects,
a tale answers it, and a program, the gold reward, knows how good the answer is.
Everything is generated; no person and no model wrote any of it.

> {records["demonstrations.jsonl"][0]["prompt"]}
> *{records["demonstrations.jsonl"][0]["response"]}*

Made by `python -m minipalm.data.make --seed {seed} --out data`, which gives the same
bytes on every machine; this card is made by it too, so do not edit it here.
Licence: CC BY 4.0.

## Files

JSON lines in UTF-8. Every field is a string of lower-case words with single spaces.

| file | records | bytes | fields | for |
|---|---|---|---|---|
{_file_rows(records, files)}

A tale has at most {MAX_WORDS} words, so with `<eos>` at most {MAX_WORDS + 1} tokens;
longer ones were thrown away, none was cut. Demonstrations have
{_mean(lengths):.1f} words on average, counting full stops.

## Held out

{held_out}:
each mood twice, six different subjects. No tale of the first three files was asked
for by such a pair, and where the sloppy author takes a wrong subject it never lands
on one. So training, the raw tales included, never sets out to tell of a sad fox: it
tells of happy and scary foxes, and of other sad animals. What remains is chance: a
stray sad word in a happy tale about a fox.

## How good the tales are

The gold reward runs from 0 to 10. Its parts run from 0 to 1 and weigh 2.5, 3.5, 2, 1
and 1. The careful author wrote as many tales for this table only.

| author | gold | sd | topic | mood | grammar | fresh | length |
|---|---|---|---|---|---|---|---|
| sloppy (demonstrations) | {_gold_row(judged)} |
| careful | {_gold_row(_careful(seed, len(judged)))} |

{_preference_line(records)}
"""


def _file_rows(records: Records, files: Mapping[str, str]) -> str:
    return "\n".join(
        f"| `{name}` | {len(rows):,} | {len(files[name].encode()):,} |"
        f" {', '.join(f'`{field}`' for field in rows[0])} | {ABOUT[name]} |"
        for name, rows in records.items()
    )


def _careful(seed: int, number: int) -> list[GoldParts]:
    rng = Random(f"careful {seed}")
    prompts = list(prompts_about(TRAINING_PAIRS).items())
    drawn = [pick(rng, prompts) for _ in range(number)]
    return [gold_parts(prompt, tell(CAREFUL, *pair, rng)) for prompt, pair in drawn]


def _gold_row(judged: Sequence[GoldParts]) -> str:
    """Mean and standard deviation of the gold, then the means of its five parts."""
    gold = _mean([parts.total for parts in judged])
    sd = sqrt(_mean([(parts.total - gold) ** 2 for parts in judged]))
    means = [
        _mean([getattr(parts, part) for parts in judged])
        for part in ("topic", "mood", "grammar", "fresh", "length")
    ]
    return " | ".join(f"{number:.2f}" for number in (gold, sd, *means))


def _mean(numbers: Sequence[float]) -> float:
    return fsum(numbers) / len(numbers)


def _preference_line(records: Records) -> str:
    pairs = records["preferences.jsonl"]
    chosen = [gold_reward(row["prompt"], row["chosen"]) for row in pairs]
    rejected = [gold_reward(row["prompt"], row["rejected"]) for row in pairs]
    better = sum(c > r for c, r in zip(chosen, rejected, strict=True))
    equal = sum(c == r for c, r in zip(chosen, rejected, strict=True))
    return (
        f"Of the {len(pairs):,} preferences the chosen tale has the higher gold in"
        f" {better:,}, the same\nin {equal:,}, the lower in"
        f" {len(pairs) - better - equal:,}: the labeller errs as people do. One who"
        f" knew the gold\nwould guess {bayes_accuracy(chosen, rejected):.1%} of the"
        " labels of fresh pairs; on average no reward model does better."
    )

"""Make the TinyTales files: `python -m minipalm.data.make --seed 0 --out data`.

The same seed gives the same bytes on every machine and Python: each file has its
own stream of random numbers, drawn with `random.random` alone. With other counts,
`--texts 10000000`, the files are longer, and begin as the shorter ones do; they are
written as they are made, so there may be any number of records.
"""

import argparse
import json
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from random import Random

from tqdm import tqdm

from minipalm.data.card import TITLE, card
from minipalm.data.files import write_text
from minipalm.data.gold import gold_reward, label_pair
from minipalm.data.lexicon import (
    HELD_OUT_PAIRS,
    TRAINING_PAIRS,
    prompts_about,
)
from minipalm.data.tinytales import SLOPPY, pick, tell

TEXTS = 10_000  # tales for pretraining; each file stays under 1 MB
DEMONSTRATIONS = 6_000
PREFERENCES = 2_000
COUNTS = TEXTS, DEMONSTRATIONS, PREFERENCES

Record = dict[str, str]


def raw_texts(rng: Random) -> Iterator[Record]:
    """Tales as a web page might hold them; 70 % say first what they are about."""
    while True:
        mood, subject = pick(rng, TRAINING_PAIRS)
        head = f"about the {subject} : " if rng.random() < 0.7 else ""
        yield {"text": head + tell(SLOPPY, mood, subject, rng)}


def demonstrations(rng: Random) -> Iterator[Record]:
    """Prompts answered by the sloppy author."""
    prompts = list(prompts_about(TRAINING_PAIRS).items())
    while True:
        prompt, pair = pick(rng, prompts)
        yield {"prompt": prompt, "response": tell(SLOPPY, *pair, rng)}


def preferences(rng: Random) -> Iterator[Record]:
    """Two different drafts by the sloppy author, in the order of a noisy labeller."""
    prompts = list(prompts_about(TRAINING_PAIRS).items())
    while True:
        prompt, pair = pick(rng, prompts)
        chosen, rejected = tell(SLOPPY, *pair, rng), tell(SLOPPY, *pair, rng)
        if chosen == rejected:
            continue
        golds = gold_reward(prompt, chosen), gold_reward(prompt, rejected)
        if not label_pair(*golds, rng):
            chosen, rejected = rejected, chosen
        yield {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def streams(seed: int, counts: tuple[int, int, int]) -> dict[str, Iterable[Record]]:
    """File name -> its records, made when they are asked for."""
    made = {
        "text.jsonl": raw_texts(Random(f"text {seed}")),
        "demonstrations.jsonl": demonstrations(Random(f"demonstrations {seed}")),
        "preferences.jsonl": preferences(Random(f"preferences {seed}")),
    }
    counted = {n: islice(rows, k) for (n, rows), k in zip(made.items(), counts)}
    return counted | {
        "prompts.jsonl": [{"prompt": p} for p in prompts_about(TRAINING_PAIRS)],
        "prompts_heldout.jsonl": [{"prompt": p} for p in prompts_about(HELD_OUT_PAIRS)],
    }


def make_records(seed: int) -> dict[str, list[Record]]:
    """File name -> its records."""
    return {name: list(rows) for name, rows in streams(seed, COUNTS).items()}


def make_files(seed: int) -> dict[str, str]:
    """File name -> its whole text, the card included."""
    records = make_records(seed)
    files = {
        name: "".join(json.dumps(record) + "\n" for record in rows)
        for name, rows in records.items()
    }
    return files | {"README.md": card(seed, records, files)}


def write_many(out: Path, seed: int, counts: tuple[int, int, int]) -> None:
    """Each file is there in full or not at all; the card last, and short."""
    out.mkdir(parents=True, exist_ok=True)
    numbers = dict(
        zip(("text.jsonl", "demonstrations.jsonl", "preferences.jsonl"), counts)
    )
    for name, records in streams(seed, counts).items():
        partial = out / f".{name}.tmp"
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            for row in tqdm(records, desc=name, total=numbers.get(name), unit="row"):
                file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, out / name)
    texts, demos, prefs = counts
    write_text(
        out / "README.md",
        f"{TITLE}\n\nMade by `python -m minipalm.data.make --seed {seed}"
        f" --texts {texts} --demonstrations {demos} --preferences {prefs}`."
        " Licence: CC BY 4.0.\n",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the TinyTales files.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("data"), help="a folder")
    parser.add_argument("--texts", type=int, default=TEXTS, help="raw tales")
    parser.add_argument("--demonstrations", type=int, default=DEMONSTRATIONS)
    parser.add_argument("--preferences", type=int, default=PREFERENCES)
    arguments = parser.parse_args()
    counts = arguments.texts, arguments.demonstrations, arguments.preferences
    out = arguments.out
    if min(counts) < 1:
        parser.error(f"expected counts of at least 1, got {min(counts)}")
    card_there = out / "README.md"
    ours = card_there.is_file() and card_there.read_text("utf-8").startswith(TITLE)
    there = [name for name in streams(0, COUNTS) if (out / name).exists()]
    if there and not ours:
        parser.error(
            f"{out} holds {there[0]}, which this command did not make and "
            "would overwrite; choose another --out"
        )
    if counts != COUNTS:
        write_many(out, arguments.seed, counts)
        return
    for name, text in make_files(arguments.seed).items():
        write_text(out / name, text)
        print(f"{out / name}: {len(text.encode()):,} bytes")


if __name__ == "__main__":
    main()

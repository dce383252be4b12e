"""Make the TinyTales files: `python -m minipalm.data.make --seed 0 --out data`.

The same seed gives the same bytes on every machine and Python: each file has its
own stream of random numbers, drawn with `random.random` alone.
"""

import argparse
import json
from pathlib import Path
from random import Random

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

Record = dict[str, str]


def raw_texts(rng: Random, number: int) -> list[Record]:
    """Tales as a web page might hold them; 70 % say first what they are about."""
    records = []
    for _ in range(number):
        mood, subject = pick(rng, TRAINING_PAIRS)
        head = f"about the {subject} : " if rng.random() < 0.7 else ""
        records.append({"text": head + tell(SLOPPY, mood, subject, rng)})
    return records


def demonstrations(rng: Random, number: int) -> list[Record]:
    """Prompts answered by the sloppy author."""
    prompts = list(prompts_about(TRAINING_PAIRS).items())
    records = []
    for _ in range(number):
        prompt, pair = pick(rng, prompts)
        records.append({"prompt": prompt, "response": tell(SLOPPY, *pair, rng)})
    return records


def preferences(rng: Random, number: int) -> list[Record]:
    """Two different drafts by the sloppy author, in the order of a noisy labeller."""
    prompts = list(prompts_about(TRAINING_PAIRS).items())
    records: list[Record] = []
    while len(records) < number:
        prompt, pair = pick(rng, prompts)
        chosen, rejected = tell(SLOPPY, *pair, rng), tell(SLOPPY, *pair, rng)
        if chosen == rejected:
            continue
        golds = gold_reward(prompt, chosen), gold_reward(prompt, rejected)
        if not label_pair(*golds, rng):
            chosen, rejected = rejected, chosen
        records.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return records


def make_records(seed: int) -> dict[str, list[Record]]:
    """File name -> its records."""
    return {
        "text.jsonl": raw_texts(Random(f"text {seed}"), TEXTS),
        "demonstrations.jsonl": demonstrations(
            Random(f"demonstrations {seed}"), DEMONSTRATIONS
        ),
        "preferences.jsonl": preferences(Random(f"preferences {seed}"), PREFERENCES),
        "prompts.jsonl": [{"prompt": p} for p in prompts_about(TRAINING_PAIRS)],
        "prompts_heldout.jsonl": [{"prompt": p} for p in prompts_about(HELD_OUT_PAIRS)],
    }


def make_files(seed: int) -> dict[str, str]:
    """File name -> its whole text, the card included."""
    records = make_records(seed)
    files = {
        name: "".join(json.dumps(record) + "\n" for record in rows)
        for name, rows in records.items()
    }
    return files | {"README.md": card(seed, records, files)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the TinyTales files.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("data"), help="a folder")
    arguments = parser.parse_args()
    files = make_files(arguments.seed)
    card_there = arguments.out / "README.md"
    ours = card_there.is_file() and card_there.read_text("utf-8").startswith(TITLE)
    there = [name for name in files if (arguments.out / name).exists()]
    if there and not ours:
        parser.error(
            f"{arguments.out} holds {there[0]}, which this command did not make and "
            "would overwrite; choose another --out"
        )
    for name, text in files.items():
        write_text(arguments.out / name, text)
        print(f"{arguments.out / name}: {len(text.encode()):,} bytes")


if __name__ == "__main__":
    main()

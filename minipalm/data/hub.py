"""Public data sets as our files: `python -m minipalm.data.hub ultrafeedback data/uf`.

Records come one by one over the network, are mapped as `hub_sets` says, and nothing is
kept but the files written. A file is there in full or not at all.
"""

import argparse
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

from minipalm.data.fields import DataError, short
from minipalm.data.hub_sets import SETS, Ours, Record, Source


def write_file(
    path: Path,
    source: Source,
    records: Iterable[Record],
    limit: int | None = None,
    longest: tuple[int, int] | None = None,
) -> tuple[int, int]:
    """Our records as JSON lines; the file is there in full or not at all.

    Args:
        path: of the file.
        source: how records are mapped.
        records: of the data set.
        limit: records to write at most.
        longest: words of a prompt and of an answer, at most.

    Returns:
        how many records were written, and how many left out.

    Raises:
        DataError: a record has other fields than the set had when this was written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.tmp")
    written = left_out = 0
    with partial.open("w", encoding="utf-8", newline="\n") as file:
        for row in tqdm(our_rows(source, records), desc=path.name, unit="row"):
            if row is None or longest and is_longer(row, *longest):
                left_out += 1
                continue
            file.write(json.dumps(row) + "\n")
            written += 1
            if written == limit:
                break
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    return written, left_out


def our_rows(source: Source, records: Iterable[Record]) -> Iterator[Ours | None]:
    seen: set[bytes] = set()
    for number, record in enumerate(records):
        try:
            row = source.ours(record)
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise DataError(
                f"{source.path}, {source.split}, record {number}: expected the fields"
                f" that its card names, got {short(list(record))}"
                f" ({type(error).__name__}: {short(error)}); mend its function in"
                " minipalm/data/hub_sets.py"
            ) from None
        if row and source.once:
            digest = hashlib.blake2b(json.dumps(row).encode(), digest_size=12).digest()
            if digest in seen:
                continue
            seen.add(digest)
        yield row


def is_longer(row: Ours, prompt: int, answer: int) -> bool:
    """Whether a text has more words; a raw text may be of any length."""
    limits = {"prompt": prompt, "text": None}
    return any(
        (most := limits.get(name, answer)) is not None and len(text.split()) > most
        for name, text in row.items()
    )


def from_hub(source: Source) -> Iterable[Record]:
    """The records of a data set as they come over the network."""
    from datasets import load_dataset

    records: Iterable[Record] = load_dataset(
        source.path,
        source.config,
        split=source.split,
        revision=source.revision,
        streaming=True,
    )
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a public data set's files.")
    parser.add_argument("name", choices=SETS)
    parser.add_argument("out", type=Path, help="a folder")
    parser.add_argument("--limit", type=int, help="records of each file, at most")
    parser.add_argument(
        "--longest",
        type=int,
        nargs=2,
        metavar=("PROMPT", "ANSWER"),
        help="leave out records with more words than these",
    )
    given = parser.parse_args()
    for name, source in SETS[given.name].items():
        path = given.out / f"{name}.jsonl"
        if path.exists():
            print(f"{path}: is there already; to fetch it again, remove it")
            continue
        try:
            number, left_out = write_file(
                path, source, from_hub(source), given.limit, given.longest
            )
        except ImportError:
            parser.exit(
                1,
                f"{source.path}: expected the package datasets, got none; install it"
                " with `pip install -c constraints.txt -e .[full]`\n",
            )
        except DataError as error:
            parser.exit(1, f"{error}\n")
        except Exception as error:  # whatever a network and its libraries raise
            parser.exit(
                1,
                f"{source.path}: expected its {source.split} records, got"
                f" {type(error).__name__}: {short(str(error))}; is there a network?"
                " The files already written stay: run this again\n",
            )
        print(f"{path}: {number:,} records, {left_out:,} left out")


if __name__ == "__main__":
    main()

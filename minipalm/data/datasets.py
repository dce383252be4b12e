"""Records of JSON-lines or Parquet files: TinyTales' files, or your own.

Every record remembers where it came from ("data/text.jsonl:17"), so that whoever
finds it wrong later can say which line to mend. Fields beyond those named here are
ignored, blank lines and the byte-order mark that some editors write are skipped.
A path may be a folder of files of one kind, a pattern, "corpus/*.parquet", or a list
of them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import TypeVar

from minipalm.data.fields import DataError, short
from minipalm.data.lines import Paths, input_files
from minipalm.data.records import Limits, Records, count_tokens
from minipalm.data.tokenizer import Tokenizer

LARGE = 32 << 20  # bytes; a longer input stays on the disk, as `Records`


@dataclass(frozen=True, slots=True)
class Text:
    text: str
    source: str  # "path:line"


@dataclass(frozen=True, slots=True)
class Prompt:
    prompt: str
    source: str


@dataclass(frozen=True, slots=True)
class Demonstration:
    prompt: str
    response: str
    source: str


@dataclass(frozen=True, slots=True)
class Preference:
    prompt: str
    chosen: str
    rejected: str
    source: str

    def __post_init__(self) -> None:
        if self.chosen == self.rejected:
            raise DataError(
                f"{self.source}: fields 'chosen' and 'rejected': expected two"
                f" different responses, got {short(self.chosen)} twice;"
                " remove the line"
            )


R = TypeVar("R")
Pair = TypeVar("Pair", Demonstration, Preference)
Record = Text | Prompt | Demonstration | Preference


def read_texts(paths: Paths) -> list[Text] | Records[Text]:
    """Lines such as `{"text": "the fox slept ."}`; raises DataError."""
    return _read(Text, paths)


def read_prompts(paths: Paths) -> list[Prompt]:
    """Lines such as `{"prompt": "sad story about the fox :"}`; raises DataError.

    Always a list, however many: prompts are short, and drawn at random.
    """
    return list(Records(Prompt, tuple(input_files(paths))))


def read_demonstrations(paths: Paths) -> list[Demonstration] | Records[Demonstration]:
    """Lines `{"prompt": ..., "response": ...}`; raises DataError."""
    return _read(Demonstration, paths)


def read_preferences(paths: Paths) -> list[Preference] | Records[Preference]:
    """Lines `{"prompt": ..., "chosen": ..., "rejected": ...}`; raises DataError."""
    return _read(Preference, paths)


def _read(kind: type[R], paths: Paths) -> list[R] | Records[R]:
    """A list, or where that would be too large what can be read like one."""
    records = Records(kind, tuple(input_files(paths)))
    if records.bytes <= LARGE:
        return list(records)
    records[:1]  # raises now if the files are of another kind
    return records


def hold_out(
    records: Sequence[Pair] | Records[Pair], share: float, seed: int
) -> tuple[list[Pair], list[Pair]] | tuple[Records[Pair], Records[Pair]]:
    """Part the records at random: those to train on, and a share to test on.

    Equal records stay together, so that nothing is tested that was trained on. Records
    of large files are not counted: about that share is tested on. Raises DataError if
    one of the two lists would be empty.
    """
    if isinstance(records, Records):
        test = replace(records, share=(seed, 0.0, share))
        return replace(records, share=(seed, share, 1.0)), test
    groups: dict[str, list[Pair]] = {}
    for record in records:
        groups.setdefault(repr(replace(record, source="")), []).append(record)
    order = list(groups.values())
    Random(seed).shuffle(order)
    cut = max(round(share * len(order)), 1)
    if len(order) <= cut:
        raise DataError(
            f"{records[0].source.rpartition(':')[0]}: expected at least 2 different "
            f"records, one to train on and one to test on, got {len(order)}; add some"
        )
    tests, train = order[:cut], order[cut:]
    return [r for group in train for r in group], [r for group in tests for r in group]


# --- lengths, in tokens -------------------------------------------------------------


def fitting(
    records: Sequence[Pair] | Records[Pair],
    tokenizer: Tokenizer,
    max_prompt: int,
    max_response: int,
) -> Sequence[Pair] | Records[Pair]:
    """The records, all of which fit: prompts with <bos>, answers with <eos>.

    Raises DataError at the first that is too long. In large files somebody is always
    too long: such records are left out, and counted by whoever tokenizes the rest.
    """
    if isinstance(records, Records):
        return replace(records, limits=Limits(tokenizer, max_prompt, max_response))
    check_prompt_lengths(records, tokenizer, max_prompt)
    check_response_lengths(records, tokenizer, max_response)
    return records


def check_prompt_lengths(
    records: Iterable[Prompt | Demonstration | Preference],
    tokenizer: Tokenizer,
    max_tokens: int,
) -> None:
    """Raise DataError at the first prompt that, with <bos>, is over max_tokens."""
    for record in records:
        tokens = 1 + count_tokens(record.prompt, "prompt", record.source, tokenizer)
        if tokens > max_tokens:
            raise _too_long(record.source, "field 'prompt'", tokens, max_tokens)


def check_response_lengths(
    records: Iterable[Demonstration | Preference],
    tokenizer: Tokenizer,
    max_tokens: int,
) -> None:
    """Raise DataError at the first answer that, with <eos>, is over max_tokens."""
    for record in records:
        for name in record.__slots__:
            if name in ("prompt", "source"):
                continue
            answer = getattr(record, name)
            tokens = 1 + count_tokens(answer, name, record.source, tokenizer)
            if tokens > max_tokens:
                raise _too_long(record.source, f"field '{name}'", tokens, max_tokens)


def check_window(
    records: Iterable[Text | Prompt | Demonstration | Preference],
    tokenizer: Tokenizer,
    max_tokens: int,
) -> None:
    """Raise DataError at the first record that is over max_tokens in one piece.

    A piece is <bos>, the prompt if there is one, a text or response, and <eos>; a
    preference has two. In large files somebody is always too long: see `fitting`.
    """
    if isinstance(records, Records):
        return
    for record in records:
        fields = [name for name in record.__slots__ if name != "source"]
        tokens = {
            name: count_tokens(getattr(record, name), name, record.source, tokenizer)
            for name in fields
        }
        prompt = tokens.pop("prompt", 0)
        for name, response in tokens.items():
            if 1 + prompt + response + 1 > max_tokens:
                where = f"fields 'prompt' and '{name}'" if prompt else f"field '{name}'"
                raise _too_long(record.source, where, prompt + response + 2, max_tokens)
        if 1 + prompt > max_tokens:
            raise _too_long(record.source, "field 'prompt'", 1 + prompt, max_tokens)


def _too_long(source: str, where: str, tokens: int, max_tokens: int) -> DataError:
    return DataError(
        f"{source}: {where}: expected at most {max_tokens} tokens, special ones"
        f" counted, got {tokens}; shorten it, remove the line or choose a scale with"
        " a longer window"
    )

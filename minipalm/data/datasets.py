"""Read JSON-lines files: one JSON object a line, TinyTales' files or your own.

Every record remembers where it came from ("data/text.jsonl:17"), so that whoever
finds it wrong later can say which line to mend. Fields beyond those named here are
ignored, blank lines and the byte-order mark that some editors write are skipped.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import TypeVar

from minipalm.data.tokenizer import Tokenizer


class DataError(ValueError):
    """What is wrong with a file, at which line, and how to mend it."""


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


R = TypeVar("R", Demonstration, Preference)


def read_texts(path: str | Path) -> list[Text]:
    """Lines such as `{"text": "the fox slept ."}`; raises DataError."""
    return [Text(*fields) for fields in _read(path, "text")]


def read_prompts(path: str | Path) -> list[Prompt]:
    """Lines such as `{"prompt": "sad story about the fox :"}`; raises DataError."""
    return [Prompt(*fields) for fields in _read(path, "prompt")]


def read_demonstrations(path: str | Path) -> list[Demonstration]:
    """Lines `{"prompt": ..., "response": ...}`; raises DataError."""
    return [Demonstration(*fields) for fields in _read(path, "prompt", "response")]


def read_preferences(path: str | Path) -> list[Preference]:
    """Lines `{"prompt": ..., "chosen": ..., "rejected": ...}`; raises DataError."""
    preferences = []
    for fields in _read(path, "prompt", "chosen", "rejected"):
        preference = Preference(*fields)
        if preference.chosen == preference.rejected:
            raise DataError(
                f"{preference.source}: fields 'chosen' and 'rejected': expected two"
                f" different responses, got {_short(preference.chosen)} twice;"
                " remove the line"
            )
        preferences.append(preference)
    return preferences


def hold_out(records: Sequence[R], share: float, seed: int) -> tuple[list[R], list[R]]:
    """Part the records at random: those to train on, and a share to test on.

    Equal records stay together, so that nothing is tested that was trained on. Raises
    DataError if one of the two would be empty.
    """
    groups: dict[str, list[R]] = {}
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
    test, train = order[:cut], order[cut:]
    return [r for group in train for r in group], [r for group in test for r in group]


# --- lengths, in tokens -------------------------------------------------------------


def check_prompt_lengths(
    records: Iterable[Prompt | Demonstration | Preference],
    tokenizer: Tokenizer,
    max_tokens: int,
) -> None:
    """Raise DataError at the first prompt that, with <bos>, is over max_tokens."""
    for record in records:
        tokens = 1 + _count(record.prompt, "prompt", record.source, tokenizer)
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
            tokens = 1 + _count(answer, name, record.source, tokenizer)
            if tokens > max_tokens:
                raise _too_long(record.source, f"field '{name}'", tokens, max_tokens)


def check_window(
    records: Iterable[Text | Prompt | Demonstration | Preference],
    tokenizer: Tokenizer,
    max_tokens: int,
) -> None:
    """Raise DataError at the first record that is over max_tokens in one piece.

    A piece is <bos>, the prompt if there is one, a text or response, and <eos>; a
    preference has two.
    """
    for record in records:
        fields = [name for name in record.__slots__ if name != "source"]
        tokens = {
            name: _count(getattr(record, name), name, record.source, tokenizer)
            for name in fields
        }
        prompt = tokens.pop("prompt", 0)
        for name, response in tokens.items():
            if 1 + prompt + response + 1 > max_tokens:
                where = f"fields 'prompt' and '{name}'" if prompt else f"field '{name}'"
                raise _too_long(record.source, where, prompt + response + 2, max_tokens)
        if 1 + prompt > max_tokens:
            raise _too_long(record.source, "field 'prompt'", 1 + prompt, max_tokens)


def _count(text: str, field: str, source: str, tokenizer: Tokenizer) -> int:
    try:
        return len(tokenizer.encode(text))
    except ValueError as error:  # a word that the tokenizer does not know
        raise DataError(f"{source}: field '{field}': {error}") from None


def _too_long(source: str, where: str, tokens: int, max_tokens: int) -> DataError:
    return DataError(
        f"{source}: {where}: expected at most {max_tokens} tokens, special ones"
        f" counted, got {tokens}; shorten it, remove the line or choose a scale with"
        " a longer window"
    )


# --- lines --------------------------------------------------------------------------


def _read(path: str | Path, *fields: str) -> Iterator[tuple[str, ...]]:
    """The named fields of each line, with "path:line" behind them."""
    number_read = 0
    for source, line in _lines(Path(path)):
        yield (*_fields(line, fields, source), source)
        number_read += 1
    if not number_read:
        example = json.dumps(dict.fromkeys(fields, "..."))
        raise DataError(
            f"{path}: expected a JSON object on each line, such as {example},"
            " got an empty file; put at least one line in it"
        )


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """("path:line", line) for each line that is not blank."""
    try:
        file = path.open("rb")  # bytes: a line that is not UTF-8 can then be named
    except OSError as error:
        raise DataError(
            f"{path}: expected a JSON-lines file, got: {error.strerror};"
            " correct the path, or make TinyTales' files with"
            " `python -m minipalm.data.make --out data`"
        ) from None
    with file:
        for number, raw in enumerate(file, start=1):
            source = f"{path}:{number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{source}: expected UTF-8, got the byte"
                    f" 0x{raw[error.start]:02x} at position {error.start + 1};"
                    " save the file as UTF-8"
                ) from None
            if line.strip():
                yield source, line


def _fields(line: str, fields: Sequence[str], source: str) -> list[str]:
    """The values of the fields in one line, each a string that is not blank."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        why = str(error).split(": line 1")[0]  # it cannot know the line of the file
        raise DataError(
            f"{source}: expected a JSON object on one line, got {_short(line.strip())}"
            f" ({why}); mend the line or remove it"
        ) from None
    if not isinstance(content, dict):
        raise DataError(
            f"{source}: expected a JSON object with {_names(fields)},"
            f" got {_described(content)}; write it as {{...}}"
        )
    for field in fields:
        if field not in content:
            raise DataError(
                f"{source}: field '{field}': expected {_names(fields)},"
                f" got {_names(content) or 'no field'}; add or rename the field"
            )
    return [_text(content[field], f"{source}: field '{field}'") for field in fields]


def _text(value: object, where: str) -> str:
    """The value itself, if it is a string with something in it."""
    if not isinstance(value, str):
        raise DataError(
            f"{where}: expected a string, got {_described(value)}; put it in quotes"
        )
    if not value.strip():
        raise DataError(
            f"{where}: expected some text, got {_short(value)};"
            " fill it in or remove the line"
        )
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can spell half of an emoji: "\\ud83e"
        raise DataError(
            f"{where}: expected whole characters, got half of one in {_short(value)};"
            " write the character itself instead of \\u escapes"
        ) from None
    return value


def _described(value: object) -> str:
    """The JSON word for a value's type, and the value."""
    if value is None:
        return "null"
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return f"{names.get(type(value), 'a number')} {_short(value)}"


def _names(fields: Iterable[str]) -> str:
    return _cut(", ".join(repr(field) for field in fields))


def _short(value: object) -> str:
    return _cut(repr(value))


def _cut(shown: str) -> str:
    return shown if len(shown) <= 60 else shown[:57] + "..."

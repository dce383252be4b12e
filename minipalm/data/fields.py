"""What a field may hold, and how an error shows what it holds instead."""

from collections.abc import Iterable


class DataError(ValueError):
    """What is wrong with a file, at which line, and how to mend it."""


def text_of(value: object, source: str, field: str) -> str:
    """The value itself, if it is a string with something in it."""
    where = f"{source}: field '{field}'"
    if not isinstance(value, str):
        raise DataError(
            f"{where}: expected a string, got {described(value)}; {advice(value)}"
        )
    if not value.strip():
        raise DataError(
            f"{where}: expected some text, got {short(value)};"
            " fill it in or remove the line"
        )
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can spell half of an emoji: "\\ud83e"
        raise DataError(
            f"{where}: expected whole characters, got half of one in {short(value)};"
            " write the character itself instead of \\u escapes"
        ) from None
    return value


def advice(value: object) -> str:
    """How to mend a value that is no string."""
    if value is None:
        return "fill it in or remove the record"
    if isinstance(value, list | dict):
        return "write one string, or a record for each"
    return "put it in quotes"


def described(value: object) -> str:
    """The JSON word for a value's type, and the value."""
    if value is None:
        return "null"
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return f"{kinds.get(type(value), 'a number')} {short(value)}"


def names(fields: Iterable[str]) -> str:
    return cut(", ".join(repr(field) for field in fields))


def short(value: object) -> str:
    return cut(repr(value))


def cut(shown: str) -> str:
    return shown if len(shown) <= 60 else shown[:57] + "..."

"""Writing a file so that it is there in full or not at all, and telling it apart."""

import hashlib
import os
from pathlib import Path


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 with `\\n` line ends to a temporary name, then rename.

    A crash or a full disk leaves the old file as it was. Folders are made as needed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")  # the next write takes it over
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave a renamed empty file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # still there only if something failed


def fingerprint(path: str | Path) -> str:
    """SHA-256 of a file's bytes: a run remembers what it was trained on."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

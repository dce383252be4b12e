"""Writing a file so that it is there in full or not at all, and telling it apart."""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from minipalm.data.lines import Paths, input_files

WHOLE = 64 << 20  # bytes; of more than that a fingerprint reads samples
SAMPLES, SAMPLE = 64, 16 << 10  # pieces of a file, and the bytes of each


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 with `\\n` line ends to a temporary name, then rename.

    A crash or a full disk leaves the old file as it was. Folders are made as needed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    rank = os.environ.get("RANK", "")  # of several that may write the same at once
    temporary = path.with_name(f".{path.name}{rank}.tmp")  # taken over by the next
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave a renamed empty file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # still there only if something failed


def wait_for(ready: Callable[[], bool], path: Path) -> None:
    """Look again and again, for hours if need be, until another process has made it."""
    start, told = time.monotonic(), False
    while not ready():
        time.sleep(0.2)
        if not told and time.monotonic() - start > 60:
            print(
                f"waiting for {path}, which the first process makes; machines that work"
                " together must share this folder",
                flush=True,
            )
            told = True


def fingerprint(paths: Paths) -> str:
    """SHA-256 of a file's bytes: a run remembers what it was trained on.

    Of several files, or a pattern: that of their fingerprints in order, whatever their
    names. Where there are more than 64 MiB in all: of each file's size and 64 pieces,
    spread over it evenly. A line more or less changes that; one letter for another may
    lie between the pieces.
    """
    files = input_files(paths)
    whole = sum(path.stat().st_size for path in files) <= WHOLE
    digests = [_digest(path, whole) for path in files]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _digest(path: Path, whole: bool) -> str:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if whole or size <= SAMPLES * SAMPLE:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256(str(size).encode())
        for n in range(SAMPLES):
            file.seek(n * (size - SAMPLE) // (SAMPLES - 1))
            digest.update(file.read(SAMPLE))
        return digest.hexdigest()

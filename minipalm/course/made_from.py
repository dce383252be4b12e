"""What a stage was made from, in its stage.json: is it what it would be made from now?

That is the scale, the seed, the input files and the earlier stages. A stage is stale
where one of them differs, and so are those that follow it.
"""

import argparse
import hashlib
import json
import shutil
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from minipalm.config import get_preset
from minipalm.course import ROOT
from minipalm.data.files import fingerprint, write_text
from minipalm.train.progress import read_object

Files = Mapping[str, Path]  # by the notebook's parameters


def shown(path: Path) -> str:
    """The path as a reader wants it: relative to the clone if it lies in there."""
    path = path.resolve()
    return path.relative_to(ROOT).as_posix() if ROOT in path.parents else str(path)


def code_digest(notebook: Path, scale: str) -> str:
    """A hash of what the notebook computes: its code and preset, not its prose."""
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    code.append(repr(get_preset(scale)))
    return hashlib.sha256("\n\n".join(code).encode()).hexdigest()


def made_from(
    args: argparse.Namespace, files: Files, after: Mapping[str, str]
) -> dict[str, Any]:
    """What a stage is made from, besides its code. after: names of earlier runs."""
    return {
        "scale": args.scale,
        "seed": args.seed,
        "inputs": {name: fingerprint(path) for name, path in files.items()},
        "after": dict(after),
    }


def differences(
    record: Mapping[str, Any], now: Mapping[str, Any], files: Files
) -> list[str]:
    """How what a stage was made from differs from what it would be made from now.

    record: its stage.json; what is not in there does not differ.

    Example: ["text was a.jsonl (fingerprint 0f3a), now b.jsonl (fingerprint 77e1)"]
    """
    old = {key: record.get(key, value) for key, value in now.items()}
    found = [
        f"{key} was {old[key]}, now {now[key]}"
        for key in ("scale", "seed")
        if old[key] != now[key]
    ]
    before, inputs = old["inputs"], now["inputs"]
    paths = {name: shown(path) for name, path in files.items()}
    for name in sorted(before.keys() | inputs.keys()):
        if before.get(name) != inputs.get(name):
            was = _named(record.get("files", {}).get(name), before.get(name))
            found.append(
                f"{name} was {was}, now {_named(paths.get(name), inputs.get(name))}"
            )
    earlier = old["after"].keys() | now["after"].keys()
    others = [one for one in earlier if old["after"].get(one) != now["after"].get(one)]
    return found + [f"would follow another {min(others)}"] if others else found


def _named(path: str | None, digest: str | None) -> str:
    if digest is None:
        return "not given"
    return f"{path or 'a file'} (fingerprint {digest[:12]})"


def stale_stages(
    args: argparse.Namespace, inputs: Mapping[str, Files]
) -> dict[str, list[str]]:
    """The stages that are not made from what they would be made from now, and why.

    inputs: the files of each stage, in the order in which stages run.
    """
    stale: dict[str, list[str]] = {}
    after: dict[str, str] = {}
    for stage, files in inputs.items():
        record = read_object(args.out / stage / "stage.json")
        why = differences(record, made_from(args, files, after), files)
        if why:
            stale[stage] = why
        after[stage] = "" if why else str(record.get("run", ""))  # "": to be a new one
    return stale


def refused(out: Path, stale: Mapping[str, Iterable[str]]) -> ValueError:
    """Who may not remove these stages unasked tells the reader so."""
    lines = [f"  {stage}: {'; '.join(why)}" for stage, why in stale.items()]
    return ValueError(
        "\n".join(
            [f"{shown(out)} has stages that were made from something else:", *lines]
        )
        + "\nGive the same again, or another --out. With --renew these stages are "
        "removed and made again."
    )


def prepare(
    folder: Path, now: Mapping[str, Any], files: Files, code: str, renew: bool
) -> tuple[bool, str]:
    """Whether the stage in folder is complete, and the name of its run.

    A folder that is stale is emptied. The run's name stays when a stage is resumed and
    changes when it is made again; the stages after it count it among what they are made
    from. A changed notebook or preset empties nothing, but is said: a mended figure
    shall not cost a week of training.

    Raises:
        ValueError: it is stale, and must not be emptied (renew).
    """
    record = read_object(folder / "stage.json")
    why = differences(record, now, files)
    if why and not renew:
        raise refused(folder.parent, {folder.name: why})
    if why:
        print(f"{folder.name}: what it was made from has changed; making it again")
        (folder / "done.json").unlink(missing_ok=True)  # first: if we are stopped now,
        shutil.rmtree(folder)  # what is left must not look complete
        record = {}
    complete = (folder / "done.json").is_file()
    if complete and record.get("code", code) != code:
        print(
            f"{folder.name}: is of an older notebook or preset; to renew it, remove "
            f"{folder}"
        )
    run = str(record.get("run") or uuid.uuid4().hex)
    if not (complete and record):
        paths = {name: shown(path) for name, path in files.items()}
        text = json.dumps({**now, "files": paths, "code": code, "run": run}, indent=1)
        write_text(folder / "stage.json", text + "\n")
    return complete, run

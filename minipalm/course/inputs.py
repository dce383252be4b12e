"""The stages of a run, and the input files of each."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

from minipalm.course import ROOT
from minipalm.course.made_from import shown
from minipalm.data.datasets import (
    read_demonstrations,
    read_preferences,
    read_prompts,
    read_texts,
)
from minipalm.data.lines import input_files
from minipalm.spmd import known_parameters
from minipalm.train.progress import FURTHER, read_object
from minipalm.train.progress import STAGES as TITLES

STAGES = tuple(stage for stage in TITLES if stage not in FURTHER)
ADOPTED = "adopted.json"  # in the run's folder: whose pretraining it has taken over

READERS: dict[str, Callable[[Path], object]] = {  # by the notebooks' parameters
    "text": read_texts,
    "demonstrations": read_demonstrations,
    "preferences": read_preferences,
    "prompts": read_prompts,
    "heldout": read_prompts,
}


def in_folder(data: Path, default: str) -> Path:
    """Where a folder has what a notebook takes from a file such as data/text.jsonl.

    That may be text.jsonl, text.parquet, or a folder `text` of files of one kind.
    Raises ValueError if there are several of these.
    """
    stem = Path(default).stem
    places = [data / Path(default).name, data / f"{stem}.parquet", data / stem]
    found = [place for place in places if place.exists()]
    if len(found) > 1:
        names = " and ".join(place.name for place in found)
        raise ValueError(f"{data} has {names}, which are one input: keep one of them")
    return (found or places)[0]


def find_inputs(
    notebook: Path, data: Path | None, given: Mapping[str, Path | None] | None = None
) -> dict[str, Path]:
    """The notebook's parameters that are files, and where each file is.

    data: a folder to take them from, by the file names of the notebook's defaults.
    given: files by the parameters' names, also those that have no default; a pattern
        such as corpus/*.parquet stands for several.
    Raises ValueError if there is no such file, or it is not what it should be.
    """
    files = {}
    for name, default in known_parameters(notebook).items():
        asked = (given or {}).get(name)
        is_file = isinstance(default, str) and Path(default).suffix
        if name == "out" or not (is_file or asked):
            continue
        path = asked or (in_folder(data, default) if data else ROOT / default)
        for file in input_files(path):
            if not file.is_file():
                raise ValueError(
                    f"{notebook.stem} needs a file for {name}, and there is no {file};"
                    "\ndata/README.md shows what it holds"
                )
        if name in READERS:
            READERS[name](path)  # a slip in it is said before anything runs
        files[name] = path
    return files


def stages_until(last: str | None) -> tuple[str, ...]:
    """The stages up to one of them, by default up to the report; raises ValueError."""
    if last is None:
        return STAGES
    every = (*STAGES, *FURTHER)
    if last not in every:
        raise ValueError(f"--until must be one of {', '.join(every)} (got {last!r})")
    return every[: every.index(last) + 1]


def is_taken(args: argparse.Namespace) -> bool:
    """Whether 06_palm comes from another run.

    Raises ValueError if it did and was removed, say because it was damaged: to train
    it here may take weeks, and it would be another one.
    """
    folder, note = args.out / "06_palm", args.out / ADOPTED
    record = read_object(folder / "stage.json")
    if getattr(args, "pretrained", None):
        return True
    came = record.get("adopted") if record else read_object(note)
    if came and not (folder / "done.json").is_file():
        raise ValueError(
            f"{shown(folder)} is not complete, and its pretraining came from "
            f"{came.get('run')}:\ngive ./course full --pretrained {came.get('run')} "
            f"again, or remove {shown(note)} and that folder to train it here"
        )
    return "adopted" in record


def all_inputs(args: argparse.Namespace) -> dict[str, dict[str, Path]]:
    """The input files of each stage that is to run; see find_inputs.

    A stage that comes from another run (`minipalm.course.adopt`) needs none.
    Raises ValueError if it did and is not there any more.
    """
    given = {"preferences": args.preferences}
    taken = ("06_palm",) if is_taken(args) else ()
    return {
        stage: {}
        if stage in taken
        else find_inputs(args.notebooks / f"{stage}.ipynb", args.data, given)
        for stage in stages_until(args.until)
    }

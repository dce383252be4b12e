"""Take pretraining from another run: its tokenizer and its networks, as they are.

    ./course full --scale full-lora --gpus 1 --pretrained runs/full

The files are linked: they lie on the disk once, and stay if the other run is removed.
Nothing writes into them. Where links cannot be, on another disk say, they are copied.
"""

import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from minipalm.config import PaLMConfig, Preset, get_preset
from minipalm.course.inputs import ADOPTED
from minipalm.data.files import fingerprint, write_text
from minipalm.data.tokenizer import Tokenizer, WordTokenizer, load_tokenizer
from minipalm.model.palm import PaLM
from minipalm.train.checkpoint import TENSORS
from minipalm.train.parts import PARTS
from minipalm.train.progress import read_object
from minipalm.train.stage import finished_stage, result_fingerprint, stage_summary

STAGE = "06_palm"
REMADE = {"tokenizer", "tokens"}  # what a run that was refused may have left there
Shapes = dict[str, tuple[int, ...]]


def adopt(source: Path, out: Path, scale: str, seed: int) -> None:
    """Make 06_palm of a run complete with that of another one.

    What it came from stands in its stage.json and done.json, and beside the stages in
    adopted.json: so it is not trained anew where 06_palm is lost. If the run has it
    already, nothing else is done.

    Args:
        source: folder of the other run, such as runs/full; is not changed.
        out: of this run.
        scale, seed: this run's. The other's may differ, if the networks have the same
            shapes.

    Raises:
        ValueError: it does not fit, or the run has another pretraining.
        StageError: the other run's pretraining is not complete.
    """
    folder = out / STAGE
    had = read_object(folder / "stage.json").get("adopted")
    broken = bool(had) and not (folder / "done.json").is_file()
    if broken:
        had = None  # take it again
    if had:
        write_json(out / ADOPTED, had)  # of a time when there was no such note
    if had and not (source / STAGE).exists() and had["run"] == str(source.resolve()):
        return  # its files are here
    theirs = finished_stage(source, STAGE)
    adopted = {
        "run": str(source.resolve()),
        "scale": scale_of(stage_summary(source, STAGE)),
        "tokenizer": fingerprint(theirs / "tokenizer.json"),
        "result": result_fingerprint(source, STAGE),
    }
    if had:
        if any(had[key] != adopted[key] for key in ("tokenizer", "result")):
            raise ValueError(
                f"{folder} is from {had['run']}, and {theirs} is another one. Give "
                f"this run another --out, or remove {folder} and what was made of it."
            )
        return
    left = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if left - REMADE and not broken:
        raise ValueError(
            f"{folder} is a pretraining of this run's own. Leave out --pretrained, "
            "give this run another --out, or remove that folder."
        )
    check_fits(theirs, scale)
    temporary = out / f".{STAGE}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)  # of one that was killed
    try:
        (temporary / "result").mkdir(parents=True)
        for path in [theirs / "tokenizer.json", *sorted((theirs / "result").iterdir())]:
            link_or_copy(path, temporary / path.relative_to(theirs))
        mine: dict[str, Any] = {"scale": scale, "seed": seed, "adopted": adopted}
        write_json(temporary / "stage.json", mine | {"run": adopted["result"]})
        write_json(temporary / "done.json", stage_summary(source, STAGE) | mine)
        write_json(out / ADOPTED, adopted)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    except OSError as error:
        raise ValueError(
            f"{folder}: {theirs} could not be taken over ({error})"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(f"{STAGE}: taken from {theirs}, scale {adopted['scale']}", flush=True)
    for line in doubts(theirs / "result", adopted["scale"], scale):
        print(f"{STAGE}: {line}", flush=True)


def link_or_copy(path: Path, to: Path) -> None:
    try:
        os.link(path.resolve(), to)
    except OSError:  # another disk, or one without links
        print(
            f"{STAGE}: copying {path}, {path.stat().st_size / 1e9:.3g} GB", flush=True
        )
        shutil.copyfile(path, to)
        with to.open("rb+") as file:
            os.fsync(file.fileno())  # before its folder gets the name that counts


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")


def scale_of(summary: dict[str, Any]) -> Any:
    """The scale that a 06_palm was trained with, also where it was adopted itself."""
    return summary.get("adopted", summary).get("scale")


# --- does it fit? ---------------------------------------------------------------------


def check_fits(theirs: Path, scale: str) -> None:
    """Raises ValueError if the result of a 06_palm is not what a scale begins with."""
    preset = get_preset(scale)
    tokenizer = load_tokenizer(theirs / "tokenizer.json")
    differ = vocabulary_differs(tokenizer, preset)
    configs = {"policy": preset.policy, "trunk": preset.reward_trunk}
    for name, config in configs.items():
        differ += network_differs(theirs, name, config, tokenizer.vocab_size)
    if differ:
        raise ValueError(f"{theirs} does not fit {scale}: {'; '.join(differ)}")


def vocabulary_differs(tokenizer: Tokenizer, preset: Preset) -> list[str]:
    kind = "word" if isinstance(tokenizer, WordTokenizer) else "bpe"
    number, wanted = tokenizer.vocab_size, preset.vocab_size
    fits = number <= wanted if kind == "word" else number == wanted
    if kind == preset.tokenizer and fits:
        return []
    most = "at most " if preset.tokenizer == "word" else ""
    return [
        f"its tokenizer is {kind!r} with {number} ids, and here it must be "
        f"{preset.tokenizer!r} with {most}{wanted}"
    ]


def network_differs(
    theirs: Path, name: str, config: PaLMConfig, vocab_size: int
) -> list[str]:
    """What a network's shape is there, and must be here: "policy.dim is 48, not 64"."""
    config = replace(config, vocab_size=vocab_size)
    there = read_object(theirs / name / "config.json").get("model", {})
    wanted = asdict(config)
    del wanted["embed_std"]  # how it began
    differ = [
        f"{name}.{key} is {there[key]}, and must be {wanted[key]}"
        for key in wanted
        if key in there and there[key] != wanted[key]
    ]
    if differ:
        return differ
    with torch.device("meta"):  # no weights
        network = PaLM(config)
    shapes = {
        f"{name}/{key}": tuple(weight.shape)
        for key, weight in network.state_dict().items()
    }
    found = shapes_in(theirs / "result", name)
    return [
        f"{key} has shape {found.get(key)}, and must have {shapes.get(key)}"
        for key in sorted(shapes.keys() | found.keys())
        if shapes.get(key) != found.get(key)
    ][:1]


def doubts(result: Path, theirs: object, scale: str) -> list[str]:
    """What fits in shape, and is less than a scale's own pretraining would be."""
    found = []
    if ":" in str(theirs) and theirs != scale:
        steps = str(theirs).partition(":")[2]
        found.append(f"it was trained for {steps} steps only, to try things out")
    if "BF16" in dtypes_in(result) and get_preset(scale).machine.weights == "float32":
        found.append(
            f"its weights are rounded to bfloat16; those of {scale} are float32"
        )
    return found


def dtypes_in(result: Path) -> set[str]:
    """The types of a checkpoint's tensors, in the words of safetensors: "BF16"."""
    found: set[str] = set()
    for path in sorted(result.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
    return found


def shapes_in(result: Path, name: str) -> Shapes:
    """Names and shapes of a network's weights in a checkpoint; no weight is read."""
    if (result / TENSORS).exists():
        with safe_open(result / TENSORS, framework="pt") as file:
            every = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    elif any(result.glob(PARTS)):
        import torch.distributed.checkpoint as dcp

        parts: Any = dcp.HuggingFaceStorageReader(str(result)).read_metadata()
        every = {key: one.size for key, one in parts.state_dict_metadata.items()}
    else:
        every = {}
    return {k: tuple(v) for k, v in every.items() if k.startswith(f"{name}/")}

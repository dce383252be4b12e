"""A stage of the pipeline: it finds the result of those before it, and leaves its own.

runs/toy/07_sft/          one folder a stage
    policy/               a training run (see Run)
    result/               the weights that later stages read
    done.json             written last: the stage is complete
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from minipalm.data.files import fingerprint, write_text
from minipalm.data.tokenizer import Tokenizer
from minipalm.model.lora import merged
from minipalm.model.palm import PaLM
from minipalm.model.place import has_adapters, machine_of
from minipalm.parallel import barrier, is_first
from minipalm.train.checkpoint import (
    CheckpointError,
    Tensors,
    learnt,
    load_module,
    read_state,
    write_checkpoint,
    writing,
)

Model = TypeVar("Model", bound=nn.Module)


class StageError(RuntimeError):
    """A stage cannot begin, since one before it has not ended."""


def finish_stage(
    out: Path | str,
    stage: str,
    modules: Mapping[str, nn.Module],
    tokenizer: Tokenizer,
    *,
    start: str | None = None,
    **summary: Any,
) -> None:
    """Leave a stage's result for later stages, then mark the stage as complete.

    Args:
        out: folder of the pipeline's run, such as runs/toy.
        stage: such as 07_sft.
        modules: their weights are kept, under these names.
        tokenizer: which the modules were trained with.
        start: the stage whose `policy` the modules' adapters stand on: of these modules
            only the adapters are kept. None: they are merged into the weights.
        summary: numbers and strings for done.json; `scale` and `seed` among them.
    """
    folder = Path(out) / stage
    if modules:
        state: dict[str, Any] = {"tokenizer": tokenizer.fingerprint}
        weights: Tensors = {}
        for name, module in modules.items():
            apart = start is not None and has_adapters(module)
            if apart:
                rank = machine_of(module).lora_rank
                state.setdefault("adapters", {})[name] = {"start": start, "rank": rank}
            kept = learnt(module) if apart else merged_state(module)
            weights |= {f"{name}/{key}": x.contiguous() for key, x in kept.items()}
        write_checkpoint(folder / "result", weights, state)
    done = folder / "done.json"
    if is_first():
        with writing(done):
            write_text(done, json.dumps(summary, indent=1) + "\n")
    barrier()


def merged_state(module: nn.Module) -> Tensors:
    """The weights of a network; adapters, if there are any, become part of them.

    In bfloat16 the sum is rounded: a tenth of what fine-tuning has changed may be lost,
    and nearly all of the smaller steps of PPO, so its adapters are kept apart.
    """
    state = module.state_dict()
    if not has_adapters(module):
        return state
    assert isinstance(module, PaLM)
    with merged(module):  # only for as long as the weights are copied
        copies = {key: x.to("cpu", copy=True) for key, x in state.items()}
    return {key: x for key, x in copies.items() if ".lora_" not in key}


def finished_stage(out: Path | str, stage: str) -> Path:
    """The folder of a complete stage.

    Raises:
        StageError: it has not run to its end.
    """
    folder = Path(out) / stage
    if not (folder / "done.json").is_file():
        raise StageError(
            f"{folder}: expected the result of {stage}, which has not run to its end "
            "there. Run it first; ./course run does all stages in order."
        )
    return folder


def stage_summary(out: Path | str, stage: str) -> dict[str, Any]:
    """What `finish_stage` was given as summary.

    Raises:
        StageError: the stage has not run to its end.
    """
    text = (finished_stage(out, stage) / "done.json").read_text(encoding="utf-8")
    return json.loads(text)


def result_fingerprint(out: Path | str, stage: str) -> str:
    """SHA-256 of the weights that a stage left: what a later run started from.

    Raises:
        StageError: the stage has not run to its end.
    """
    files = finished_stage(out, stage).glob("result/*.safetensors")
    return fingerprint(sorted(files))


def load_result(
    module: Model, out: Path | str, stage: str, name: str, tokenizer: Tokenizer
) -> Model:
    """Fill a module with what a complete stage left under a name, and return it.

    Raises:
        StageError: the stage has not run to its end.
        CheckpointError: the weights do not fit, or came from another tokenizer.
    """
    result = finished_stage(out, stage) / "result"
    if read_state(result).get("tokenizer") != tokenizer.fingerprint:
        raise CheckpointError(
            f"{result}: was trained with another tokenizer than this one, so its "
            "token numbers mean other words. Use the tokenizer.json of the same "
            f"`out`, or run {stage} again."
        )
    load_module(module, result, name)
    return module

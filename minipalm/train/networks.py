"""The networks that earlier stages have left, ready to be placed."""

from dataclasses import replace
from pathlib import Path

import torch

from minipalm.config import Preset
from minipalm.data.tokenizer import Tokenizer, load_tokenizer
from minipalm.model.lora import with_adapters
from minipalm.model.palm import PaLM
from minipalm.rlhf.reward import RewardModel
from minipalm.train.checkpoint import read_state
from minipalm.train.stage import finished_stage, load_result


def tokenizer_of(out: Path | str) -> Tokenizer:
    """The tokenizer of all stages, which 06_palm has trained.

    Raises:
        StageError: the stage has not run to its end.
    """
    return load_tokenizer(finished_stage(out, "06_palm") / "tokenizer.json")


def load_policy(
    out: Path | str,
    stage: str,
    preset: Preset,
    tokenizer: Tokenizer,
    name: str = "policy",
) -> PaLM:
    """A policy by the stage that left it, and by its name there.

    It lies on the CPU, as it was saved; `minipalm.model.place.place` makes a copy that
    lies where it shall compute.

    Raises:
        StageError: the stage has not run to its end.
        CheckpointError: the weights do not fit, or came from another tokenizer.
    """
    config = replace(preset.policy, vocab_size=tokenizer.vocab_size)
    state = read_state(finished_stage(out, stage) / "result")
    adapters = state.get("adapters", {}).get(name)
    if adapters:
        start = load_policy(out, adapters["start"], preset, tokenizer)
        model = with_adapters(start, adapters["rank"])
    else:
        with torch.device("meta"):  # no weights yet
            model = PaLM(config)
    return load_result(model, out, stage, name, tokenizer)


def load_trunk(
    out: Path | str, stage: str, preset: Preset, tokenizer: Tokenizer
) -> PaLM:
    """What reward model and critic are made of; see `load_policy`."""
    config = replace(preset.reward_trunk, vocab_size=tokenizer.vocab_size)
    with torch.device("meta"):
        model = PaLM(config)
    return load_result(model, out, stage, "trunk", tokenizer)


def load_reward_model(
    out: Path | str, preset: Preset, tokenizer: Tokenizer
) -> RewardModel:
    """The reward model of 08_reward_model; see `load_policy`."""
    config = replace(preset.reward_trunk, vocab_size=tokenizer.vocab_size)
    with torch.device("meta"):
        model = RewardModel(PaLM(config), preset.reward.pooling)
    return load_result(model, out, "08_reward_model", "reward_model", tokenizer)

"""The whole pipeline on given GPUs: does it fit, how long does it take, what is due."""

from dataclasses import replace

from minipalm.config import Preset
from minipalm.scale.gpu import GPU
from minipalm.scale.memory import Parts, frozen_state
from minipalm.scale.stages import (
    DISK,
    Stage,
    answers_stage,
    evaluation_stage,
    networks,
    policy_and_trunk,
    ppo_stage,
    training_stage,
)


def plan(preset: Preset, gpu: GPU, gpus: int = 1, disk: float = DISK) -> list[Stage]:
    """Every stage of the pipeline, in order.

    Args:
        preset: all sizes, and how networks lie on the machine. With adapters,
            pretraining still trains every weight; it alone may have bfloat16 weights.
        gpu: of which kind.
        gpus: of one machine.
        disk: bytes a second that checkpoints are written with.

    Raises:
        ValueError: there are no GPUs, the preset is one for a CPU, or adapters are to
            be trained on several GPUs.
    """
    if gpus < 1:
        raise ValueError(f"expected 1 GPU or more (got {gpus})")
    if preset.machine.compute != "bfloat16":
        raise ValueError(
            "plans are for presets that compute in bfloat16, on a GPU "
            f"(this one has {preset.machine.compute})"
        )
    policy, trunk = networks(preset)
    small = preset.machine.lora_rank > 0
    if small and gpus > 1:
        raise ValueError("adapters are for one GPU; on several, train all weights")
    pair = preset.max_prompt + preset.max_response
    where = gpu, gpus, disk
    exact = replace(preset, machine=replace(preset.machine, weights="float32"))
    frozen: Parts = {"weights": frozen_state(policy, gpus)}
    return [
        *policy_and_trunk(
            ("06 pretraining", "06 trunk"), preset, preset.pretrain, *where
        ),
        *policy_and_trunk(("07 SFT", "07 trunk"), exact, preset.sft, *where, small),
        answers_stage(exact, gpu, gpus),
        training_stage(
            "08 reward model",
            "reward model",
            exact,
            trunk,
            {"policy": frozen},
            preset.reward.optim,
            pair,
            *where,
            rows_each=2,
            logit_bytes=0,
        ),
        ppo_stage(exact, *where),
        evaluation_stage(exact, gpu, gpus),
    ]


def check_ranks(preset: Preset, ranks: int) -> None:
    """Raises ValueError if so many ranks cannot train what the preset wants."""
    if ranks > 1 and preset.machine.lora_rank:
        raise ValueError(f"adapters are for one GPU, and not {ranks}: add --gpus 1")
    for name, size in {
        "pretrain.batch_size": preset.pretrain.batch_size,
        "sft.batch_size": preset.sft.batch_size,
        "reward.optim.batch_size": preset.reward.optim.batch_size,
        "ppo.batch_size": preset.ppo.batch_size,
        "ppo.minibatch_size": preset.ppo.minibatch_size,
        "methods.dpo.optim.batch_size": preset.methods.dpo.optim.batch_size,
        "methods.rloo.minibatch_size": preset.methods.rloo.minibatch_size,
        "methods.grpo.minibatch_size": preset.methods.grpo.minibatch_size,
    }.items():
        if size % ranks:
            raise ValueError(
                f"{name} is {size}, which {ranks} ranks cannot share equally: take "
                "another number of them, or another size in minipalm/config.py"
            )

"""The whole pipeline on given GPUs: does it fit, how long does it take, what is due.

All sizes come from the preset; every answer is taken to be as long as it may be, so
sampling is an upper bound.
"""

import math
from dataclasses import dataclass, replace

from minipalm.config import OptimConfig, PaLMConfig, Preset
from minipalm.model.palm import count_parameters
from minipalm.scale.decoding import rollout_seconds
from minipalm.scale.flops import adapter_parameters
from minipalm.scale.gpu import GIB, GPU
from minipalm.scale.iteration import ppo_memory, ppo_seconds
from minipalm.scale.memory import (
    BYTES,
    LOGIT_BYTES,
    Parts,
    asking_bytes,
    frozen_state,
    sampling_bytes,
    total,
    training_peak,
)
from minipalm.scale.seconds import forward_seconds, training_seconds
from minipalm.scale.sharding import gather_seconds

RESERVE = 1.5 * GIB  # CUDA's own, NCCL's buffers, gaps between what is allocated
START = 120.0  # seconds a stage: notebook, data, the first compiled step (assumption)
DISK = 2e9  # bytes a second that a checkpoint is written with (assumption)


@dataclass(frozen=True)
class Stage:
    """One notebook of the pipeline.

    Attributes:
        name: of the notebook.
        memory: bytes on one GPU at the worst moment, of each network, its parts.
        steps: optimizer steps, or iterations.
        tokens: that go through training in a step, on all GPUs together.
        step_seconds: of one step.
        checkpoint_seconds: of all checkpoints of the stage.
        phases: of a step, by name, where there are several.
    """

    name: str
    memory: dict[str, Parts]
    steps: int
    tokens: int
    step_seconds: float
    checkpoint_seconds: float
    phases: dict[str, float] | None = None

    @property
    def peak(self) -> float:
        return sum(map(total, self.memory.values()))

    @property
    def hours(self) -> float:
        busy = self.steps * self.step_seconds
        return (START + busy + self.checkpoint_seconds) / 3600

    def fits(self, gpu: GPU) -> bool:
        return self.peak + RESERVE <= gpu.memory


def networks(preset: Preset) -> tuple[PaLMConfig, PaLMConfig]:
    """The shapes of the policy, and of reward model and critic."""
    return (
        replace(preset.policy, vocab_size=preset.vocab_size),
        replace(preset.reward_trunk, vocab_size=preset.vocab_size),
    )


def training_stage(
    name: str,
    preset: Preset,
    config: PaLMConfig,
    optim: OptimConfig,
    length: int,
    gpu: GPU,
    gpus: int,
    disk: float,
    rows_each: int = 1,
    adapters: bool = False,
    logit_bytes: int = LOGIT_BYTES,
) -> Stage:
    """A stage that is one loop of optimizer steps.

    Args:
        config: of the network that is trained.
        optim: batch and micro-batch; the second is one GPU's.
        length: tokens of a row.
        disk: bytes a second of a checkpoint.
        rows_each: rows of what a batch counts: a comparison has two.
        logit_bytes: see training_peak.
    """
    mine = math.ceil(optim.batch_size / gpus)
    micro = min(optim.micro_batch or mine, mine)
    parts = math.ceil(mine / micro)
    machine = preset.machine
    tokens = micro * rows_each * length
    several = parts > 1
    peak = training_peak(config, machine, tokens, gpus, adapters, several, logit_bytes)
    rows = mine * rows_each
    seconds = training_seconds(
        config, machine, rows, length, gpu, gpus, parts, adapters
    )
    kept = checkpoint_bytes(config, preset, adapters)
    written = math.ceil(optim.steps / preset.checkpoint_every) * kept / disk
    everything = optim.batch_size * rows_each * length
    memory = {name.split(" ", 1)[1]: peak}
    return Stage(name, memory, optim.steps, everything, seconds, written)


def checkpoint_bytes(config: PaLMConfig, preset: Preset, adapters: bool) -> float:
    """Trained weights and AdamW's moments: what a run needs to go on."""
    if adapters:
        return 3 * 4 * adapter_parameters(config, preset.machine.lora_rank)
    return 3 * BYTES[preset.machine.weights] * count_parameters(config)


def ppo_stage(preset: Preset, gpu: GPU, gpus: int, disk: float) -> Stage:
    """Lesson 11: iterations of sampling, asking and learning, for each β."""
    policy, trunk = networks(preset)
    sizes = preset.max_prompt, preset.max_response
    args = policy, trunk, preset.machine, preset.ppo, *sizes
    phases = ppo_seconds(*args, gpu, gpus)
    steps = preset.ppo.iterations * len(preset.ppo.kl_coefs)
    small = preset.machine.lora_rank > 0
    kept = checkpoint_bytes(policy, preset, small)
    kept += checkpoint_bytes(trunk, preset, False)
    number = math.ceil(10 * steps / preset.checkpoint_every)
    return Stage(
        "11 PPO",
        ppo_memory(*args, gpus),
        steps,
        preset.ppo.batch_size * sum(sizes),
        sum(phases.values()),
        number * kept / disk,
        phases,
    )


def evaluation_stage(preset: Preset, gpu: GPU, gpus: int) -> Stage:
    """Lesson 12: SFT and each PPO policy answer two sets of prompts, and are judged.

    A step is one policy on one set.
    """
    policy, trunk = networks(preset)
    P, T = preset.max_prompt, preset.max_response
    rows = math.ceil(preset.eval_samples / gpus)
    machine, length = preset.machine, P + T
    at_once = min(rows, math.ceil(preset.ppo.batch_size / gpus))
    batches = math.ceil(rows / at_once)
    seconds = batches * rollout_seconds(policy, machine, at_once, P, T, gpu)
    seconds += 2 * forward_seconds(policy, machine, rows * length, length, gpu)
    seconds += forward_seconds(trunk, machine, rows * length, length, gpu)
    seconds += batches * 4 * gather_seconds(policy, gpu, gpus)
    small = machine.lora_rank > 0
    copied = gpus > 1 and not small
    memory: dict[str, Parts] = {
        "policy": {"weights": frozen_state(policy, gpus)},
        "reference": {"weights": 0.0 if small else frozen_state(policy, gpus)},
        "reward model": {"weights": frozen_state(trunk, gpus)},
        "sampling": sampling_bytes(policy, at_once, length, copied),
        "passes": {"working": asking_bytes(policy, at_once * length, gpus, False)},
    }
    steps = 2 * (1 + len(preset.ppo.kl_coefs))
    return Stage(
        "12 evaluation", memory, steps, preset.eval_samples * length, seconds, 0.0
    )


def plan(preset: Preset, gpu: GPU, gpus: int = 1, disk: float = DISK) -> list[Stage]:
    """Every stage of the pipeline.

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
    return [
        training_stage(
            "06 pretraining", preset, policy, preset.pretrain, preset.window, *where
        ),
        training_stage(
            "07 SFT",
            exact,
            policy,
            preset.sft,
            preset.window,
            *where,
            adapters=small,
        ),
        training_stage(
            "08 reward model",
            exact,
            trunk,
            preset.reward.optim,
            pair,
            *where,
            rows_each=2,
            logit_bytes=0,
        ),
        ppo_stage(exact, *where),
        evaluation_stage(exact, gpu, gpus),
    ]

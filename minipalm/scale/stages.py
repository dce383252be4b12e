"""The loops of the pipeline on given GPUs, one by one: memory, steps and seconds.

All sizes come from the preset; every answer is taken to be as long as it may be, so
sampling is an upper bound.
"""

import math
from dataclasses import dataclass, replace

from minipalm.config import OptimConfig, PaLMConfig, Preset
from minipalm.model.palm import count_parameters
from minipalm.scale.decoding import rollout_seconds
from minipalm.scale.flops import adapter_parameters
from minipalm.scale.gpu import GPU
from minipalm.scale.iteration import ppo_memory, ppo_seconds
from minipalm.scale.memory import (
    BYTES,
    LOGIT_BYTES,
    Parts,
    asking_bytes,
    frozen_state,
    network_state,
    sampling_bytes,
    total,
    training_peak,
)
from minipalm.scale.reserve import coming_and_going, verdict, waste
from minipalm.scale.seconds import forward_seconds, training_seconds
from minipalm.scale.sharding import gather_seconds

START = 120.0  # seconds a stage: notebook, data, the first compiled step (assumption)
AT_ONCE = 256  # answers that `minipalm.rlhf.answers.answer` samples at a time
FRESH = 2 * 1024  # answers of lesson 08 for the score's unit, and for its figure
LAST = 1 / 3  # of a checkpoint's bytes has a loop's last one: no moments of AdamW
DISK = 2e9  # bytes a second that a checkpoint is written with (assumption)


@dataclass(frozen=True)
class Stage:
    """One loop of the pipeline.

    Attributes:
        name: the notebook's number, and what it does there.
        memory: bytes on one GPU at the worst moment, of each network, its parts; also
            of those that only lie there.
        waste: share of what comes and goes that PyTorch may hold besides, see
            `minipalm.scale.reserve`.
        steps: optimizer steps, or iterations.
        tokens: that go through training in a step, on all GPUs together.
        step_seconds: of one step.
        checkpoint_seconds: of all checkpoints of the stage.
        phases: of a step, by name, where there are several.
    """

    name: str
    memory: dict[str, Parts]
    waste: float
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

    @property
    def pretrains(self) -> bool:
        return self.name.startswith("06")

    @property
    def held(self) -> float:
        """Bytes that PyTorch may hold beside what is allocated."""
        return self.waste * coming_and_going(self.memory)

    def fits(self, gpu: GPU) -> str:
        """ "yes", "tight" or "NO", see `minipalm.scale.reserve.verdict`."""
        return verdict(self.peak, self.held, gpu.memory)


def networks(preset: Preset) -> tuple[PaLMConfig, PaLMConfig]:
    """The shapes of the policy, and of reward model and critic."""
    return (
        replace(preset.policy, vocab_size=preset.vocab_size),
        replace(preset.reward_trunk, vocab_size=preset.vocab_size),
    )


def training_stage(
    name: str,
    network: str,
    preset: Preset,
    config: PaLMConfig,
    waiting: dict[str, Parts],
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
        network: that is trained; config: its shape.
        waiting: what else lies in memory.
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
    written = bytes_written(optim.steps, preset.checkpoint_every, kept) / disk
    everything = optim.batch_size * rows_each * length
    memory, held = {network: peak, **waiting}, waste(gpus, alternates=False)
    return Stage(name, memory, held, optim.steps, everything, seconds, written)


def policy_and_trunk(
    names: tuple[str, str],
    preset: Preset,
    optim: OptimConfig,
    gpu: GPU,
    gpus: int,
    disk: float,
    adapters: bool = False,
) -> list[Stage]:
    """Lessons 06 and 07: both networks, one after the other, with the same dials.

    The other one lies there all the time, but without gradients and moments.

    Args:
        names: of the policy's training and of the trunk's.
        adapters: whether the policy's are all that is trained of it.
    """
    policy, trunk = networks(preset)
    machine, where = preset.machine, (optim, preset.window, gpu, gpus, disk)
    first = {"weights": network_state(policy, machine, gpus, adapters)["weights"]}
    second = {"weights": network_state(trunk, machine, gpus)["weights"]}
    return [
        training_stage(
            names[0],
            "policy",
            preset,
            policy,
            {"trunk": second},
            *where,
            adapters=adapters,
        ),
        training_stage(names[1], "trunk", preset, trunk, {"policy": first}, *where),
    ]


def checkpoint_bytes(config: PaLMConfig, preset: Preset, adapters: bool) -> float:
    """Trained weights and AdamW's moments: what a run needs to go on."""
    if adapters:
        return 3 * 4 * adapter_parameters(config, preset.machine.lora_rank)
    return 3 * BYTES[preset.machine.weights] * count_parameters(config)


def bytes_written(steps: int, every: int, checkpoint: float) -> float:
    """By the checkpoints of one loop."""
    return (math.ceil(steps / every) - 1 + LAST) * checkpoint


def answers_stage(preset: Preset, gpu: GPU, gpus: int) -> Stage:
    """Lesson 08: the policy gives two answers to each prompt, and later some more.

    (Given comparisons of people leave out the first.) A step is `AT_ONCE` answers. The
    reward model lies beside the policy only when the last ones are written.
    """
    policy, trunk = networks(preset)
    P, T = preset.max_prompt, preset.max_response
    machine, rows = preset.machine, math.ceil(AT_ONCE / gpus)
    pairs = preset.reward.pairs + preset.reward.heldout_pairs
    steps = 2 * math.ceil(pairs / AT_ONCE) + math.ceil(FRESH / AT_ONCE)
    prompts = asking_bytes(policy, rows * P, gpus, head=False)
    memory: dict[str, Parts] = {
        "policy": {"weights": frozen_state(policy, gpus)},
        "reward model": {"weights": network_state(trunk, machine, gpus)["weights"]},
        "sampling": {
            **sampling_bytes(policy, rows, P + T, copied=gpus > 1),
            "prompts": prompts,
        },
    }
    seconds = rollout_seconds(policy, machine, rows, P, T, gpu)
    held, tokens = waste(gpus, alternates=True), AT_ONCE * (P + T)
    return Stage("08 answers", memory, held, steps, tokens, seconds, 0.0)


def ppo_stage(preset: Preset, gpu: GPU, gpus: int, disk: float) -> Stage:
    """Lesson 11: iterations of sampling, asking and learning, for each β."""
    policy, trunk = networks(preset)
    sizes = preset.max_prompt, preset.max_response
    args = policy, trunk, preset.machine, preset.ppo, *sizes
    phases = ppo_seconds(*args, gpu, gpus)
    steps, loops = preset.ppo.iterations, len(preset.ppo.kl_coefs)
    small = preset.machine.lora_rank > 0
    kept = checkpoint_bytes(policy, preset, small)
    kept += checkpoint_bytes(trunk, preset, False)
    written = loops * bytes_written(steps, preset.ppo_checkpoint_every, kept)
    return Stage(
        "11 PPO",
        ppo_memory(*args, gpus),
        waste(gpus, alternates=True),
        loops * steps,
        preset.ppo.batch_size * sum(sizes),
        sum(phases.values()),
        written / disk,
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
    at_once = min(rows, math.ceil(AT_ONCE / gpus))
    batches = math.ceil(rows / at_once)
    seconds = batches * rollout_seconds(policy, machine, at_once, P, T, gpu)
    seconds += 2 * forward_seconds(policy, machine, rows * length, length, gpu)
    seconds += forward_seconds(trunk, machine, rows * length, length, gpu)
    seconds += batches * 4 * gather_seconds(policy, gpu, gpus)
    policies = 1 + len(preset.ppo.kl_coefs)  # each whole, also those with adapters
    memory: dict[str, Parts] = {
        "policy": {"weights": policies * frozen_state(policy, gpus)},
        "reward model": {"weights": frozen_state(trunk, gpus)},
        "sampling": sampling_bytes(policy, at_once, length, copied=gpus > 1),
        "passes": {"working": asking_bytes(policy, at_once * length, gpus, False)},
    }
    tokens, held = preset.eval_samples * length, waste(gpus, alternates=True)
    return Stage("12 evaluation", memory, held, 2 * policies, tokens, seconds, 0.0)

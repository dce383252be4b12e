"""Bytes on the disk: checkpoints while a stage trains, results after it.

Only networks are counted. Notebooks and metrics are small; a text that is tokenized
takes two bytes a token besides, about half of its file.
"""

import math
from dataclasses import dataclass, replace

from minipalm.config import Preset
from minipalm.model.palm import count_parameters
from minipalm.scale.flops import adapter_parameters
from minipalm.scale.memory import BYTES
from minipalm.scale.stages import LAST, checkpoint_bytes, networks


@dataclass(frozen=True)
class Loop:
    """One training run of a stage.

    Attributes:
        checkpoint: bytes of one, but for the last.
        saved: how often; each replaces the one before as soon as it is whole.
        result: bytes of what later stages read.
    """

    checkpoint: float
    saved: int
    result: float

    @property
    def last(self) -> float:
        """Bytes of the last checkpoint."""
        return LAST * self.checkpoint


@dataclass(frozen=True)
class Room:
    """What a run has on the disk because of a stage, all stages before it included.

    Attributes:
        stage: the notebook's name, such as 06_palm.
        fullest: bytes at the worst moment of the stage.
        left: bytes when it is complete.
        result: bytes of that which this stage has left.
    """

    stage: str
    fullest: float
    left: float
    result: float


def rooms(preset: Preset) -> list[Room]:
    """What each stage of a batch run needs, in their order; lesson 15 is the last.

    A stage's checkpoints lie there until all its loops have ended and its results are
    written. In lesson 15 each loop is followed by its result, and its checkpoint goes.
    """
    found, left = [], 0.0
    for stage, loops in loops_of(preset).items():
        before = left
        steps = [[loop] for loop in loops] if stage == "15_offline" else [loops]
        fullest = left
        for together in steps:
            fullest = max(fullest, left + worst_moment(together))
            left += sum(loop.result for loop in together)
        found.append(Room(stage, fullest, left, left - before))
    return found


def worst_moment(loops: list[Loop]) -> float:
    """Bytes of loops that run one after the other, and whose results are written last.

    Either a loop replaces its checkpoint, and for a moment has two; or all have ended,
    and the results stand beside the last checkpoints.
    """
    moments, kept = [0.0], 0.0
    for loop in loops:
        sizes = [loop.checkpoint] * (loop.saved - 1) + [loop.last] * (loop.saved > 0)
        moments += [kept + sum(sizes[:2]), kept + sum(sizes[-2:])]
        kept += sum(sizes[-1:])
    return max(*moments, kept + sum(loop.result for loop in loops))


def loops_of(preset: Preset) -> dict[str, list[Loop]]:
    """The training runs of each stage, as its notebook has them."""
    policy, trunk = networks(preset)
    machine, methods = preset.machine, preset.methods
    exact = replace(preset, machine=replace(machine, weights="float32"))
    adapters = machine.lora_rank > 0
    trained = count_parameters(policy)
    sft_result = 4 * trained
    if adapters:  # SFT's are added into frozen weights, those of later stages are not
        sft_result = BYTES[machine.compute] * trained
        trained = adapter_parameters(policy, machine.lora_rank)
    judge = count_parameters(trunk) + trunk.dim + 1  # reward model or critic
    tuned = checkpoint_bytes(policy, exact, adapters)

    def loop(checkpoint: float, steps: int, result: float) -> Loop:
        return Loop(checkpoint, math.ceil(steps / preset.checkpoint_every), result)

    def ppo(iterations: int, critic: int = judge) -> Loop:
        saved = math.ceil(iterations / preset.ppo_checkpoint_every)
        return Loop(tuned + 12 * critic, saved, 4 * trained)

    stored = BYTES[machine.weights]
    sizes = count_parameters(policy), count_parameters(trunk)
    steps, groups = preset.sft.steps, (methods.rloo, methods.grpo)
    return {
        "06_palm": [
            loop(3 * stored * size, preset.pretrain.steps, stored * size)
            for size in sizes
        ],
        "07_sft": [
            loop(tuned, steps, sft_result),
            loop(12 * sizes[1], steps, 4 * sizes[1]),
        ],
        "08_reward_model": [loop(12 * judge, preset.reward.optim.steps, 4 * judge)],
        "11_ppo": [ppo(preset.ppo.iterations) for _ in preset.ppo.kl_coefs],
        "12_evaluation": [],
        "15_offline": [
            ppo(methods.offline.ppo.iterations),
            loop(tuned, methods.dpo.optim.steps, 4 * trained),
            *(ppo(one.iterations, critic=0) for one in groups),
        ],
    }

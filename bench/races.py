"""The list of races: who against whom, at what, and what the aim is."""

from collections.abc import Callable
from dataclasses import dataclass

from bench import shapes
from bench.environment import pinned
from bench.race import Side


@dataclass(frozen=True)
class Race:
    """One line of the table.

    Attributes:
        task: what both sides do.
        peer: who the other one is.
        goal: how many times as fast we want to be.
        sides: makes both, ours first.
        pairs: timed steps of each; where a step takes a minute, 5.
    """

    task: str
    peer: str
    goal: float
    sides: Callable[[], tuple[Side, Side]]
    pairs: int = 9


# Peers are imported where a race begins: the course's own .venv has none of them.


def train_palm(flash: bool) -> tuple[Side, Side]:
    from bench import ours, peer_palm

    return ours.training_step(), peer_palm.training_step(flash)


def train_xt(flash: bool) -> tuple[Side, Side]:
    from bench import ours, peer_xt

    return ours.training_step(), peer_xt.training_step(flash)


def sample_palm() -> tuple[Side, Side]:
    from bench import ours, peer_palm

    return ours.generation(), peer_palm.generation()


def sample_xt(flash: bool) -> tuple[Side, Side]:
    from bench import ours, peer_xt

    return ours.generation(), peer_xt.generation(flash)


def ppo_palm() -> tuple[Side, Side]:
    from bench import ours, peer_palm

    return ours.ppo(), peer_palm.ppo()


def ppo_trl() -> tuple[Side, Side]:
    from bench import ours, peer_trl

    return ours.ppo(), peer_trl.ppo()


def sft_trl() -> tuple[Side, Side]:
    from bench import ours, peer_trl

    data = shapes.demonstrations(32 * shapes.DEMONSTRATIONS)
    return ours.sft_step(data), peer_trl.sft_step(data)


def reward_trl() -> tuple[Side, Side]:
    from bench import ours, peer_trl

    data = shapes.pairs(32 * shapes.PAIRS)
    return ours.reward_model_step(data), peer_trl.reward_model_step(data)


NAMES = ["palm-rlhf-pytorch", "x-transformers", "trl"]
PALM, XT, TRL = (f"{name} {pinned()[name]}" for name in NAMES)
FLASH = ", flash attention"

RACES = {
    "train-palm": Race("training step", PALM, 1.3, lambda: train_palm(False)),
    "train-palm-flash": Race(
        "training step", PALM + FLASH, 1.1, lambda: train_palm(True)
    ),
    "train-xt": Race("training step", XT, 1.1, lambda: train_xt(False)),
    "train-xt-flash": Race("training step", XT + FLASH, 1.1, lambda: train_xt(True)),
    "sample-palm": Race("generation", PALM, 12, sample_palm, pairs=5),
    "sample-xt": Race("generation", XT, 1.5, lambda: sample_xt(False)),
    "sample-xt-flash": Race("generation", XT + FLASH, 1.5, lambda: sample_xt(True)),
    "ppo-palm": Race("PPO update", PALM, 4, ppo_palm, pairs=5),
    "ppo-trl": Race("PPO update", TRL, 1.15, ppo_trl),
    "reward-trl": Race("reward-model step", TRL, 1.15, reward_trl, pairs=15),
    "sft-trl": Race("SFT step", TRL, 1.15, sft_trl, pairs=15),
}

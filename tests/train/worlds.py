"""The four loops in worlds of a few tokens: a run of each takes a tenth of a second.

WORLDS["ppo"](folder)                   train to the end, or resume
WORLDS["ppo"](folder, stop=3)           raise Stopped inside step 3, before its save
"""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import torch

from minipalm.config import (
    DPOConfig,
    GroupConfig,
    MachineConfig,
    OfflineConfig,
    OptimConfig,
    PaLMConfig,
    PPOConfig,
    RewardConfig,
)
from minipalm.model.palm import PaLM
from minipalm.model.place import fine_tuned, place
from minipalm.rlhf.critic import Critic
from minipalm.rlhf.log import log_answers
from minipalm.rlhf.pairs import Pairs
from minipalm.rlhf.reward import RewardModel
from minipalm.rlhf.sft import pack_examples
from minipalm.train.dpo import train_dpo
from minipalm.train.group import train_group
from minipalm.train.language_model import train_language_model
from minipalm.train.offline import train_offline
from minipalm.train.ppo import train_ppo
from minipalm.train.reward_model import train_reward_model
from minipalm.train.run import Run
from minipalm.train.sft import train_sft

NET = PaLMConfig(vocab_size=11, dim=8, depth=1, heads=2, head_dim=4)
OPTIM = OptimConfig(steps=6, batch_size=4, lr=1e-2, weight_decay=0.1)
PPO = PPOConfig(
    iterations=6,
    batch_size=8,
    minibatch_size=4,
    epochs=2,
    policy_lr=1e-2,
    value_lr=1e-2,
    kl_target=0.01,
    kl_horizon=40,  # far from the target, near the horizon: β moves at every step
)
EOS = 2


class Stopped(Exception):
    pass


class StoppingRun(Run):
    stop: int | None = None  # raise in this step, when all of it is done but the save

    def log(self, step, **metrics):
        super().log(step, **metrics)
        if step == self.stop:
            raise Stopped


def begin(folder, stop):
    run = StoppingRun(folder, seed=3)
    run.stop = stop
    return run


def draw(*shape, seed=0):
    """Tokens that are none of the special ones."""
    return torch.randint(3, 11, shape, generator=torch.Generator().manual_seed(seed))


def network(init):
    return PaLM(NET, torch.Generator().manual_seed(init))


def lying(model, placed, trained=True):
    """The network as it is, or laid out over the processes that there are.

    placed: True for a machine as it is by default, or another machine.
    """
    if not placed:
        return model
    machine = MachineConfig() if placed is True else placed
    if trained and machine.lora_rank and isinstance(model, PaLM):
        return fine_tuned(model, machine)
    return place(model, machine, trained)


def language_model(folder, stop=None, every=2, init=0, config=OPTIM, placed=False):
    model = lying(network(init), placed)
    train_language_model(model, draw(90), 10, config, begin(folder, stop), 3, every)
    return {"model": model}


def sft(folder, stop=None, every=2, init=0, config=OPTIM, placed=False):
    examples = [
        (row[: 2 + n % 3].tolist(), [*row[5 : 7 + n % 4].tolist(), EOS])
        for n, row in enumerate(draw(20, 10))
    ]
    model = lying(network(init), placed)
    rows = pack_examples(examples, 16)
    train_sft(model, rows, config, begin(folder, stop), 3, every)
    return {"model": model}


def pairs(n=10):
    """Ragged, and the better answer of each begins with a 5."""
    prompts, chosen, rejected = draw(n, 3), draw(n, 4, seed=1), draw(n, 4, seed=2)
    chosen[:, 0], rejected[:, 0] = 5, 6
    lengths = torch.arange(n)[:, None]
    mask = torch.arange(4) < 2 + lengths % 3
    prompt_mask = torch.arange(3) >= lengths % 2
    return Pairs(prompts, prompt_mask, chosen, mask, rejected, mask.flip(0))


def reward_model(folder, stop=None, every=2, init=0, config=OPTIM, placed=False):
    generator = torch.Generator().manual_seed(init)
    model = lying(RewardModel(PaLM(NET, generator), "last", generator), placed)
    config = RewardConfig(config, pairs=10, heldout_pairs=0)
    train_reward_model(model, pairs(), config, begin(folder, stop), 3, every)
    return {"model": model}


def share_of_fives(prompts, prompt_mask, responses, mask):
    """A reward that any policy can learn."""
    return ((responses == 5) & mask).sum(1) / mask.sum(1)


def ppo(
    folder,
    stop=None,
    every=2,
    init=0,
    config=PPO,
    reward=share_of_fives,
    kl_coef=0.1,
    placed=False,
    **more,
):
    policy = lying(network(init), placed)
    reference = lying(network(0), placed, trained=False)
    with torch.random.fork_rng():
        torch.manual_seed(init)
        critic = lying(Critic(network(init + 1), "last"), placed)
    prompts = draw(9, 3)
    train_ppo(
        policy,
        reference,
        critic,
        reward,
        prompts,
        torch.ones_like(prompts, dtype=torch.bool),
        config,
        begin(folder, stop),
        3,
        kl_coef=kl_coef,
        max_response=5,
        eos_id=EOS,
        checkpoint_every=every,
        **more,
    )
    return {"policy": policy, "critic": critic}


WORLDS = {f.__name__: f for f in (language_model, sft, reward_model, ppo)}


# --- lesson 15's methods --------------------------------------------------------------

OFFLINE = OfflineConfig(replace(PPO, kl_target=None))
DPO = DPOConfig(OPTIM, beta=0.2, label_smoothing=0.1)
RLOO = GroupConfig(
    method="rloo",
    iterations=6,
    batch_size=8,
    group_size=4,
    minibatch_size=4,
    epochs=2,
    lr=1e-2,
    kl_coef=0.1,
)
GRPO = replace(RLOO, method="grpo")


def asked():
    prompts = draw(9, 3)
    return prompts, torch.ones_like(prompts, dtype=torch.bool)


def a_log(policy=None, **how):
    return log_answers(
        policy or network(0),
        share_of_fives,
        *asked(),
        config=PPO,
        max_response=5,
        eos_id=EOS,
        generator=torch.Generator().manual_seed(5),
        **how,
    )


def offline(folder, stop=None, init=0, config=OFFLINE, placed=False):
    policy = lying(network(init), placed)
    reference = lying(network(0), placed, trained=False)
    with torch.random.fork_rng():
        torch.manual_seed(init)
        critic = lying(Critic(network(init + 1), "last"), placed)
    run = begin(folder, stop)
    train_offline(
        policy, reference, critic, a_log(), config, run, 3, kl_coef=0.1,
        checkpoint_every=2,
    )  # fmt: skip
    return {"policy": policy, "critic": critic}


def dpo(folder, stop=None, init=0, config=DPO, reference=None, placed=False):
    policy = lying(network(init), placed)
    reference = reference or lying(network(0), placed, trained=False)
    train_dpo(policy, reference, pairs(), config, begin(folder, stop), 3, 2)
    return {"policy": policy}


def rloo(folder, stop=None, init=0, config=RLOO, reference=None, placed=False):
    policy = lying(network(init), placed)
    train_group(
        policy,
        reference or lying(network(0), placed, trained=False),
        share_of_fives,
        *asked(),
        config,
        begin(folder, stop),
        3,
        max_response=5,
        eos_id=EOS,
        checkpoint_every=2,
    )
    return {"policy": policy}


def grpo(folder, stop=None, init=0, config=GRPO, reference=None, placed=False):
    return rloo(folder, stop, init, config, reference, placed)


METHODS = {f.__name__: f for f in (offline, dpo, rloo, grpo)}


def left_by(folder: Path) -> dict[str, bytes]:
    """Every file of a run, hidden ones too: parameters, the states of the generators,
    β and metrics are all in there, and until it has ended Adam's memory."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# --- a process that is killed ---------------------------------------------------------


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def die_at_touch(number: int, folder: Path) -> None:
    """kill -9 this process just before its number-th operation on a file in folder.

    Python tells its audit hooks of every open, mkdir, rename, remove and rmdir.
    """
    touches = 0
    inside = str(folder)

    def hook(event, arguments):
        nonlocal touches
        if event == "open" or event.startswith(("os.", "shutil.")):
            if any(str(a).startswith(inside) for a in arguments if a is not None):
                if touches == number:
                    die()
                touches += 1

    sys.addaudithook(hook)


def quiet() -> None:
    """In a process of its own: no bar, one thread."""
    torch.set_num_threads(1)
    sys.stderr = open(os.devnull, "w")


def train_and_die(world: str, folder: Path, number: int) -> None:
    quiet()
    die_at_touch(number, folder)
    WORLDS[world](folder, every=1, config=short(world))


def train(world: str, folder: Path) -> None:
    quiet()
    WORLDS[world](folder, every=1, config=short(world))


def short(world: str):
    if world == "ppo":
        return replace(PPO, iterations=2)
    return replace(OPTIM, steps=2)

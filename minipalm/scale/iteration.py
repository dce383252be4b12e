"""One iteration of PPO, phase by phase: seconds, and memory at the worst moment."""

import math

from minipalm.config import MachineConfig, PaLMConfig, PPOConfig
from minipalm.scale.decoding import rollout_seconds
from minipalm.scale.gpu import GPU
from minipalm.scale.memory import (
    LOGIT_BYTES,
    Parts,
    asking_bytes,
    frozen_state,
    network_state,
    sampling_bytes,
    total,
    training_peak,
)
from minipalm.scale.seconds import forward_seconds, training_seconds
from minipalm.scale.sharding import gather_seconds


def ppo_seconds(
    policy: PaLMConfig,
    trunk: PaLMConfig,
    machine: MachineConfig,
    ppo: PPOConfig,
    max_prompt: int,
    max_response: int,
    gpu: GPU,
    gpus: int = 1,
) -> dict[str, float]:
    """The phases of one PPO iteration.

    Args:
        policy, trunk: of the policy, and of reward model and critic.
        ppo: batch, minibatch and micro-batch are answers; the first two of all GPUs.
    """
    length, rows = max_prompt + max_response, ppo.batch_size / gpus
    micro = min(ppo.micro_batch or ppo.minibatch_size, rows)
    adapters = machine.lora_rank > 0
    passes = math.ceil(rows / micro)

    def ask(config: PaLMConfig) -> float:
        gathered = passes * gather_seconds(config, gpu, gpus)
        return forward_seconds(config, machine, rows * length, length, gpu) + gathered

    def learn(config: PaLMConfig, small: bool) -> float:
        steps = ppo.epochs * math.ceil(ppo.batch_size / ppo.minibatch_size)
        each = ppo.minibatch_size / gpus
        parts = math.ceil(each / min(micro, each))
        one = training_seconds(
            config, machine, each, length, gpu, gpus, parts, adapters=small
        )
        return steps * one

    refresh = gather_seconds(policy, gpu, gpus)
    answers = math.ceil(rows)
    sample = rollout_seconds(policy, machine, answers, max_prompt, max_response, gpu)
    phases = {"rollout": refresh + sample}
    if not ppo.reuse_logprobs:
        phases["old log-probs"] = ask(policy)
    return phases | {
        "reference log-probs": ask(policy),
        "values and scores": 2 * ask(trunk),
        "train policy": learn(policy, adapters),
        "train critic": learn(trunk, False),
    }


def ppo_memory(
    policy: PaLMConfig,
    trunk: PaLMConfig,
    machine: MachineConfig,
    ppo: PPOConfig,
    max_prompt: int,
    max_response: int,
    gpus: int = 1,
) -> dict[str, Parts]:
    """Memory of a PPO iteration at its worst moment: of each network, its parts.

    Four networks are there all the time. Sampling adds a copy and a cache, which stay,
    unless the policy is sharded: its copy is given up before learning begins. Learning
    adds a micro-batch's activations, the policy's first, then the critic's; the
    gradients of both wait for the same step. Logits are computed of answers only.
    """
    length, rows = max_prompt + max_response, math.ceil(ppo.batch_size / gpus)
    minibatch = math.ceil(ppo.minibatch_size / gpus)
    micro = min(ppo.micro_batch or minibatch, minibatch)
    tokens, several = micro * length, minibatch > micro
    adapters = machine.lora_rank > 0
    copied = (machine.decoder or gpus > 1) and not adapters
    sampling = sampling_bytes(policy, rows, length, copied)
    logits = LOGIT_BYTES * max_response // length
    learning = {
        "policy": training_peak(
            policy, machine, tokens, gpus, adapters, several, logits
        ),
        "critic": training_peak(trunk, machine, tokens, gpus, False, several, 0),
    }
    resting = {name: at_rest(parts) for name, parts in learning.items()}
    gradients = {
        "policy": network_state(policy, machine, gpus, adapters)["gradients"],
        "critic": network_state(trunk, machine, gpus)["gradients"] * several,
    }
    base: dict[str, Parts] = {
        "reference": {"weights": 0.0 if adapters else frozen_state(policy, gpus)},
        "reward model": {"weights": frozen_state(trunk, gpus)},
        "sampling": {} if gpus > 1 else {**sampling, "working": 0.0},
    }
    prompts = asking_bytes(policy, rows * max_prompt, gpus, head=False)
    asked = asking_bytes(policy, tokens, gpus)
    moments: list[dict[str, Parts]] = [
        {**base, **resting, "sampling": {**sampling, "prompts": prompts}},
        {**base, **resting, "passes": {"working": asked}},
    ]
    for name, other in (("policy", "critic"), ("critic", "policy")):
        waiting = {**resting[other], "gradients": gradients[other]}
        moments.append({**base, name: learning[name], other: waiting})
    return max(moments, key=lambda one: sum(map(total, one.values())))


def at_rest(parts: Parts) -> Parts:
    """What a trained network holds between steps."""
    return {name: parts[name] for name in ("weights", "moments")}

"""Iterations of PPO at full size, phase by phase, as `train_ppo` does them."""

from dataclasses import replace
from typing import Any

import torch

from bench.full.measure import (
    Numbers,
    Sizes,
    clear,
    device,
    log,
    network,
    now,
    peak,
    token_rows,
)
from minipalm.clock import Clock
from minipalm.config import MachineConfig
from minipalm.model.place import fine_tuned, place
from minipalm.parallel import ranks
from minipalm.rlhf.critic import critic_from_reward_model
from minipalm.rlhf.ppo import ppo_update
from minipalm.rlhf.reward import RewardModel
from minipalm.rlhf.rollout import collect
from minipalm.rlhf.sampling import Sampler
from minipalm.train.optim import adamw, set_lr


def ppo_lora(sizes: Sizes) -> Numbers:
    """One GPU: adapters of rank 16; policy, reference and sampler share the trunk."""
    return iterations(sizes, lora_rank=16, recompute=False)


def ppo_full(sizes: Sizes) -> Numbers:
    """Several GPUs: all weights of policy and critic, float32, sharded."""
    return iterations(sizes, lora_rank=0, recompute=True)


def iterations(
    sizes: Sizes, lora_rank: int, recompute: bool, times: int = 3
) -> Numbers:
    preset, config = sizes.preset, sizes.preset.ppo
    if lora_rank:
        config = replace(config, micro_batch=config.micro_batch // 2)  # as full-lora
    machine = MachineConfig(
        device="auto",
        compute="bfloat16",
        compile=True,
        decoder=True,
        lora_rank=lora_rank,
        recompute=recompute,
    )
    start = network(sizes.policy)
    reference = place(start, machine, trained=False)
    policy = fine_tuned(start, machine, reference)
    del start
    model = RewardModel(network(sizes.trunk), preset.reward.pooling)
    first_critic = critic_from_reward_model(model)
    model.head.float()  # as `place` expects it
    first_critic.head.float()
    critic = place(first_critic, machine)
    reward = place(model, machine, trained=False)
    del model, first_critic
    clear()
    optimizers = adamw(policy, eps=config.adam_eps), adamw(critic, eps=config.adam_eps)
    set_lr(optimizers[0], config.policy_lr)
    set_lr(optimizers[1], config.value_lr)
    world = ranks().world
    clock, sample = Clock(policy), Sampler(policy)
    prompts = token_rows(sizes.policy, config.batch_size, preset.max_prompt)
    generator = torch.Generator(device()).manual_seed(0)
    shuffle = torch.Generator().manual_seed(0)
    found: dict[str, Any] = {}
    for iteration in range(times):
        begin = now()
        rollout = collect(
            policy,
            reference,
            critic,
            reward,
            prompts,
            torch.ones_like(prompts, dtype=torch.bool),
            config=config,
            max_response=preset.max_response,
            eos_id=sizes.policy.vocab_size + 1,  # never drawn: answers of full length
            kl_coef=config.kl_coefs[0],
            generator=generator,
            sample=sample,
            clock=clock,
        )
        with clock.phase("update"):
            ppo_update(
                policy,
                critic,
                rollout,
                *optimizers,
                replace(config, micro_batch=config.micro_batch * world),
                shuffle,
            )
        seconds = now() - begin
        allocated = peak()
        found = {f"{k}": v for k, v in clock.lap(rollout.mask.numel()).items()}
        if iteration == 0:
            first = seconds
        log(f"iteration {iteration}: {seconds:.2f} s, {found}")
        del rollout
    reserved = (
        torch.cuda.max_memory_reserved() / 2**30 if policy.norm.weight.is_cuda else 0
    )
    return {
        **found,
        "seconds": seconds,
        "first_iteration": first,
        "peak_gib": allocated,
        "reserved_gib": reserved,
        "gpus": world,
    }

"""Iterations of PPO at full size, phase by phase, as `train_ppo` does them."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bench.full.measure import (
    Numbers,
    Sizes,
    clear,
    device,
    log,
    network,
    now,
    peak,
    reserved,
    token_rows,
)
from minipalm.clock import Clock
from minipalm.config import MachineConfig, PPOConfig
from minipalm.model.palm import PaLM
from minipalm.model.place import fine_tuned, place
from minipalm.parallel import of_all, ranks
from minipalm.rlhf.critic import Critic, critic_from_reward_model
from minipalm.rlhf.logprobs import response_logits, token_logprobs
from minipalm.rlhf.ppo import PPOStats, ppo_update
from minipalm.rlhf.reward import RewardModel
from minipalm.rlhf.rollout import Rollout, collect
from minipalm.rlhf.sampling import Sampler
from minipalm.train.optim import adamw, set_lr


def ppo_lora(sizes: Sizes) -> Numbers:
    """One GPU: adapters of rank 16; policy, reference and sampler share the trunk."""
    return iterations(sizes, lora_rank=16, recompute=False)


def ppo_full(sizes: Sizes) -> Numbers:
    """Several GPUs: all weights of policy and critic, float32, sharded."""
    return iterations(sizes, lora_rank=0, recompute=True)


@dataclass
class Run:
    """The four networks, and what an iteration needs besides."""

    sizes: Sizes
    config: PPOConfig
    policy: PaLM
    reference: PaLM
    critic: Critic
    reward: RewardModel

    def __post_init__(self) -> None:
        config, sizes = self.config, self.sizes
        self.optimizers = tuple(
            adamw(one, eps=config.adam_eps) for one in (self.policy, self.critic)
        )
        set_lr(self.optimizers[0], config.policy_lr)
        set_lr(self.optimizers[1], config.value_lr)
        self.clock, self.sample = Clock(self.policy), Sampler(self.policy)
        size = config.batch_size, sizes.preset.max_prompt
        self.prompts = token_rows(sizes.policy, *size)
        self.generator = torch.Generator(device()).manual_seed(0)
        self.shuffle = torch.Generator().manual_seed(0)

    def collected(self, config: PPOConfig) -> Rollout:
        return collect(
            self.policy,
            self.reference,
            self.critic,
            self.reward,
            self.prompts,
            torch.ones_like(self.prompts, dtype=torch.bool),
            config=config,
            max_response=self.sizes.preset.max_response,
            eos_id=self.sizes.policy.vocab_size + 1,  # never drawn: all of full length
            kl_coef=config.kl_coefs[0],
            generator=self.generator,
            sample=self.sample,
            clock=self.clock,
        )

    def updated(self, rollout: Rollout, config: PPOConfig) -> PPOStats:
        micro = of_all(config.micro_batch)
        with self.clock.phase("update"):
            return ppo_update(
                self.policy,
                self.critic,
                rollout,
                *self.optimizers,
                replace(config, micro_batch=micro),
                self.shuffle,
            )


def prepared(sizes: Sizes, lora_rank: int, recompute: bool) -> Run:
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
    return Run(sizes, config, policy, reference, critic, reward)


def iterations(
    sizes: Sizes, lora_rank: int, recompute: bool, times: int = 3
) -> Numbers:
    run = prepared(sizes, lora_rank, recompute)
    found: dict[str, Any] = {}
    for iteration in range(times):
        begin = now()
        rollout = run.collected(run.config)
        run.updated(rollout, run.config)
        seconds = now() - begin
        allocated, held = peak(), reserved()
        found = run.clock.lap(rollout.prompts.numel() + rollout.mask.numel())
        if iteration == 0:
            first = seconds
        log(f"iteration {iteration}: {seconds:.2f} s, {found}")
        del rollout
    return {
        **found,
        "seconds": seconds,
        "first_iteration": first,
        "peak_gib": allocated,
        "reserved_gib": held,
        "gpus": ranks().world,
    }


# --- whose log-probabilities are the old ones ---------------------------------------


def old_logprobs(sizes: Sizes) -> Numbers:
    """An iteration with the sampler's log-probabilities as π_old, and one with those
    of a further pass, as training computes them. Adapters, one GPU."""
    run = prepared(sizes, lora_rank=16, recompute=False)
    found: Numbers = {}
    for times in range(2):  # the first compiles
        for name, reuse in ("recomputed", False), ("reused", True):
            config = replace(run.config, reuse_logprobs=reuse)
            start = now()
            rollout = run.collected(config)
            between_phases = now()
            ratio = first_ratios(run.policy, rollout, config)
            apart = now() - between_phases
            stats = run.updated(rollout, config)
            seconds = now() - start - apart
            lap = run.clock.lap(rollout.prompts.numel() + rollout.mask.numel())
            outside = (ratio - 1).abs() > config.clip
            numbers = {
                "seconds": seconds,
                "ratio": ratio.mean().item(),
                "farthest": ratio.log().abs().max().item(),  # nats
                "gap": ratio.log().abs().mean().item(),  # nats a token
                "outside": outside.float().mean().item(),
                "clip_fraction": stats.clip_fraction,
                "approx_kl": stats.approx_kl,
            }
            if not reuse:
                numbers["pass_seconds"] = lap.get("seconds/logprobs", 0.0)
                numbers["sampler_gap"] = lap["sampler_gap"]
            found |= {f"{name}/{key}": value for key, value in numbers.items()}
            log(f"{name}, time {times}: {numbers}")
            del rollout
    return found


def first_ratios(policy: PaLM, rollout: Rollout, config: PPOConfig) -> Tensor:
    """π/π_old of every token before the first step, by training's own pass."""
    said = []
    for begin in range(0, len(rollout), config.micro_batch):
        micro = rollout[begin : begin + config.micro_batch]
        logits = response_logits(policy, *micro.tokens, temperature=config.temperature)
        said.append(token_logprobs(logits, micro.responses).detach())
    return (torch.cat(said) - rollout.logprobs).exp()[rollout.mask]

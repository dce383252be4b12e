"""PPO, as a loop: answer, score, improve, again."""

from collections.abc import Callable
from dataclasses import asdict, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from minipalm.clock import Clock
from minipalm.config import PPOConfig
from minipalm.model.palm import PaLM
from minipalm.model.place import beside
from minipalm.parallel import of_all
from minipalm.rlhf.critic import Critic
from minipalm.rlhf.gae import explained_variance
from minipalm.rlhf.kl import KLController
from minipalm.rlhf.ppo import ppo_update
from minipalm.rlhf.rollout import Reward, Rollout, collect
from minipalm.rlhf.sampling import Sampler
from minipalm.train.optim import adamw, lr_scale, set_lr
from minipalm.train.run import Run, steps_left


def rollout_metrics(rollout: Rollout, eos_id: int) -> dict[str, float]:
    """What the policy did in one iteration, means over its answers.

    Returns:
        score: reward of an answer, the penalty for a missing end included.
        kl: log π − log π_ref summed over an answer, nats (k1: noisy, unbiased).
        length: tokens, the end-of-sequence token included.
        unfinished: share of answers without one.
        entropy: −log π of the sampled tokens, nats a token.
        explained_variance: of the critic before the update, see `explained_variance`.
        advantage_mean, advantage_sd: of the tokens, before whitening takes them away.
    """
    mask = rollout.mask
    finished = (mask & (rollout.responses == eos_id)).any(1)
    advantages = (rollout.returns - rollout.values)[mask]
    return {
        "score": rollout.scores.mean().item(),
        "kl": (rollout.logprobs - rollout.ref_logprobs).sum(1).mean().item(),
        "length": mask.sum(1).float().mean().item(),
        "unfinished": 1 - finished.float().mean().item(),
        "entropy": -(rollout.logprobs.sum() / mask.sum()).item(),
        "explained_variance": explained_variance(rollout.values, rollout.returns, mask),
        "advantage_mean": advantages.mean().item(),
        "advantage_sd": advantages.std(correction=0).item(),
    }


def train_ppo(
    policy: PaLM,
    reference: PaLM,
    critic: Critic,
    reward: Reward,
    prompts: Int[Tensor, "N P"],
    prompt_mask: Bool[Tensor, "N P"],
    config: PPOConfig,
    run: Run,
    seed: int,
    *,
    kl_coef: float,
    max_response: int,
    eos_id: int,
    checkpoint_every: int = 10,
    measure: Callable[[Rollout], dict[str, float]] | None = None,
) -> None:
    """Raise the reward of the policy's answers, not far from the reference.

    Args:
        policy, critic: changed in place.
        reference: the policy as it was before; never changed.
        reward: a RewardModel, or any function of its signature (see `text_reward`);
            one that draws random numbers makes a resumed run differ.
        prompts, prompt_mask: left-padded; each iteration draws some with replacement.
        config: see PPOConfig.
        run: where metrics and checkpoints go; resumes by itself.
        seed: of prompts, samples and minibatches.
        kl_coef: β to begin with; fixed unless config.kl_target is given.
        max_response, eos_id: see `collect`.
        checkpoint_every: iterations; the last is kept in any case.
        measure: more numbers to log about each iteration's answers.

    Raises:
        TrainingError: a loss is no number any more, or an invariant does not hold.
    """
    clock, sample = Clock(policy), Sampler(policy)
    prompts, prompt_mask = beside(policy, prompts), beside(policy, prompt_mask)
    together = replace(config, micro_batch=of_all(config.micro_batch))
    policy_optimizer = adamw(policy, eps=config.adam_eps)
    critic_optimizer = adamw(critic, eps=config.adam_eps)
    kl = KLController(kl_coef, config.kl_target, config.kl_horizon)
    generator = torch.Generator().manual_seed(seed)
    sampler = torch.Generator().manual_seed(seed + 1)  # a stream of its own
    modules = {"policy": policy, "critic": critic}
    optimizers = {
        "policy_optimizer": policy_optimizer,
        "critic_optimizer": critic_optimizer,
    }
    generators = {"generator": generator, "sampler": sampler}
    start, state = run.resume(config.iterations, modules, optimizers, generators)
    kl.coef = state.get("kl_coef", kl_coef)
    for step, bar in steps_left(start, config.iterations, run.name):
        rows = torch.randint(len(prompts), (config.batch_size,), generator=generator)
        with run.guarding(step):
            rollout = collect(
                policy,
                reference,
                critic,
                reward,
                prompts[rows],
                prompt_mask[rows],
                config=config,
                max_response=max_response,
                eos_id=eos_id,
                kl_coef=kl.coef,
                generator=sampler,
                sample=sample,
                clock=clock,
            )
        share = lr_scale(step, config.iterations, config.warmup, config.final_lr)
        set_lr(policy_optimizer, config.policy_lr * share)
        set_lr(critic_optimizer, config.value_lr * share)
        with clock.phase("update"):
            stats = ppo_update(
                policy,
                critic,
                rollout,
                policy_optimizer,
                critic_optimizer,
                together,
                generator,
            )
        metrics = {**rollout_metrics(rollout, eos_id), **asdict(stats)}
        run.check_finite(step, **metrics)
        run.check_weights(step, modules)
        if measure is not None:
            metrics |= measure(rollout)
        lap = clock.lap(rollout.prompts.numel() + rollout.responses.numel())
        run.log(step, kl_coef=kl.coef, **metrics, **lap)
        bar.set_postfix(
            loss=f"{stats.policy_loss + stats.value_loss:.3f}",
            reward=f"{metrics['score']:.2f}",
            kl=f"{metrics['kl']:.1f}",
            refresh=False,
        )
        kl.update(metrics["kl"], len(rollout))
        if step % checkpoint_every == 0 or step == config.iterations:
            run.save(
                step,
                config.iterations,
                modules,
                optimizers,
                generators,
                kl_coef=kl.coef,
            )

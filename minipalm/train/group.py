"""RLOO and GRPO, as one loop: they differ in advantages and loss only."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from minipalm.clock import Clock
from minipalm.config import GroupConfig
from minipalm.model.palm import PaLM
from minipalm.model.place import beside
from minipalm.parallel import summed
from minipalm.rlhf.group import Groups, collect_groups, group_loss
from minipalm.rlhf.kl import k3
from minipalm.rlhf.logprobs import masked_mean
from minipalm.rlhf.rollout import Reward
from minipalm.rlhf.sampling import Sampler
from minipalm.train.optim import adamw, lr_scale, micro_batches, set_lr
from minipalm.train.run import Run, steps_left


def group_update(
    policy: PaLM,
    groups: Groups,
    optimizer: torch.optim.Optimizer,
    config: GroupConfig,
    generator: torch.Generator,
) -> dict[str, float]:
    """Improve the policy on one batch of answers: epochs × minibatches of steps.

    The advantages were worked out over whole groups before, so a minibatch may part
    the answers of a prompt. It is cut into parts that fit into memory, and shared out
    where several processes train together: the gradients add up to its own.

    Args:
        policy: changed in place.
        groups: from the policy as it is now; not changed.
        optimizer: of the policy.
        config: epochs, minibatch_size, micro_batch (answers of a backward pass, on each
            machine) and grad_clip are read, and what the loss needs.
        generator: draws the orders; on the CPU.

    Returns:
        loss, approx_kl (KL(π_old ‖ π), k3, nats a token) and grad_norm (before
        clipping), means over the steps; and their number, steps.
    """
    done = []
    for _ in range(config.epochs):
        order = torch.randperm(len(groups), generator=generator)
        for rows in order.split(config.minibatch_size):
            rows = rows.to(groups.prompts.device)
            total, loss, moved = groups.mask[rows].sum(), 0.0, 0.0
            for part in micro_batches(rows, config.micro_batch):
                batch = groups[part]
                partial, logprobs = group_loss(policy, batch, config)
                partial = partial * (len(part) / len(rows))  # a mean over answers
                partial.backward()
                apart = k3(batch.logprobs, logprobs)
                loss += summed(partial).item()
                moved += summed(masked_mean(apart, batch.mask, total)).item()
            norm = clip_grad_norm_(policy.parameters(), config.grad_clip)
            optimizer.step()
            optimizer.zero_grad()
            done.append((loss, moved, norm.item()))
    means = (sum(column) / len(done) for column in zip(*done))
    stats = dict(zip(("loss", "approx_kl", "grad_norm"), means))
    return {**stats, "steps": len(done)}


def groups_metrics(groups: Groups, eos_id: int, group_size: int) -> dict[str, float]:
    """What the policy did in one iteration, means over its answers.

    Returns:
        score, kl, length, unfinished, entropy: see `rollout_metrics` in train/ppo.py.
        flat: share of prompts whose answers all have the same score. They teach
        nothing (but for the KL).
    """
    mask, scores = groups.mask, groups.scores.view(-1, group_size)
    finished = (mask & (groups.responses == eos_id)).any(1)
    return {
        "score": scores.mean().item(),
        "kl": (groups.logprobs - groups.ref_logprobs).sum(1).mean().item(),
        "length": mask.sum(1).float().mean().item(),
        "unfinished": 1 - finished.float().mean().item(),
        "entropy": -(groups.logprobs.sum() / mask.sum()).item(),
        "flat": (scores.amax(1) == scores.amin(1)).float().mean().item(),
    }


def train_group(
    policy: PaLM,
    reference: PaLM,
    reward: Reward,
    prompts: Int[Tensor, "N P"],
    prompt_mask: Bool[Tensor, "N P"],
    config: GroupConfig,
    run: Run,
    seed: int,
    *,
    max_response: int,
    eos_id: int,
    checkpoint_every: int = 10,
) -> None:
    """Raise the reward of the policy's answers, not far from the reference.

    Args:
        policy: changed in place.
        reference: the policy as it was before; never changed.
        reward: a RewardModel, or any function of its signature.
        prompts, prompt_mask: left-padded; each iteration draws batch_size / group_size
            of them with replacement.
        config: see GroupConfig.
        run: where metrics and checkpoints go; resumes by itself.
        seed: of prompts, samples and minibatches.
        max_response, eos_id: see `collect_groups`.
        checkpoint_every: iterations; the last is kept in any case.

    Raises:
        TrainingError: a loss is no number any more, or an invariant does not hold.
    """
    clock, sample = Clock(policy), Sampler(policy)
    prompts, prompt_mask = beside(policy, prompts), beside(policy, prompt_mask)
    optimizer = adamw(policy, eps=config.adam_eps)
    generator = torch.Generator().manual_seed(seed)
    sampler = torch.Generator().manual_seed(seed + 1)  # a stream of its own
    modules, optimizers = {"policy": policy}, {"optimizer": optimizer}
    generators = {"generator": generator, "sampler": sampler}
    start, _ = run.resume(config.iterations, modules, optimizers, generators)
    different = config.batch_size // config.group_size  # prompts an iteration
    for step, bar in steps_left(start, config.iterations, run.name):
        rows = torch.randint(len(prompts), (different,), generator=generator)
        with run.guarding(step):
            groups = collect_groups(
                policy,
                reference,
                reward,
                prompts[rows],
                prompt_mask[rows],
                config=config,
                max_response=max_response,
                eos_id=eos_id,
                generator=sampler,
                sample=sample,
                clock=clock,
            )
        share = lr_scale(step, config.iterations, config.warmup, config.final_lr)
        set_lr(optimizer, config.lr * share)
        metrics = groups_metrics(groups, eos_id, config.group_size)
        with clock.phase("update"):
            metrics |= group_update(policy, groups, optimizer, config, generator)
        run.check_finite(step, **metrics)
        run.check_weights(step, modules)
        lap = clock.lap(groups.prompts.numel() + groups.responses.numel())
        run.log(step, kl_coef=config.kl_coef, **metrics, **lap)
        bar.set_postfix(
            reward=f"{metrics['score']:.2f}", kl=f"{metrics['kl']:.1f}", refresh=False
        )
        if step % checkpoint_every == 0 or step == config.iterations:
            run.save(step, config.iterations, modules, optimizers, generators)

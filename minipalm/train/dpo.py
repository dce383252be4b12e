"""DPO, as a loop: a classifier of pairs."""

import torch
from jaxtyping import Float
from torch import Tensor

from minipalm.clock import Clock
from minipalm.config import DPOConfig
from minipalm.model.palm import PaLM
from minipalm.parallel import summed
from minipalm.rlhf.dpo import (
    dpo_loss,
    implicit_rewards,
    pair_logprobs,
    reference_logprobs,
)
from minipalm.rlhf.pairs import Pairs
from minipalm.train.optim import adamw, batch_rows, micro_batches, optimizer_step
from minipalm.train.run import Run, steps_left


def dpo_update(
    policy: PaLM,
    pairs: Pairs,
    ref_logprobs: tuple[Float[Tensor, "B"], Float[Tensor, "B"]],
    optimizer: torch.optim.Optimizer,
    config: DPOConfig,
    step: int,
) -> dict[str, float]:
    """One step on a batch of pairs, in parts that fit into memory, shared out.

    Args:
        policy: changed in place, once.
        pairs: the batch, on any device.
        ref_logprobs: log π_ref of the better and of the worse answers.
        optimizer: of the policy.
        config: see DPOConfig.
        step: from 1.

    Returns:
        means over the pairs, before the step: see `train_dpo`; and grad_norm, before
        clipping.
    """
    beta, names = config.beta, ("loss", "accuracy", "margin", "chosen", "rejected")
    metrics = dict.fromkeys(names, 0.0)
    for part in micro_batches(torch.arange(len(pairs)), config.optim.micro_batch):
        share = len(part) / len(pairs)
        logprobs = pair_logprobs(policy, pairs[part])
        refs = ref_logprobs[0][part], ref_logprobs[1][part]
        partial = dpo_loss(*logprobs, *refs, beta, config.label_smoothing)
        (share * partial).backward()
        with torch.no_grad():
            better, worse = (
                implicit_rewards(one, ref, beta) for one, ref in zip(logprobs, refs)
            )
            metrics["loss"] += share * partial.item()
            metrics["accuracy"] += share * (better > worse).float().mean().item()
            metrics["margin"] += share * (better - worse).mean().item()
            metrics["chosen"] += share * better.mean().item() / beta
            metrics["rejected"] += share * worse.mean().item() / beta
    norm = optimizer_step(policy, optimizer, config.optim, step)
    means = {name: summed(mine) for name, mine in metrics.items()}
    return {**means, "grad_norm": norm}


def train_dpo(
    policy: PaLM,
    reference: PaLM,
    pairs: Pairs,
    config: DPOConfig,
    run: Run,
    seed: int,
    checkpoint_every: int = 100,
) -> None:
    """Fit the policy to comparisons, not far from the reference; resumes by itself.

    Args:
        policy: changed in place.
        reference: the policy as it was before; never changed. It is asked about every
            pair once, before the first step.
        pairs: on any device.
        config: see DPOConfig; `optim` has steps, batch and learning rate.
        run: where metrics and checkpoints go. Among the metrics: accuracy (share of
            pairs with the larger implicit reward for the better answer), margin (mean
            difference of the two), chosen and rejected (mean log-ratio to the
            reference, nats: both often fall, and only the difference counts).
        seed: fixes the order of the pairs.
        checkpoint_every: steps; the last is kept in any case.

    Raises:
        TrainingError: the loss is no number any more.
    """
    optim = config.optim
    optimizer, clock = adamw(policy, optim.weight_decay, optim.betas), Clock(policy)
    modules, optimizers = {"policy": policy}, {"optimizer": optimizer}
    start, _ = run.resume(optim.steps, modules, optimizers)
    with clock.phase("reference"):
        at_once = optim.micro_batch or 256
        ref_chosen, ref_rejected = reference_logprobs(reference, pairs, at_once)
    for step, bar in steps_left(start, optim.steps, run.name):
        rows = batch_rows(len(pairs), optim.batch_size, step, seed)
        refs = ref_chosen[rows], ref_rejected[rows]
        with clock.phase("update"):
            metrics = dpo_update(policy, pairs[rows], refs, optimizer, config, step)
        run.check_finite(step, loss=metrics["loss"], grad_norm=metrics["grad_norm"])
        width = pairs.prompts.shape[1] + pairs.chosen.shape[1]
        tokens = 2 * optim.batch_size * width
        run.log(step, **metrics, **clock.lap(tokens))
        bar.set_postfix(
            loss=f"{metrics['loss']:.3f}",
            accuracy=f"{metrics['accuracy']:.2f}",
            refresh=False,
        )
        if step % checkpoint_every == 0 or step == optim.steps:
            run.save(step, optim.steps, modules, optimizers)

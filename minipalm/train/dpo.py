"""DPO, as a loop: a classifier of pairs."""

import torch

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
    optim, beta = config.optim, config.beta
    optimizer, clock = adamw(policy, optim.weight_decay, optim.betas), Clock(policy)
    modules, optimizers = {"policy": policy}, {"optimizer": optimizer}
    start, _ = run.resume(modules, optimizers)
    with clock.phase("reference"):
        at_once = optim.micro_batch or 256
        ref_chosen, ref_rejected = reference_logprobs(reference, pairs, at_once)
    for step, bar in steps_left(start, optim.steps, run.name):
        chosen_rows = batch_rows(len(pairs), optim.batch_size, step, seed)
        names = ("loss", "accuracy", "margin", "chosen", "rejected")
        metrics = dict.fromkeys(names, 0.0)
        for part in micro_batches(chosen_rows, optim.micro_batch):
            share = len(part) / len(chosen_rows)
            logprobs = pair_logprobs(policy, pairs[part])
            ref_logprobs = ref_chosen[part], ref_rejected[part]
            partial = dpo_loss(*logprobs, *ref_logprobs, beta, config.label_smoothing)
            (share * partial).backward()
            with torch.no_grad():
                better, worse = (
                    implicit_rewards(one, ref, beta)
                    for one, ref in zip(logprobs, ref_logprobs)
                )
                metrics["loss"] += share * partial.item()
                metrics["accuracy"] += share * (better > worse).float().mean().item()
                metrics["margin"] += share * (better - worse).mean().item()
                metrics["chosen"] += share * better.mean().item() / beta
                metrics["rejected"] += share * worse.mean().item() / beta
        norm = optimizer_step(policy, optimizer, optim, step)
        metrics = {name: summed(mine) for name, mine in metrics.items()}
        run.check_finite(step, loss=metrics["loss"], grad_norm=norm)
        tokens = 2 * optim.batch_size * pairs.chosen.shape[1]
        run.log(step, **metrics, grad_norm=norm, **clock.lap(tokens))
        bar.set_postfix(
            loss=f"{metrics['loss']:.3f}",
            accuracy=f"{metrics['accuracy']:.2f}",
            refresh=False,
        )
        if step % checkpoint_every == 0 or step == optim.steps:
            run.save(step, modules, optimizers)

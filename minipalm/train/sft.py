"""Supervised fine-tuning, as a loop."""

import torch

from minipalm.clock import Clock
from minipalm.config import OptimConfig
from minipalm.model.palm import PaLM
from minipalm.model.place import beside
from minipalm.parallel import summed
from minipalm.rlhf.sft import Rows, sft_loss
from minipalm.train.optim import adamw, batch_rows, micro_batches, optimizer_step
from minipalm.train.run import Run, steps_left


def sft_step(
    model: PaLM,
    optimizer: torch.optim.Optimizer,
    rows: Rows,
    config: OptimConfig,
    step: int,
) -> tuple[float, float]:
    """One step of fine-tuning on a batch, in parts that fit into memory.

    The gradients of the parts add up to that of the whole batch, so how it is cut
    changes nothing. Then one step as `optimizer_step` does it: clip the gradient, set
    the rate of this step, step, and leave no gradient behind.

    Args:
        model: changed in place, once.
        optimizer: of all its weights.
        rows: the batch; moved to where the model lies.
        config: `micro_batch` says how many rows a part has at most, 0 for all; the rest
            is for `optimizer_step`.
        step: from 1.

    Returns:
        `sft_loss` of the batch before the step, in nats a response token, and the norm
        of its gradient before clipping.

    Example: four rows with 2, 4, 6 and 8 response tokens and micro_batch=2 are two
    backward passes; both divide by 20.
    """
    rows = beside(model, rows)
    total = rows.mask.sum()
    loss = 0.0
    for part in micro_batches(torch.arange(len(rows)), config.micro_batch):
        partial = sft_loss(model, rows[part], total)
        partial.backward()
        loss += partial.item()
    return loss, optimizer_step(model, optimizer, config, step)


def train_sft(
    model: PaLM,
    rows: Rows,
    config: OptimConfig,
    run: Run,
    seed: int,
    checkpoint_every: int = 100,
) -> None:
    """Fine-tune on rows of demonstrations; resumes by itself.

    Args:
        model: changed in place.
        rows: padded or packed demonstrations.
        config: steps, batch, learning rate.
        run: where metrics and checkpoints go.
        seed: fixes the order of the rows.
        checkpoint_every: steps; the last is kept in any case.

    Raises:
        TrainingError: the loss is no number any more.
    """
    optimizer, clock = adamw(model, config.weight_decay, config.betas), Clock(model)
    modules, optimizers = {"model": model}, {"optimizer": optimizer}
    start, _ = run.resume(config.steps, modules, optimizers)
    for step, bar in steps_left(start, config.steps, run.name):
        chosen = batch_rows(len(rows), config.batch_size, step, seed)
        batch = rows[chosen]
        loss, norm = sft_step(model, optimizer, batch, config, step)
        loss = summed(loss)  # over the processes that train together
        run.check_finite(step, loss=loss, grad_norm=norm)
        run.log(step, loss=loss, grad_norm=norm, **clock.lap(batch.ids.numel()))
        bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        if step % checkpoint_every == 0 or step == config.steps:
            run.save(step, config.steps, modules, optimizers)

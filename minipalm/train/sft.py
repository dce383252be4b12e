"""Supervised fine-tuning, as a loop."""

from minipalm.config import OptimConfig
from minipalm.model.palm import PaLM
from minipalm.rlhf.sft import Rows, sft_loss
from minipalm.train.optim import adamw, batch_rows, micro_batches, optimizer_step
from minipalm.train.run import Run, progress


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
    device = model.embedding.weight.device
    optimizer = adamw(model, config.weight_decay, config.betas)
    modules, optimizers = {"model": model}, {"optimizer": optimizer}
    start, _ = run.resume(modules, optimizers)
    for step, bar in progress(start, config.steps, run.name):
        chosen = batch_rows(len(rows), config.batch_size, step, seed)
        total = rows.mask[chosen].sum().to(device)
        loss = 0.0
        for part in micro_batches(chosen, config.micro_batch):
            partial = sft_loss(model, rows[part].to(device), total)
            partial.backward()
            loss += partial.item()
        norm = optimizer_step(model, optimizer, config, step)
        run.check_finite(step, loss=loss, grad_norm=norm)
        run.log(step, loss=loss, grad_norm=norm)
        bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        if step % checkpoint_every == 0 or step == config.steps:
            run.save(step, modules, optimizers)

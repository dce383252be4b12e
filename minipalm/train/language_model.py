"""Pretraining: predict the next token of a long stream of text."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from minipalm.clock import Clock
from minipalm.config import OptimConfig
from minipalm.model.palm import PaLM
from minipalm.model.place import beside
from minipalm.parallel import summed
from minipalm.train.optim import adamw, batch_rows, micro_batches, optimizer_step
from minipalm.train.run import Run, steps_left


def next_token_loss(
    model: PaLM, ids: Int[Tensor, "B T"], total: int | None = None
) -> Float[Tensor, ""]:
    """Mean cross-entropy of each token given those before it in its row, nats.

    Position t predicts token t + 1, so B rows of T tokens ask B · (T − 1)
    questions. Every token counts, token 0 too.

    Args:
        model: `model(ids)` are logits, B T V; the gradient goes to all of it.
        ids: rows without padding.
        total: number of questions to average over; by default those of ids. Under
            gradient accumulation, those of the whole batch.

    Returns:
        the mean in float32, also of a bfloat16 model.

    Example: a model that gives every token the same logit has the loss log V.
    """
    logits = model(ids[:, :-1]).flatten(0, 1).float()
    targets = ids[:, 1:].flatten()
    losses = F.cross_entropy(logits, targets, reduction="sum")
    return losses / (total or targets.numel())


def train_language_model(
    model: PaLM,
    stream: Int[Tensor, "N"],
    window: int,
    config: OptimConfig,
    run: Run,
    seed: int,
    checkpoint_every: int = 100,
) -> None:
    """Train on windows of one long stream of tokens; resumes by itself.

    Args:
        model: changed in place.
        stream: texts, end to end, each after a begin-of-sequence token.
        window: tokens of a row; the stream's incomplete last window is left out.
        config: steps, batch, learning rate.
        run: where metrics and checkpoints go.
        seed: fixes the order of the windows.
        checkpoint_every: steps; the last is kept in any case.

    Raises:
        ValueError: the stream is shorter than one window.
        TrainingError: the loss is no number any more.
    """
    if len(stream) < window:
        raise ValueError(
            f"the text has {len(stream)} tokens and a training row {window}: give more"
        )
    rows = stream[: len(stream) // window * window].view(-1, window)
    optimizer, clock = adamw(model, config.weight_decay, config.betas), Clock(model)
    modules, optimizers = {"model": model}, {"optimizer": optimizer}
    start, _ = run.resume(config.steps, modules, optimizers)
    for step, bar in steps_left(start, config.steps, run.name):
        chosen = batch_rows(len(rows), config.batch_size, step, seed)
        loss, total = 0.0, len(chosen) * (window - 1)
        for part in micro_batches(chosen, config.micro_batch):
            ids = beside(model, rows[part]).long()
            partial = next_token_loss(model, ids, total)
            partial.backward()
            loss += partial.item()
        loss = summed(loss)  # over the processes that train together
        norm = optimizer_step(model, optimizer, config, step)
        run.check_finite(step, loss=loss, grad_norm=norm)
        run.log(step, loss=loss, grad_norm=norm, **clock.lap(total))
        bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        if step % checkpoint_every == 0 or step == config.steps:
            run.save(step, config.steps, modules, optimizers)

"""The reward model's training, as a loop."""

from minipalm.clock import Clock
from minipalm.config import RewardConfig
from minipalm.model.place import beside
from minipalm.parallel import summed
from minipalm.rlhf.pairs import Pairs
from minipalm.rlhf.reward import RewardModel, pairwise_loss, score_pairs
from minipalm.train.optim import adamw, batch_rows, micro_batches, optimizer_step
from minipalm.train.run import Run, steps_left


def train_reward_model(
    model: RewardModel,
    pairs: Pairs,
    config: RewardConfig,
    run: Run,
    seed: int,
    checkpoint_every: int = 100,
) -> None:
    """Fit scores to comparisons; resumes by itself.

    One or two epochs: the labels are noisy, and a reward model that has learnt them by
    heart ranks new answers worse.

    Args:
        model: changed in place; its scale is not (see `RewardModel.fit_scale`).
        pairs: moved part by part to where the model lies.
        config: `optim` and `margin` are read.
        run: where metrics and checkpoints go.
        seed: fixes the order of the pairs.
        checkpoint_every: steps; the last is kept in any case.

    Raises:
        TrainingError: the loss is no number any more.
    """
    optim = config.optim
    optimizer, clock = adamw(model, optim.weight_decay, optim.betas), Clock(model)
    modules, optimizers = {"model": model}, {"optimizer": optimizer}
    start, _ = run.resume(optim.steps, modules, optimizers)
    for step, bar in steps_left(start, optim.steps, run.name):
        chosen_rows = batch_rows(len(pairs), optim.batch_size, step, seed)
        loss = accuracy = 0.0
        for part in micro_batches(chosen_rows, optim.micro_batch):
            share = len(part) / len(chosen_rows)
            some = beside(model, pairs[part])
            chosen, rejected = score_pairs(model, some)
            partial = share * pairwise_loss(chosen, rejected, config.margin)
            partial.backward()
            loss += partial.item()
            accuracy += share * (chosen > rejected).float().mean().item()
        loss, accuracy = summed(loss), summed(accuracy)  # over all processes
        norm = optimizer_step(model, optimizer, optim, step)
        run.check_finite(step, loss=loss, grad_norm=norm)
        metrics = {"loss": loss, "accuracy": accuracy, "grad_norm": norm}
        width = some.prompts.shape[1] + some.chosen.shape[1]
        tokens = 2 * len(chosen_rows) * width
        run.log(step, **metrics, **clock.lap(tokens))
        bar.set_postfix(loss=f"{loss:.3f}", accuracy=f"{accuracy:.2f}", refresh=False)
        if step % checkpoint_every == 0 or step == optim.steps:
            run.save(step, optim.steps, modules, optimizers)

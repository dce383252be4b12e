"""AdamW, its schedule, and the order in which rows are seen."""

import math
from collections.abc import Iterable

import torch
from jaxtyping import Int
from torch import Tensor, nn

from minipalm.config import OptimConfig
from minipalm.parallel import share


def adamw(
    model: nn.Module,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
) -> torch.optim.AdamW:
    """AdamW whose weight decay leaves vectors (norms, biases) alone.

    Two groups of weights, the decayed one first: a matrix (two axes or more) is pulled
    to 0, a vector is not, since a norm's scale is meant to be near 1. Weights that need
    no gradient are in neither.

    Args:
        model: whose weights are trained.
        weight_decay: of the matrices; 0.1 takes lr · 10 % of a weight at each step.
        betas: memory of Adam's two moving averages.
        eps: added to the root in Adam's denominator.

    Returns:
        the optimizer, at learning rate 0: `set_lr` sets it before each step.

    Source: Loshchilov and Hutter 2017 (arXiv 1711.05101), algorithm 2.
    """
    weights = [w for w in model.parameters() if w.requires_grad]
    groups = [
        {"params": [w for w in weights if w.dim() >= 2], "weight_decay": weight_decay},
        {"params": [w for w in weights if w.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps, fused=True)


def lr_scale(step: int, steps: int, warmup: float, final: float) -> float:
    """The learning rate of a step, as a share of the peak: up a line, down a cosine.

    Args:
        step: from 1.
        steps: of the whole run.
        warmup: share of the steps that the rise takes, rounded to whole steps, one at
            least; the last of them has the peak.
        final: share of the peak that the last step has, where the rise leaves one.

    Example: 100 steps, warmup .1, final .1: .1 at step 1, 1 at step 10, .1 at step 100.
    """
    rise = max(round(warmup * steps), 1)
    if step < rise:
        return step / rise
    done = (step - rise) / max(steps - rise, 1)
    return final + (1 - final) * (1 + math.cos(math.pi * done)) / 2


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def optimizer_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, config: OptimConfig, step: int
) -> float:
    """Clip the gradient, step at the scheduled rate; gives the norm before clipping."""
    norm = nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
    share = lr_scale(step, config.steps, config.warmup, config.final_lr)
    set_lr(optimizer, config.lr * share)
    optimizer.step()
    optimizer.zero_grad()
    return norm.item()


def batch_rows(n: int, batch_size: int, step: int, seed: int) -> Int[Tensor, "B"]:
    """The rows of a step, counted from 1: all n once an epoch, in an order of its own.

    A function of step and seed alone, so a resumed run sees the rows that it would have
    seen. A batch may span the end of an epoch, or several. torch's global random state
    is neither read nor changed.

    Args:
        n: rows there are.
        batch_size: B, rows of a step.
        step: from 1; step 2 goes on where step 1 has ended.
        seed: another one has other orders, at no epoch those of this one.

    Example: n = 4, batch_size = 3: the first four numbers of steps 1 and 2 together are
    0, 1, 2, 3 in some order, so are the next four.

    Raises:
        ValueError: there is nothing to learn from.
    """
    if n == 0:
        raise ValueError("expected rows to train on, got none: give more data")
    places = range((step - 1) * batch_size, step * batch_size)
    orders = {
        epoch: torch.randperm(
            n, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        )
        for epoch in {place // n for place in places}
    }
    return torch.stack([orders[place // n][place % n] for place in places])


def micro_batches(rows: Int[Tensor, "B"], size: int) -> Iterable[Int[Tensor, "b"]]:
    """This process's share of a batch, in parts of at most `size` rows; 0: one part."""
    mine = share(rows)
    return mine.split(size or len(mine))

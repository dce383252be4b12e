"""The loss on rows that nobody trains on."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from minipalm.model.place import beside
from minipalm.parallel import ranks, share, summed


@torch.no_grad()
def mean_loss(
    loss: Callable[..., Tensor], model: Any, rows: Any, total: Any, size: int = 0
) -> float:
    """A loss over any number of rows, `size` at a time; each process takes its share.

    Args:
        loss: (model, rows, total) to the sum over some rows, divided by total; such as
            `next_token_loss` and `sft_loss`.
        model: reads them.
        rows: tokens "N T", or Rows; on any device.
        total: what the sum over all rows is to be divided by.
        size: rows at a time; 0 for all at once.
    """
    _, world, _ = ranks()
    order = torch.arange(len(rows))
    alike = len(rows) // world * world  # what is left over, all compute together
    parts = [(1, part) for part in share(order[:alike]).split(size or len(rows))]
    parts += [(world, part) for part in order[alike:].split(size or len(rows))]
    sums = (
        loss(model, beside(model, rows[part]), total).item() / by
        for by, part in parts
        if len(part)
    )
    return summed(sum(sums))

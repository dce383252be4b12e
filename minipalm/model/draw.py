"""One uniform number, one token: sampling that depends on nothing else."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def next_token(
    hidden: Float[Tensor, "B D"],
    head: Float[Tensor, "V D"],
    temperature: Float[Tensor, "1"],
    uniforms: Float[Tensor, "B"],
    size: int = 128,
) -> tuple[Int[Tensor, "B"], Float[Tensor, "B"]]:
    """Tokens by the inverse of the cumulative law, and their log-probabilities.

    First the group of `size` tokens is found, then the token in it: a running sum over
    a whole vocabulary would be slow on a GPU.

    Example: probabilities (.5, .3, .2) cumulate to (.5, .8, 1): a number from 0 to
    below .5 gives token 0, from .5 to below .8 token 1, the others token 2.
    """
    law = (F.linear(hidden, head).float() / temperature).log_softmax(-1)
    tokens = F.pad(law.exp(), (0, -len(head) % size)).unflatten(-1, (-1, size))
    groups = tokens.sum(-1)
    u, until = uniforms[:, None], groups.cumsum(-1)
    group = (until <= u).sum(-1, keepdim=True).clamp(max=groups.shape[1] - 1)
    before = (until - groups).gather(1, group)
    inside = tokens.gather(1, group[..., None].expand(-1, -1, size))[:, 0]
    place = (before + inside.cumsum(-1) <= u).sum(-1, keepdim=True)
    token = (group * size + place).clamp(max=len(head) - 1)  # sums are rounded
    return token[:, 0], law.gather(-1, token)[:, 0]

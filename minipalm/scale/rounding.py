"""Weights in bfloat16: what rounding does to small steps, and two ways out."""

import torch
from jaxtyping import Float
from torch import Tensor


def surviving_share(
    weights: Float[Tensor, "*shape"],
    updates: Float[Tensor, "*shape"],
    dtype: torch.dtype = torch.bfloat16,
) -> float:
    """The share of an optimizer's steps that still change a weight once it is rounded.

    A weight is kept in `dtype`. A step adds its update in float32 and rounds the sum
    back to `dtype`. The update survives if what is kept is another number than before.

    Args:
        weights: as they were drawn or read, of any type; they are rounded to dtype
            before the step, as keeping them does.
        updates: what is added, float32. Those that are 0 asked for nothing: they are
            not counted.
        dtype: of what is kept.

    Returns:
        a Python float from 0 to 1; 0 if there is no update to count.

    Example: near 1, bfloat16's numbers are 1/128 apart. Weights (1, 1, 1) and updates
    (.01, .001, 0) give 0.5.

    Source: Zamirai et al. 2020 (arXiv 2010.06192).
    """
    kept = weights.to(dtype)
    stepped = (kept.float() + updates).to(dtype)
    asked = updates != 0
    if not asked.any():
        return 0.0
    return (stepped != kept)[asked].float().mean().item()


def stochastic_rounding(
    x: Float[Tensor, "*shape"], generator: torch.Generator | None = None
) -> Float[Tensor, "*shape"]:
    """float32 to bfloat16, up or down by chance, so that the mean is right.

    A number a third of the way to its upper neighbour becomes that neighbour one time
    in three. Small steps then count on average, though each one mostly does nothing.
    bfloat16 is the upper half of a float32: add 16 random bits below, cut them off.

    Args:
        x: float32, finite.
        generator: draws the bits; None for torch's global one.

    Source: Gupta et al. 2015 (arXiv 1502.02551).
    """
    bits = x.contiguous().view(torch.int32)
    noise = torch.randint(0, 1 << 16, x.shape, generator=generator, dtype=torch.int32)
    rounded = (bits + noise) & ~0xFFFF
    return rounded.view(torch.float32).to(torch.bfloat16)

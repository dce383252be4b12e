"""SwiGLU: a feed-forward layer whose hidden units are gated."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def swiglu(
    gate: Float[Tensor, "*batch M"], up: Float[Tensor, "*batch M"]
) -> Float[Tensor, "*batch M"]:
    """silu(gate) * up: `up` carries the value, `gate` says how much of it passes.

    Args:
        gate, up: two projections of the same input to the feed-forward width M.

    Example: gate 0 lets nothing pass; a large gate g passes about g * up.

    Source: Shazeer 2020 (arXiv 2002.05202), equation 5, without its two biases.
    """
    return F.silu(gate) * up

"""SwiGLU: a feed-forward layer whose hidden units are gated."""

import math

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def swiglu(
    gate: Float[Tensor, "*batch M"], up: Float[Tensor, "*batch M"]
) -> Float[Tensor, "*batch M"]:
    """silu(gate) * up: `up` carries the value, `gate` says how much of it passes.

    silu(g) = g σ(g), with the logistic function σ(g) = 1 / (1 + e^{-g}).

    Args:
        gate, up: two projections of the same input to the feed-forward width M, of the
            same shape. Gradients flow to both, also where a gate is far from 0.

    Example: gate (0, 1, 5, -5) and up (2, 2, 2, 2) give (0, 1.462, 9.933, -0.067): a
    gate of 0 lets nothing pass, a large gate g passes about g * up.

    Source: Shazeer 2020 (arXiv 2002.05202), equation 5, without its two biases.
    """
    return F.silu(gate) * up


def gated_width(plain_width: int, multiple_of: int = 1) -> int:
    """The feed-forward width M at which a gated layer costs what a plain one does.

    A plain layer has two matrices, D × plain_width and back. A gated one has three:
    gate and up, D × M, and one back. Neither has biases.

    Args:
        plain_width: the feed-forward width of the plain layer.
        multiple_of: M is the nearest multiple of this, which hardware likes; the larger
            of two that are equally near, and never 0.

    Raises:
        ValueError: an argument is less than 1.

    Example: 512 gives 341, and 344 as a multiple of 8.

    Source: Shazeer 2020 (arXiv 2002.05202), section 2.
    """
    if plain_width < 1 or multiple_of < 1:
        raise ValueError(
            "a width is 1 or more, and so is what it is a multiple of "
            f"(got {plain_width} and {multiple_of})"
        )
    multiples = math.floor(2 * plain_width / (3 * multiple_of) + 0.5)
    return max(multiples, 1) * multiple_of


def gated_feedforward(
    x: Float[Tensor, "*batch D"],
    w_gate: Float[Tensor, "D M"],
    w_up: Float[Tensor, "D M"],
    w_down: Float[Tensor, "M D"],
) -> Float[Tensor, "*batch D"]:
    """The whole layer: two projections of x to width M, `swiglu`, and back to width D.

    Args:
        x: the layer's input, with any axes before D.
        w_gate, w_up, w_down: the three matrices; a row of x is multiplied from the
            left, x W. No biases.

    Returns:
        what the layer adds to the residual stream; x itself is not added here.

    Example: x = (1, 2), w_gate = w_up = w_down = identity: (0.731, 3.523).

    Source: Shazeer 2020 (arXiv 2002.05202), equation 6.
    """
    return swiglu(x @ w_gate, x @ w_up) @ w_down

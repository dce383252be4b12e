"""Position as rotation: rotary position embeddings (RoPE)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def rotations(
    positions: Int[Tensor, "B T"], head_dim: int, base: float = 10_000.0
) -> tuple[Float[Tensor, "B 1 T half"], Float[Tensor, "B 1 T half"]]:
    """Cosine and sine of the angle by which each pair of each position is turned.

    Pair i of a head of width K turns by position * base**(-2i/K) radians: the first
    pair by one radian a token, the last pairs by almost nothing.

    Args:
        positions: the place of each token in its own text, counted from 0.
        head_dim: K, the width of a head; even, since RoPE turns pairs.
        base: the larger, the slower the last pairs turn.

    Returns:
        cosine and sine, float32, with an axis of one for the heads.

    Raises:
        ValueError: head_dim is odd.

    Source: Su et al. 2021, RoFormer (arXiv 2104.09864), section 3.2.2, equation 15.
    """
    if head_dim % 2:
        raise ValueError(
            f"RoPE turns pairs, so the head width must be even (got {head_dim})"
        )
    exponents = torch.arange(0, head_dim, 2, device=positions.device) / head_dim
    angles = positions[:, None, :, None] * base**-exponents
    return angles.cos(), angles.sin()


def rotate(
    x: Float[Tensor, "B H T K"],
    cosine: Float[Tensor, "#B 1 T half"],
    sine: Float[Tensor, "#B 1 T half"],
) -> Float[Tensor, "B H T K"]:
    """Turn the pairs (x_i, x_{i+K/2}) of queries or keys by their position's angle.

    The score of a rotated query with a rotated key depends on their distance only,
    and the length of a vector does not change.

    Args:
        x: queries or keys.
        cosine, sine: from `rotations`, for the same positions as x.

    Returns:
        the rotated vectors, in the type of x. At position 0 they equal x.

    Source: RoFormer, section 3.4.2, equation 34 (there the pairs are neighbours; here
    they are half a head apart, which is the same up to a fixed order of columns).
    """
    first, second = x.chunk(2, dim=-1)
    turned = (first * cosine - second * sine, second * cosine + first * sine)
    return torch.cat(turned, dim=-1).to(x.dtype)

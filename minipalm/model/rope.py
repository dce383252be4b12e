"""Position as rotation: rotary position embeddings (RoPE)."""

import math

import torch
from einops import repeat
from jaxtyping import Float, Int
from torch import Tensor


def rotations(
    positions: Int[Tensor, "B T"], head_dim: int, base: float = 10_000.0
) -> tuple[Float[Tensor, "B 1 T half"], Float[Tensor, "B 1 T half"]]:
    """Cosine and sine of the angle by which each pair of each position is turned.

    A head of width K is K/2 pairs of numbers, i = 0, 1, ..., K/2 − 1. Pair i turns by
    position * base**(-2i/K) radians: the first by one radian a token, the last by
    almost nothing.

    Args:
        positions: whole numbers, the place of each token in its own text, counted from
            0; one that is negative turns the other way. Each row has its own, in any
            order: a row may hold several texts, or padding before one.
        head_dim: K, the width of a head; even, since RoPE turns pairs.
        base: the larger, the slower the last pairs turn.

    Returns:
        cosine and sine of shape (B, 1, T, K/2), float32: one angle a pair, and an axis
        of one for the heads, which all turn alike.

    Raises:
        ValueError: head_dim is odd.

    Example: head_dim 4, base 100, position 2: the angles are 2 and 0.2 radians, so the
    cosines are -0.416 and 0.980, the sines 0.909 and 0.199.

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

    With a = x_i and b = x_{i+K/2}, the pair turned by an angle φ, counterclockwise, is
    a cos φ − b sin φ and b cos φ + a sin φ: the new x_i and the new x_{i+K/2}.

    Args:
        x: queries or keys, of H heads. It is not changed; its gradient flows.
        cosine, sine: from `rotations`, for the same positions as x; one row of them
            may serve all rows of x.

    Returns:
        the rotated vectors, in the type of x: bfloat16 stays bfloat16, and is rounded
        once, at the end. At position 0 they equal x.

    Example: the head (1, 2, 3, 4) has the pairs (1, 3) and (2, 4). A quarter turn of
    the first gives (−3, 2, 1, 4).

    Source: RoFormer, section 3.4.2, equation 34 (there the pairs are neighbours; here
    they are half a head apart, which is the same up to a fixed order of columns).
    """
    first, second = x.chunk(2, dim=-1)
    turned = (first * cosine - second * sine, second * cosine + first * sine)
    return torch.cat(turned, dim=-1).to(x.dtype)


def wavelengths(head_dim: int, base: float = 10_000.0) -> Float[Tensor, " half"]:
    """How many tokens each pair needs for one full turn: 2π base**(2i/K) for pair i.

    Two tokens that are exactly one wavelength apart look the same to their pair. So
    fast pairs tell near places apart, slow pairs far ones.

    Args:
        head_dim: K, the width of a head.
        base: as in `rotations`.

    Returns:
        K/2 numbers, float32, in tokens a turn, the fastest pair first.

    Raises:
        ValueError: head_dim is odd.

    Example: head_dim 4, base 100: 6.283 and 62.83 tokens.

    Source: the word is from Peng et al. 2023, YaRN (arXiv 2309.00071).
    """
    if head_dim % 2:
        raise ValueError(
            f"RoPE turns pairs, so the head width must be even (got {head_dim})"
        )
    return 2 * math.pi * base ** (torch.arange(0, head_dim, 2) / head_dim)


def scores_by_distance(
    q: Float[Tensor, "N K"],
    k: Float[Tensor, "N K"],
    distances: Int[Tensor, "S"],
    base: float = 10_000.0,
) -> Float[Tensor, "N S"]:
    """The score q·k / √K, where the query stands that many tokens after the key.

    Only the distance counts: put each key at position 0 and its query at position
    `distance`, rotate, and multiply. `rotations` and `rotate` are yours to use.

    Args:
        q, k: N queries, each with its key, not rotated yet. Gradients flow to both.
        distances: query's position minus key's, in tokens, in any order; negative
            where the query stands before its key.
        base: as in `rotations`.

    Returns:
        a row for each pair of query and key, a column for each distance.

    Example: q = k = (1, 0), distances 0 and 1: 0.7071 and 0.3821, which is
    cos(1) / √2.

    Source: RoFormer (arXiv 2104.09864), section 3.2.2, equation 16.
    """
    K = q.shape[-1]
    queries = repeat(q, "N K -> N 1 S K", S=len(distances))
    turned = rotate(queries, *rotations(distances[None], K, base))
    return (turned[:, 0] * k[:, None]).sum(-1) / math.sqrt(K)

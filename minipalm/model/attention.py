"""Attention with any number of key/value heads, and the mask that goes with it."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

# Not cuDNN's kernel: it can return wrong gradients without an error when the
# gradient of its output is a column slice of a wider tensor.
BACKENDS = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def attention_mask(
    queries: Int[Tensor, "B T"], keys: Int[Tensor, "B S"]
) -> Bool[Tensor, "B T S"]:
    """Which key each query may see: earlier ones, and itself, of its own segment.

    Segments number the texts of a row: 0 is padding, 1, 2, ... are documents packed
    side by side. Padding is a segment too, so that every query sees at least itself
    and no softmax is empty.

    Args:
        queries: segments of the last T tokens of the row.
        keys: segments of all S >= T tokens so far, those of the queries included.

    Example: keys (0, 1, 1, 2) as queries let token 2 see tokens 1 and 2 only.
    """
    T, S = queries.shape[1], keys.shape[1]
    row = torch.arange(S - T, S, device=keys.device)[:, None]
    causal = torch.arange(S, device=keys.device) <= row
    return causal & (queries[:, :, None] == keys[:, None, :])


def attention(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B G S K"],
    v: Float[Tensor, "B G S K"],
    mask: Bool[Tensor, "B T S"] | None = None,
) -> Float[Tensor, "B H T K"]:
    """softmax(q kᵀ / √K) v, where H query heads share G key/value heads.

    G = 1 is multi-query, G = H multi-head, anything between grouped-query attention:
    query head h reads key/value head h // (H/G).

    Args:
        q, k, v: rotated queries and keys, and values. H is a multiple of G.
        mask: True where a query may see a key; None for plain causal (then T = S).

    Source: Vaswani et al. 2017 (arXiv 1706.03762), equation 1; Shazeer 2019 (arXiv
    1911.02150), section 3, for G = 1; Ainslie et al. 2023 (arXiv 2305.13245) between.
    """
    B, H, T, K = q.shape
    G = k.shape[1]
    with sdpa_kernel(BACKENDS):
        if T == 1:
            # One token sees the same keys from every head: H/G heads of a group are
            # H/G query rows of one attention, and no key is copied.
            rows = q.reshape(B, G, H // G, K)
            seen = None if mask is None else mask[:, None]
            return F.scaled_dot_product_attention(rows, k, v, seen).view(B, H, 1, K)
        k = k[:, :, None].expand(-1, -1, H // G, -1, -1).flatten(1, 2)
        v = v[:, :, None].expand(-1, -1, H // G, -1, -1).flatten(1, 2)
        if mask is None:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return F.scaled_dot_product_attention(q, k, v, mask[:, None])

"""Attention with any number of key/value heads, and the mask that goes with it."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


def attention_mask(
    queries: Int[Tensor, "B T"], keys: Int[Tensor, "B S"]
) -> Bool[Tensor, "B T S"]:
    """Which key each query may see: earlier ones, and itself, of its own segment.

    Segments number the texts of a row: 0 is padding, 1, 2, ... are documents packed
    side by side. Padding is a segment too, so that every query sees at least itself
    and no softmax is empty.

    Args:
        queries: segments of the last T tokens of the row: query t stands at the place
            S - T + t.
        keys: segments of all S >= T tokens so far, those of the queries included.

    Returns:
        True where query t of row b may see key s; on the device of keys.

    Example: keys (0, 1, 1, 2). As queries, all four of them: token 2 sees tokens 1 and
    2 only, token 3 itself only. With queries (1, 2), the last two tokens, the mask has
    two rows: False True True False, and False False False True.
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
    query head h reads key/value head h // (H/G). What a query may not see gets the
    weight 0, and the weights of what it may see sum to 1.

    Args:
        q, k, v: rotated queries and keys, and values. H is a multiple of G. All three
            carry gradient.
        mask: True where a query may see a key; the same for all heads. Every query sees
            at least one key, and none is later than the query. None for plain causal:
            the queries are the last T of S tokens, and each sees itself and all before.

    Example: K = 4, a query (2, 0, 0, 0), keys (1, 0, 0, 0) and (0, 0, 0, 0), both to be
    seen, values of 1s and of 0s. The scores are 2/√4 = 1 and 0, the weights .731 and
    .269, the result is (.731, .731, .731, .731).

    Source: Vaswani et al. 2017 (arXiv 1706.03762), equation 1; Shazeer 2019 (arXiv
    1911.02150), section 3, for G = 1; Ainslie et al. 2023 (arXiv 2305.13245) between.
    """
    H, T, K = q.shape[1:]
    G, S = k.shape[1:3]
    if mask is None:
        mask = torch.ones(1, T, S, dtype=torch.bool, device=q.device).tril(S - T)
    k, v = (x.repeat_interleave(H // G, dim=1) for x in (k, v))
    scores = q @ k.mT / math.sqrt(K)
    weights = scores.masked_fill(~mask[:, None], -torch.inf).softmax(dim=-1)
    return weights @ v


# --- the same, faster ---------------------------------------------------------------

# Not cuDNN's kernel: it can return wrong gradients without an error when the
# gradient of its output is a column slice of a wider tensor.
BACKENDS = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def fused_attention(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B G S K"],
    v: Float[Tensor, "B G S K"],
    mask: Bool[Tensor, "B T S"] | None = None,
) -> Float[Tensor, "B H T K"]:
    """The numbers of `attention` by PyTorch's own kernels, with nothing copied.

    The T·S scores of a head never stand in memory all at once: a kernel goes through
    them in tiles. This is what the network calls.

    Args:
        q, k, v, mask: see `attention`.

    Source: Dao et al. 2022, FlashAttention (arXiv 2205.14135), for the tiles.
    """
    B, H, T, K = q.shape
    G = k.shape[1]
    with sdpa_kernel(BACKENDS):
        if T == 1:  # it sees the same keys from each head: heads are rows of one matrix
            rows = q.reshape(B, G, H // G, K)
            allowed = None if mask is None else mask[:, None]
            one = F.scaled_dot_product_attention(rows, k, v, allowed)
            return one.view(B, H, 1, K)
        if q.is_cuda:
            return attention_at_once(q, k, v, mask)
        return attention_in_blocks(q, k, v, mask)


def attention_at_once(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B G S K"],
    v: Float[Tensor, "B G S K"],
    mask: Bool[Tensor, "B T S"] | None = None,
) -> Float[Tensor, "B H T K"]:
    """The same numbers in one call, for GPUs."""
    H, T = q.shape[1:3]
    G, S = k.shape[1:3]
    if mask is None and T < S:
        mask = torch.ones(1, T, S, dtype=torch.bool, device=q.device).tril(S - T)
    k, v = (x.repeat_interleave(H // G, dim=1) for x in (k, v))
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return F.scaled_dot_product_attention(q, k, v, mask[:, None])


def attention_in_blocks(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B G S K"],
    v: Float[Tensor, "B G S K"],
    mask: Bool[Tensor, "B T S"] | None = None,
    size: int = 64,
) -> Float[Tensor, "B H T K"]:
    """The same numbers with less work, for CPUs: `size` queries at a time.

    A block of queries meets only the keys up to its end, which halves the products of a
    long row. And the heads that share a key/value head are rows of one matrix there, so
    no key is copied.
    """
    B, H, T, K = q.shape
    G, S = k.shape[1], k.shape[2]
    if mask is None:
        mask = torch.ones(1, T, S, dtype=torch.bool, device=q.device).tril(S - T)
    blocks = []
    for start in range(0, T, size):
        end = min(start + size, T)
        seen = S - T + end
        rows = q[:, :, start:end].reshape(B, G, -1, K)
        allowed = mask[:, None, start:end, :seen].repeat(1, 1, H // G, 1)
        block = F.scaled_dot_product_attention(
            rows, k[:, :, :seen], v[:, :, :seen], allowed
        )
        blocks.append(block.view(B, H, end - start, K))
    return torch.cat(blocks, dim=2)

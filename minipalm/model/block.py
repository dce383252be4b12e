"""The transformer block, in parallel as in PaLM, and in series as elsewhere."""

import math

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from minipalm.config import PaLMConfig
from minipalm.model.attention import fused_attention
from minipalm.model.cache import KVCache
from minipalm.model.linear import Linear, linear
from minipalm.model.rope import rotate
from minipalm.model.swiglu import swiglu

Rotations = tuple[Float[Tensor, "#B 1 T half"], Float[Tensor, "#B 1 T half"]]


def split_heads(
    qkv: Float[Tensor, "B T C"], config: PaLMConfig, rope: Rotations
) -> tuple[
    Float[Tensor, "B H T K"], Float[Tensor, "B G T K"], Float[Tensor, "B G T K"]
]:
    """Cut C = (H + 2G)·K columns into rotated queries, rotated keys, and values.

    The columns stand in this order: H queries of K columns each, G keys, G values.

    Args:
        qkv: what the input projection gives for each token.
        config: H is heads, G is kv_heads, K is head_dim.
        rope: cosine and sine for the tokens of qkv; `rotate(x, *rope)` turns queries or
            keys of shape "B heads T K". Values are not turned.

    Returns:
        queries, keys, values, all with the axis of heads before that of tokens.

    Example: heads 2, kv_heads 1, head_dim 4: columns 0 to 3 are the first query, 4 to 7
    the second, 8 to 11 the key, 12 to 15 the value.
    """
    G = config.kv_heads
    heads = rearrange(qkv, "B T (heads K) -> B heads T K", K=config.head_dim)
    rotated = rotate(heads[:, :-G], *rope)  # queries and keys in one go
    return rotated[:, :-G], rotated[:, -G:], heads[:, -G:]


class ParallelBlock(nn.Module):
    """x + attention(norm(x)) + swiglu(norm(x)): one norm, one input projection.

    Attention and feed-forward read the same normalised input, so that their five
    projections are one matrix product: q | k | v | gate | up.

    Source: Chowdhery et al. 2022, PaLM (arXiv 2204.02311), section 2, "Parallel
    Layers"; no biases, as in "No Biases" there.
    """

    def __init__(self, config: PaLMConfig) -> None:
        super().__init__()
        self.config = config
        D, M = config.dim, config.ff_dim
        self.widths = [config.qkv_dim, M, M]
        self.norm = nn.LayerNorm(D, bias=False)
        self.w_in = Linear(D, sum(self.widths))
        self.w_attention = Linear(config.heads * config.head_dim, D)
        self.w_feedforward = Linear(M, D)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        rope: Rotations,
        mask: Bool[Tensor, "B T S"] | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
        last: int | None = None,
    ) -> Float[Tensor, "B L D"]:
        """One layer.

        Args:
            x: the residual stream.
            rope: of the tokens of x, see `rotations`.
            mask: see `attention`.
            cache: holds the keys and values of earlier tokens, by layer.
            layer: the number of this one.
            last: L, how many tokens at the end of x to go on with; None for all.
        """
        if last is None:
            return self.all_tokens(x, rope, mask, cache, layer)
        return last_of_parallel(self, x, rope, mask, cache, layer, last)

    def all_tokens(
        self,
        x: Float[Tensor, "B T D"],
        rope: Rotations,
        mask: Bool[Tensor, "B T S"] | None,
        cache: KVCache | None,
        layer: int,
    ) -> Float[Tensor, "B T D"]:
        """x + attention(norm(x)) + swiglu(norm(x)), for all T tokens.

        One product, `self.w_in`, gives the columns q, k, v | gate | up, whose widths
        are `self.widths`; `split_heads` makes heads of the first. Use
        `fused_attention`, the fast twin of `attention`. Its heads, side by side in a
        row of H·K columns a token, go through `self.w_attention`;
        `swiglu(gate, up)` goes through `self.w_feedforward`.

        With a cache, `cache.extend(layer, k, v)` keeps the new keys and values and
        gives those of all tokens so far: attention reads these.
        """
        qkv, gate, up = self.w_in(self.norm(x)).split(self.widths, dim=-1)
        q, k, v = split_heads(qkv, self.config, rope)
        if cache is not None:
            k, v = cache.extend(layer, k, v)
        heads = rearrange(fused_attention(q, k, v, mask), "B H T K -> B T (H K)")
        y = self.w_attention(heads) + self.w_feedforward(swiglu(gate, up))
        return x + y


class SerialBlock(nn.Module):
    """y = x + attention(norm(x)); y + swiglu(norm'(y)): the feed-forward layer waits.

    The twin of ParallelBlock with the same projections and one norm more.

    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.1, with the norm before
    each layer (Xiong et al. 2020, arXiv 2002.04745).
    """

    def __init__(self, config: PaLMConfig) -> None:
        super().__init__()
        self.config = config
        D, M = config.dim, config.ff_dim
        self.attention_norm = nn.LayerNorm(D, bias=False)
        self.w_qkv = Linear(D, config.qkv_dim)
        self.w_attention = Linear(config.heads * config.head_dim, D)
        self.feedforward_norm = nn.LayerNorm(D, bias=False)
        self.w_gate_up = Linear(D, 2 * M)
        self.w_feedforward = Linear(M, D)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        rope: Rotations,
        mask: Bool[Tensor, "B T S"] | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
        last: int | None = None,
    ) -> Float[Tensor, "B L D"]:
        """The arguments of ParallelBlock."""
        if last is None:
            return self.all_tokens(x, rope, mask, cache, layer)
        return last_of_serial(self, x, rope, mask, cache, layer, last)

    def all_tokens(
        self,
        x: Float[Tensor, "B T D"],
        rope: Rotations,
        mask: Bool[Tensor, "B T S"] | None,
        cache: KVCache | None,
        layer: int,
    ) -> Float[Tensor, "B T D"]:
        """y = x + attention(norm(x)), then y + swiglu(norm'(y)), for all T tokens.

        `self.w_qkv` gives the columns q, k, v for `split_heads`; `self.w_gate_up` gives
        gate and up side by side, M columns each. The first reads
        `self.attention_norm`, the second `self.feedforward_norm`. All else, the cache
        included, is as in ParallelBlock.
        """
        q, k, v = split_heads(self.w_qkv(self.attention_norm(x)), self.config, rope)
        if cache is not None:
            k, v = cache.extend(layer, k, v)
        heads = rearrange(fused_attention(q, k, v, mask), "B H T K -> B T (H K)")
        x = x + self.w_attention(heads)
        gate, up = self.w_gate_up(self.feedforward_norm(x)).chunk(2, dim=-1)
        return x + self.w_feedforward(swiglu(gate, up))


@torch.no_grad()
def init_block(block: nn.Module, depth: int, generator: torch.Generator | None) -> None:
    """Draw a block's matrices from N(0, 1/fan_in): standard deviation 1/√fan_in.

    Those that write to the residual stream, `w_attention` and `w_feedforward`, are
    divided by √depth besides, so that the sum over layers keeps its size. The weights
    of norms stay 1.

    Args:
        block: a ParallelBlock or a SerialBlock; changed in place, without a gradient.
            Its matrices lie as in nn.Linear: rows for outputs, columns for inputs, and
            fan_in is the number of inputs.
        depth: how many blocks write to the same residual stream.
        generator: draws the numbers; None for torch's global one.

    Example: D = 64, M = 256, depth 4: `w_in` gets a standard deviation of 1/8,
    `w_feedforward` of 1/32.
    """
    for name, weight in block.named_parameters():
        if weight.dim() == 2:
            std = 1 / math.sqrt(weight.shape[1])
            if name.startswith(("w_attention", "w_feedforward")):
                std /= math.sqrt(depth)
            weight.normal_(0.0, std, generator=generator)


# --- the last tokens only ------------------------------------------------------------


def last_of_parallel(
    block: ParallelBlock,
    x: Float[Tensor, "B T D"],
    rope: Rotations,
    mask: Bool[Tensor, "B T S"] | None,
    cache: KVCache | None,
    layer: int,
    last: int,
) -> Float[Tensor, "B L D"]:
    """The last L tokens of `all_tokens`: of those before, keys and values will do."""
    config, begin = block.config, x.shape[1] - last
    if begin == 0:
        return block.all_tokens(x, rope, mask, cache, layer)
    cosine, sine = rope
    early = cosine[:, :, :begin], sine[:, :, :begin]
    late = cosine[:, :, begin:], sine[:, :, begin:]
    h = block.norm(x)
    qkv, gate, up = block.w_in(h[:, begin:]).split(block.widths, dim=-1)
    q, k, v = split_heads(qkv, config, late)
    queries = config.heads * config.head_dim
    kv = linear(h[:, :begin], block.w_in.weight[queries : block.widths[0]])
    kv = rearrange(kv, "B T (heads K) -> B heads T K", K=config.head_dim)
    k_early, v_early = kv.chunk(2, dim=1)
    k = torch.cat([rotate(k_early, *early), k], dim=2)
    v = torch.cat([v_early, v], dim=2)
    if cache is not None:
        k, v = cache.extend(layer, k, v)
    seen = None if mask is None else mask[:, begin:]
    heads = rearrange(fused_attention(q, k, v, seen), "B H T K -> B T (H K)")
    y = block.w_attention(heads) + block.w_feedforward(swiglu(gate, up))
    return x[:, begin:] + y


def last_of_serial(
    block: SerialBlock,
    x: Float[Tensor, "B T D"],
    rope: Rotations,
    mask: Bool[Tensor, "B T S"] | None,
    cache: KVCache | None,
    layer: int,
    last: int,
) -> Float[Tensor, "B L D"]:
    """The last L tokens of `all_tokens`: only these go on to the feed-forward."""
    q, k, v = split_heads(block.w_qkv(block.attention_norm(x)), block.config, rope)
    if cache is not None:
        k, v = cache.extend(layer, k, v)
    heads = rearrange(fused_attention(q, k, v, mask), "B H T K -> B T (H K)")
    x = (x + block.w_attention(heads))[:, -last:]
    gate, up = block.w_gate_up(block.feedforward_norm(x)).chunk(2, dim=-1)
    return x + block.w_feedforward(swiglu(gate, up))

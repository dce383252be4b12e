"""The transformer block, in parallel as in PaLM, and in series as elsewhere."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from minipalm.config import PaLMConfig
from minipalm.model.attention import attention
from minipalm.model.cache import KVCache
from minipalm.model.rope import rotate
from minipalm.model.swiglu import swiglu

Rotations = tuple[Float[Tensor, "#B 1 T half"], Float[Tensor, "#B 1 T half"]]


def split_heads(
    qkv: Float[Tensor, "B T C"], config: PaLMConfig, rope: Rotations
) -> tuple[
    Float[Tensor, "B H T K"], Float[Tensor, "B G T K"], Float[Tensor, "B G T K"]
]:
    """Cut C = (H + 2G)·K columns into rotated queries, rotated keys, and values.

    With the 2G·K columns of keys and values alone, there are no queries: H is 0.
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
        self.w_in = nn.Linear(D, sum(self.widths), bias=False)
        self.w_attention = nn.Linear(config.heads * config.head_dim, D, bias=False)
        self.w_feedforward = nn.Linear(M, D, bias=False)

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
        h = self.norm(x)
        begin = 0 if last is None else x.shape[1] - last
        late = [part[:, :, begin:] for part in rope]
        qkv, gate, up = self.w_in(h[:, begin:]).split(self.widths, dim=-1)
        q, k, v = split_heads(qkv, self.config, (late[0], late[1]))
        if begin:  # the tokens before are only looked at: keys and values will do
            queries = self.config.heads * self.config.head_dim
            kv = F.linear(h[:, :begin], self.w_in.weight[queries : self.widths[0]])
            early = (rope[0][:, :, :begin], rope[1][:, :, :begin])
            _, k_early, v_early = split_heads(kv, self.config, early)
            k, v = torch.cat([k_early, k], 2), torch.cat([v_early, v], 2)
        if cache is not None:
            k, v = cache.extend(layer, k, v)
        seen = None if mask is None else mask[:, begin:]
        heads = rearrange(attention(q, k, v, seen), "B H T K -> B T (H K)")
        y = self.w_attention(heads) + self.w_feedforward(swiglu(gate, up))
        return x[:, begin:] + y


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
        self.w_qkv = nn.Linear(D, config.qkv_dim, bias=False)
        self.w_attention = nn.Linear(config.heads * config.head_dim, D, bias=False)
        self.feedforward_norm = nn.LayerNorm(D, bias=False)
        self.w_gate_up = nn.Linear(D, 2 * M, bias=False)
        self.w_feedforward = nn.Linear(M, D, bias=False)

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
        q, k, v = split_heads(self.w_qkv(self.attention_norm(x)), self.config, rope)
        if cache is not None:
            k, v = cache.extend(layer, k, v)
        heads = rearrange(attention(q, k, v, mask), "B H T K -> B T (H K)")
        x = x + self.w_attention(heads)
        x = x if last is None else x[:, -last:]
        gate, up = self.w_gate_up(self.feedforward_norm(x)).chunk(2, dim=-1)
        return x + self.w_feedforward(swiglu(gate, up))


@torch.no_grad()
def init_block(block: nn.Module, depth: int, generator: torch.Generator | None) -> None:
    """Draw a block's matrices from N(0, 1/fan_in); those that write to the residual
    stream are divided by √depth besides, so that the sum over layers keeps its size.
    """
    for name, weight in block.named_parameters():
        if weight.dim() == 2:
            std = 1 / math.sqrt(weight.shape[1])
            if name.startswith(("w_attention", "w_feedforward")):
                std /= math.sqrt(depth)
            weight.normal_(0.0, std, generator=generator)

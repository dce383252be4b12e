"""LoRA: train two thin matrices beside each large one, which stays as it is."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from minipalm.model.attention import fused_attention
from minipalm.model.block import ParallelBlock, Rotations, split_heads
from minipalm.model.cache import KVCache
from minipalm.model.linear import linear
from minipalm.model.palm import PaLM
from minipalm.model.swiglu import swiglu


class LowRank(nn.Module):
    """x ↦ (alpha / rank) · x Aᵀ Bᵀ: a matrix of few degrees of freedom, to be trained.

    A is drawn from N(0, 1/inputs), B is 0: at first it adds nothing. Both are float32,
    whatever the type of x, since a step is too small for bfloat16 to hold (its rounding
    swallows what is less than 1/256 of a weight); the products have the type of x.

    Args:
        inputs, outputs: widths.
        rank: columns of B and rows of A, from 1.
        alpha: twice as large, the same step of A and B does twice as much.
        like: a weight on the device to live on.
        generator: draws A; None for torch's global one.

    Source: Hu et al. 2021 (arXiv 2106.09685), section 4.1.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        rank: int,
        alpha: float,
        like: Tensor,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.scale = alpha / rank
        self.a = nn.Parameter(torch.empty(rank, inputs, device=like.device))
        self.b = nn.Parameter(torch.zeros(outputs, rank, device=like.device))
        if not self.a.is_meta:
            nn.init.normal_(self.a, std=1 / math.sqrt(inputs), generator=generator)

    def forward(self, x: Float[Tensor, "*batch I"]) -> Float[Tensor, "*batch O"]:
        thin = F.linear(x, self.a.to(x.dtype))
        return F.linear(thin, (self.scale * self.b).to(x.dtype))

    def product(self) -> Float[Tensor, "O I"]:
        """(alpha / rank) · B A: what could be added to a weight instead."""
        return self.scale * self.b @ self.a


class AdaptedBlock(ParallelBlock):
    """A ParallelBlock with a LowRank beside q, k, v and one beside attention's way out.

    Its own matrices are those of the block that it is made of, the same objects, and
    get no gradient. The feed-forward, three quarters of the weights, has no adapter.

    Args:
        block: lends norm, w_in, w_attention and w_feedforward.
        rank, alpha, generator: see LowRank.
    """

    def __init__(
        self,
        block: ParallelBlock,
        rank: int,
        alpha: float,
        generator: torch.Generator | None = None,
    ) -> None:
        nn.Module.__init__(self)  # not ParallelBlock's: it would make new matrices
        self.config, self.widths = block.config, block.widths
        self.norm, self.w_in = block.norm, block.w_in
        self.w_attention, self.w_feedforward = block.w_attention, block.w_feedforward
        D, qkv, heads = self.config.dim, self.widths[0], self.w_attention.in_features
        like = self.w_in.weight
        self.lora_qkv = LowRank(D, qkv, rank, alpha, like, generator)
        self.lora_attention = LowRank(heads, D, rank, alpha, like, generator)
        self.folded = False  # the adapters stand in the matrices themselves: `merged`

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        rope: Rotations,
        mask: Bool[Tensor, "B T S"] | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
        last: int | None = None,
    ) -> Float[Tensor, "B L D"]:
        """The arguments of ParallelBlock; two terms more.

        The three parts of `w_in` are three products here: their gradients need not be
        put side by side again, since the matrix itself gets none.
        """
        if self.folded:
            return super().forward(x, rope, mask, cache, layer, last)
        w_qkv, w_gate, w_up = self.w_in.weight.split(self.widths)
        h = self.norm(x)
        qkv = linear(h, w_qkv) + self.lora_qkv(h)
        q, k, v = split_heads(qkv, self.config, rope)
        if cache is not None:
            k, v = cache.extend(layer, k, v)
        if last is not None:  # all tokens are looked at, only these go on
            x, h, q = x[:, -last:], h[:, -last:], q[:, :, -last:]
            mask = None if mask is None else mask[:, -last:]
        heads = rearrange(fused_attention(q, k, v, mask), "B H T K -> B T (H K)")
        y = self.w_attention(heads) + self.lora_attention(heads)
        hidden = swiglu(linear(h, w_gate), linear(h, w_up))
        return x + (y + self.w_feedforward(hidden))


def with_adapters(
    model: PaLM,
    rank: int,
    alpha: float | None = None,
    generator: torch.Generator | None = None,
) -> PaLM:
    """A policy that shares every weight with its reference, and trains adapters only.

    No weight is copied: `model` goes on as the reference, and its weights get no
    gradient any more. Adam's memory and the gradients shrink with what is trained: at
    dim 4096, depth 32 and rank 16 from 6.7 billion numbers to 5.3 million.

    Args:
        model: parallel blocks; frozen by this call.
        rank: of the adapters; 4 to 64 are usual.
        alpha: see LowRank; None for twice the rank.
        generator: draws the adapters; None for torch's global one.

    Returns:
        a PaLM that gives `model`'s logits, but for rounding, until its adapters are
        trained. Their names, and no others, have ".lora_" in them in its state_dict.

    Raises:
        ValueError: the rank is below 1, or the blocks are not parallel ones.

    Source: Hu et al. 2021, LoRA (arXiv 2106.09685), section 4.
    """
    if rank < 1:
        raise ValueError(f"the rank of an adapter is 1 or more (got {rank})")
    alpha = 2 * rank if alpha is None else alpha
    blocks = []
    for block in model.requires_grad_(False).blocks:
        if not isinstance(block, ParallelBlock) or isinstance(block, AdaptedBlock):
            raise ValueError("adapters need a model of plain parallel blocks")
        blocks.append(AdaptedBlock(block, rank, alpha, generator))
    with torch.device("meta"):
        adapted = PaLM(model.config)
    adapted.embedding, adapted.norm = model.embedding, model.norm
    adapted.blocks = nn.ModuleList(blocks)
    return adapted


def adapter_parameters(model: PaLM) -> list[nn.Parameter]:
    """The weights of the adapters, all that is trained of a model with adapters."""
    return [w for name, w in model.named_parameters() if ".lora_" in name]


@contextmanager
def merged(model: PaLM) -> Iterator[PaLM]:
    """For the time of a `with` block, add each adapter to the weight that it is beside.

    W + (alpha / rank) B A costs what W costs: this is how to sample fast. The weights
    change in place and come back bit for bit, since what they were is kept, not
    computed. As they are shared, the reference samples as the policy meanwhile. No
    gradient may be computed inside.

    Args:
        model: from `with_adapters`. Without adapters nothing happens.

    Source: Hu et al. 2021 (arXiv 2106.09685), section 4.1, "No Additional Inference
    Latency".
    """
    adapted = [block for block in model.blocks if isinstance(block, AdaptedBlock)]
    kept: list[tuple[Tensor, Tensor]] = []
    try:
        for block in adapted:
            qkv = block.w_in.weight.detach()[: block.widths[0]]
            out = block.w_attention.weight.detach()
            for weight, lora in (qkv, block.lora_qkv), (out, block.lora_attention):
                kept.append((weight, weight.clone()))
                weight.copy_(weight.float() + lora.product().detach())
            block.folded = True
        yield model
    finally:
        for weight, before in kept:
            weight.copy_(before)
        for block in adapted:
            block.folded = False

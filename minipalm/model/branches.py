"""Parallel blocks with buffers that never move, in two branches at the same time.

Attention is many small kernels that wait for each other; the feed-forward is one large
matrix that has to be read. In a parallel block neither needs the other, so a GPU does
both at once, each on a stream of its own, and attention costs next to nothing.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minipalm.config import PaLMConfig
from minipalm.model.attention import fused_attention
from minipalm.model.block import ParallelBlock, Rotations, split_heads
from minipalm.model.compiled import compiled
from minipalm.model.lora import AdaptedBlock, LowRank
from minipalm.model.palm import PaLM
from minipalm.model.swiglu import swiglu


def hidden_with_buffers(
    model: PaLM,
    ids: Int[Tensor, "B T"],
    mask: Bool[Tensor, "B T S"],
    rope: Rotations,
    columns: Int[Tensor, "T"],
    keys: Float[Tensor, "depth B G C K"],
    values: Float[Tensor, "depth B G C K"],
    stream: torch.cuda.Stream | None,
) -> Float[Tensor, "B T D"]:
    """`model.hidden` of new tokens; their keys and values go into the buffers.

    Args:
        model: parallel blocks. Adapters are added, as the blocks themselves do it,
            unless they are merged.
        ids, mask, rope: as in PaLM. A prompt's tokens look at each other (S = T); a
            single token looks at all C columns of the buffers (S = C).
        columns: of the buffers, where these tokens stand.
        keys, values: changed in place.
        stream: for the branch of attention; None on a CPU.
    """

    def fast(function: Callable[..., Any]) -> Callable[..., Any]:
        return compiled(function) if ids.is_cuda else function

    x = model.embedding(ids)
    attended, fed = torch.zeros_like(x), torch.zeros_like(x)
    for layer, block in enumerate(model.blocks):
        b: Any = block
        x, read, h = fast(enter)(x, attended, fed, b.norm.weight, b.w_in.weight)
        place = (columns, keys[layer], values[layer])
        lora = adapters(b)
        with beside(stream):
            w_attention = b.w_attention.weight
            attended = fast(attend)(
                h, read, mask, rope, place, w_attention, b.config, lora
            )
        fed = fast(feed)(h, b.w_feedforward.weight, b.config)
        if stream is not None:
            torch.cuda.current_stream().wait_stream(stream)
    return model.norm(x + (attended + fed))


@contextmanager
def beside(stream: torch.cuda.Stream | None) -> Iterator[None]:
    """Work of the block goes to `stream`, where it begins when all before is done."""
    if stream is None:
        yield
        return
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield


def enter(
    x: Float[Tensor, "B T D"],
    attended: Float[Tensor, "B T D"],
    fed: Float[Tensor, "B T D"],
    norm: Float[Tensor, "D"],
    w_in: Float[Tensor, "W D"],
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B T D"], Float[Tensor, "B T W"]]:
    """Add what the layer before has found; then norm, then input projection."""
    x = x + (attended + fed)
    read = F.layer_norm(x, norm.shape, norm)
    return x, read, F.linear(read, w_in)


Adapters = tuple[LowRank, LowRank]  # beside q, k, v, and beside attention's way out


def adapters(block: ParallelBlock) -> Adapters | None:
    """Those of a block that has some which are not merged into its weights."""
    if isinstance(block, AdaptedBlock) and not block.folded:
        return block.lora_qkv, block.lora_attention
    return None


def attend(
    h: Float[Tensor, "B T W"],
    read: Float[Tensor, "B T D"],
    mask: Bool[Tensor, "B T S"],
    rope: Rotations,
    place: tuple[Int[Tensor, "T"], Float[Tensor, "B G C K"], Float[Tensor, "B G C K"]],
    w_attention: Float[Tensor, "D HK"],
    config: PaLMConfig,
    lora: Adapters | None,
) -> Float[Tensor, "B T D"]:
    """One branch: the columns q, k, v of h, which the norm's `read` was made into."""
    columns, keys, values = place
    qkv = h[..., : config.qkv_dim]
    if lora is not None:
        qkv = qkv + lora[0](read)
    q, k, v = split_heads(qkv, config, rope)
    keys.index_copy_(2, columns, k)
    values.index_copy_(2, columns, v)
    if h.shape[1] == 1:
        heads = of_one_token(q, keys, values, mask)
    else:
        heads = rearrange(fused_attention(q, k, v, mask), "B H T K -> B T (H K)")
    y = F.linear(heads, w_attention)
    return y if lora is None else y + lora[1](heads)


def of_one_token(
    q: Float[Tensor, "B H 1 K"],
    keys: Float[Tensor, "B G C K"],
    values: Float[Tensor, "B G C K"],
    mask: Bool[Tensor, "B 1 C"],
) -> Float[Tensor, "B 1 HK"]:
    """`attention` of the newest tokens: heads with the same keys are rows of a matrix.

    So few scores fit anywhere, and two products are faster than a kernel with tiles.
    """
    rows = rearrange(q, "B (G heads) 1 K -> B G heads K", G=keys.shape[1])
    scores = rows @ keys.mT / math.sqrt(q.shape[-1])
    weights = scores.masked_fill(~mask[:, None], -torch.inf).softmax(dim=-1)
    return rearrange(weights @ values, "B G heads K -> B 1 (G heads K)")


def feed(
    h: Float[Tensor, "B T W"], w_feedforward: Float[Tensor, "D M"], config: PaLMConfig
) -> Float[Tensor, "B T D"]:
    """The other: the columns gate and up."""
    gate, up = h[..., config.qkv_dim :].chunk(2, dim=-1)
    return F.linear(swiglu(gate, up), w_feedforward)

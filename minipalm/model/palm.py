"""A whole PaLM: embedding, blocks, a last norm, and the embedding again as head."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from minipalm.config import PaLMConfig
from minipalm.model.attention import attention_mask
from minipalm.model.block import ParallelBlock, Rotations, SerialBlock, init_block
from minipalm.model.cache import KVCache
from minipalm.model.linear import linear
from minipalm.model.rope import rotations


class PaLM(nn.Module):
    """A decoder-only language model with a tied head.

    Initialisation: embedding N(0, embed_std²), matrices see `init_block`. Embedding and
    head are one matrix, so embed_std sets both how loud a token is in the residual
    stream and how sharp the first logits are: their standard deviation is embed_std·√D.
    Too small and the blocks drown the token, too large and the first steps are spent
    on unlearning confident noise.

    Args:
        config: sizes.
        generator: draws the initial weights; None for torch's global one.
        block: ParallelBlock, or SerialBlock to compare.

    Source: Chowdhery et al. 2022, PaLM (arXiv 2204.02311), section 2. The
    initialisation is our own: it suits a few hundred steps.
    """

    def __init__(
        self,
        config: PaLMConfig,
        generator: torch.Generator | None = None,
        block: type[ParallelBlock] | type[SerialBlock] = ParallelBlock,
    ) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.blocks = nn.ModuleList(block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.dim, bias=False)
        if not self.embedding.weight.is_meta:
            nn.init.normal_(
                self.embedding.weight, std=config.embed_std, generator=generator
            )
            for one in self.blocks:
                init_block(one, config.depth, generator)

    def places(
        self,
        ids: Int[Tensor, "B T"],
        segments: Int[Tensor, "B T"] | None = None,
        positions: Int[Tensor, "B T"] | None = None,
        cache: KVCache | None = None,
    ) -> tuple[Bool[Tensor, "B T S"] | None, Rotations]:
        """What each token may see, and how far RoPE turns it; arguments of `hidden`.

        The segments are noted in the cache, where there is one.
        """
        mask = None
        if segments is not None or cache is not None:
            new = torch.ones_like(ids) if segments is None else segments
            seen = new if cache is None else cache.append_segments(new)
            mask = attention_mask(new, seen)
        if positions is None:
            if mask is None:
                positions = torch.arange(ids.shape[1], device=ids.device)[None]
            else:
                positions = mask.sum(-1) - 1
        return mask, rotations(positions, self.config.head_dim, self.config.rope_base)

    def hidden(
        self,
        ids: Int[Tensor, "B T"],
        segments: Int[Tensor, "B T"] | None = None,
        positions: Int[Tensor, "B T"] | None = None,
        cache: KVCache | None = None,
        last: int | None = None,
    ) -> Float[Tensor, "B L D"]:
        """The normalised state after the last block, one a token.

        From `self.embedding` through `self.blocks` to `self.norm`; `self.places` says
        what each token sees and how far it is turned. A block is called as
        block(x, rope, mask, cache, layer, last), layers counted from 0.

        Args:
            ids: tokens.
            segments: 0 for padding, 1, 2, ... for texts packed into one row; a token
                sees its own text only. None: one text a row, no padding.
            positions: places for RoPE. None: the number of earlier tokens seen, which
                is right for left padding and for packed rows alike.
            cache: earlier tokens of the same rows. Each block adds the new ones;
                `cache.advance(T)` follows once, when all blocks have.
            last: L, from 1 to T: how many tokens at the end of the rows are asked for;
                the last block leaves out what only the others need, and no block
                before it may. None for all.

        Example: ids of shape (2, 5) and dim 48 give (2, 5, 48), with last=1 (2, 1, 48).

        Raises:
            ValueError: last is out of its range.
        """
        if last is not None and not 1 <= last <= ids.shape[1]:
            raise ValueError(
                f"last must be from 1 to the {ids.shape[1]} tokens of a row: {last}"
            )
        mask, rope = self.places(ids, segments, positions, cache)
        x = self.embedding(ids)
        for layer, block in enumerate(self.blocks):
            end = layer == len(self.blocks) - 1
            x = block(x, rope, mask, cache, layer, last if end else None)
        if cache is not None:
            cache.advance(ids.shape[1])
        return self.norm(x)

    def logits(self, hidden: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch V"]:
        """Scores of the next token: the tied head, without a bias."""
        return linear(hidden, self.embedding.weight)

    def forward(
        self,
        ids: Int[Tensor, "B T"],
        segments: Int[Tensor, "B T"] | None = None,
        positions: Int[Tensor, "B T"] | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "B T V"]:
        """Logits of the token after each token; the arguments of `hidden`."""
        return self.logits(self.hidden(ids, segments, positions, cache))


def count_parameters(config: PaLMConfig) -> int:
    """Parameters of a PaLM with parallel blocks, without building it.

    A layer has D·(H + 2G)·K for q, k, v, D·2M for gate and up, H·K·D and M·D for the
    two ways out, D for its norm; the model adds V·D (tied) and D for the last norm.
    H, G, K, M and V are heads, kv_heads, head_dim, ff_dim and vocab_size.

    Example: dim 4096, depth 32, heads 16, head_dim 64, vocabulary 256: 6.729 billion.
    """
    D, K, M = config.dim, config.head_dim, config.ff_dim
    attention = D * config.qkv_dim + config.heads * K * D
    feedforward = D * 2 * M + M * D
    return config.depth * (attention + feedforward + D) + config.vocab_size * D + D

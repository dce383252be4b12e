"""The key/value cache: what earlier tokens computed, kept for the next one."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from minipalm.config import PaLMConfig


class KVCache:
    """Keys and values of every layer for at most `size` tokens of a batch.

    Attributes:
        segments: Int "B size"; 0 where padding stands (see `attention_mask`).
        length: how many tokens are in the cache.
    """

    def __init__(
        self, config: PaLMConfig, batch: int, size: int, like: Float[Tensor, "..."]
    ) -> None:
        """`like` gives device and type: a weight of the model."""
        shape = (config.depth, batch, config.kv_heads, size, config.head_dim)
        self.keys = like.new_zeros(shape)
        self.values = like.new_zeros(shape)
        self.segments = torch.zeros(batch, size, dtype=torch.long, device=like.device)
        self.length = 0

    def extend(
        self, layer: int, k: Float[Tensor, "B G T K"], v: Float[Tensor, "B G T K"]
    ) -> tuple[Float[Tensor, "B G S K"], Float[Tensor, "B G S K"]]:
        """Write T new tokens of a layer; return all S = length + T of that layer.

        The length changes with `advance`, once all layers have written.
        """
        end = self.length + k.shape[2]
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def append_segments(self, segments: Int[Tensor, "B T"]) -> Int[Tensor, "B S"]:
        """Note the segments of T tokens that are about to be written; return all S."""
        end = self.length + segments.shape[1]
        self.segments[:, self.length : end] = segments
        return self.segments[:, :end]

    def advance(self, tokens: int) -> None:
        self.length += tokens

    def keep(self, rows: Int[Tensor, "R"]) -> None:
        """Drop all rows of the batch but these (some answers have ended)."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]
        self.segments = self.segments[rows]

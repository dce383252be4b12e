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

        Keys go to `self.keys[layer]`, values to `self.values[layer]`, both of shape
        "B G size K", behind the `length` tokens that are there. The length itself stays
        as it is: all layers write at the same place, and `advance` moves it once they
        have.

        Args:
            layer: from 0.
            k, v: of the new tokens; keys already rotated.

        Returns:
            keys and values of this layer, the earlier tokens first; what is not yet
            written is left out.

        Example: length 5 and T = 1 write place 5 and return places 0 to 5.
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


def cache_bytes(config: PaLMConfig, batch: int, tokens: int, each: int = 2) -> int:
    """Bytes that the keys and values of `tokens` tokens of a batch take.

    Every layer keeps a key and a value of width K for each key/value head, however many
    query heads read them.

    Args:
        config: of the network: depth, kv_heads, head_dim.
        batch: rows.
        tokens: of a row.
        each: bytes of a number: 2 for bfloat16, 4 for float32.

    Example: depth 32, one key/value head of width 64: 8192 bytes a token of a row.
    """
    a_layer = config.kv_heads * config.head_dim
    return 2 * config.depth * a_layer * batch * tokens * each

"""The peers' networks, with as many weights as ours."""

import warnings
from typing import Any

import torch

from bench.full.measure import device
from minipalm.config import PaLMConfig

warnings.filterwarnings("ignore", category=FutureWarning, module="torch.backends")


def in_bfloat16(make: Any) -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device():
            return make()
    finally:
        torch.set_default_dtype(before)


def palm_rlhf(config: PaLMConfig) -> Any:
    from palm_rlhf_pytorch import PaLM

    return in_bfloat16(
        lambda: PaLM(
            num_tokens=config.vocab_size,
            dim=config.dim,
            depth=config.depth,
            heads=config.heads,
            dim_head=config.head_dim,
            flash_attn=True,
        ).bfloat16()  # its tables of rotations too, or it fails
    )


def llama(config: PaLMConfig, kv_heads: int | None = None) -> Any:
    """LlamaForCausalLM of our dim, depth and number of weights.

    Args:
        kv_heads: None for one a query head, its usual form.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    D, K = config.dim, 2 * config.head_dim
    heads = D // K
    kv_heads = kv_heads or heads
    a_layer = D * (config.qkv_dim + config.heads * config.head_dim + 3 * config.ff_dim)
    attention = D * (2 * heads + 2 * kv_heads) * K
    shape = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=D,
        intermediate_size=(a_layer - attention) // (3 * D) // 8 * 8,
        num_hidden_layers=config.depth,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=K,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
        attn_implementation="sdpa",
        dtype="bfloat16",
    )
    return in_bfloat16(lambda: LlamaForCausalLM(shape))

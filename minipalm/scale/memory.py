"""What a network holds in a GPU's memory, part by part, at the worst moment of a step.

All in bytes a GPU. N weights, g GPUs; a block is one of `depth` layers.
"""

from minipalm.config import MachineConfig, PaLMConfig
from minipalm.model.palm import count_parameters
from minipalm.scale.flops import adapter_parameters

BYTES = {"float32": 4, "bfloat16": 2}
LOGIT_BYTES = 12  # a logit at the loss: it, its law, and its gradient, in float32
Parts = dict[str, float]  # bytes by name


def state_bytes(
    frozen: int, trained: int, weight_bytes: int = 4, gpus: int = 1
) -> dict[str, float]:
    """Bytes that each GPU holds of a network's weights, gradients and AdamW's moments.

    A frozen weight is there for products only, in bfloat16: 2 bytes. A trained one has
    `weight_bytes`; its gradient, and each of AdamW's two moments, is of the same type.
    Everything is cut into equal parts, one a GPU (ZeRO's third stage, FSDP).

    Args:
        frozen: weights that are never changed.
        trained: weights that are.
        weight_bytes: of a trained weight: 4, or 2 for bfloat16.
        gpus: g, 1 or more.

    Returns:
        bytes by the names "weights", "gradients" and "moments".

    Raises:
        ValueError: gpus is less than 1, or weight_bytes neither 2 nor 4.

    Example: 1000 weights, all trained, in float32 on two GPUs: weights 2000, gradients
    2000, moments 4000. Frozen, with 10 trained ones beside them: 1020, 20, 40.

    Source: Rajbhandari et al. 2019, ZeRO (arXiv 1910.02054), sections 3.1 and 5.
    """
    if gpus < 1 or weight_bytes not in (2, 4):
        raise ValueError(
            "expected 1 GPU or more, and 2 or 4 bytes a trained weight "
            f"(got {gpus} and {weight_bytes})"
        )
    mine = weight_bytes * trained / gpus
    return {
        "weights": 2 * frozen / gpus + mine,
        "gradients": mine,
        "moments": 2 * mine,
    }


def network_state(
    config: PaLMConfig, machine: MachineConfig, gpus: int = 1, adapters: bool = False
) -> Parts:
    """`state_bytes` of a network that is trained: whole, or through its adapters.

    Adapters are few and have float32 whatever the machine's weights have.
    """
    whole = count_parameters(config)
    if adapters:
        small = adapter_parameters(config, machine.lora_rank)
        return state_bytes(whole, small, gpus=gpus)
    return state_bytes(0, whole, BYTES[machine.weights], gpus)


def frozen_state(config: PaLMConfig, gpus: int = 1) -> float:
    """A network that is only asked: the reference, the reward model."""
    return state_bytes(count_parameters(config), 0, gpus=gpus)["weights"]


def kept_bytes(
    config: PaLMConfig, compiled: bool, adapters: bool = False, stream: int = 2
) -> int:
    """What one token leaves behind in one block for the backward pass.

    Its place in the residual stream, D, and the norm of it, D; queries, keys and values
    as projected, once more rotated, and twice as mixed; gate and up, 2·M, and their
    gated product, M, which only a *trained* matrix after it needs. Adapters keep one
    more sum of queries, keys and values. Without torch.compile the silu of the gate
    and one copy of the stream are kept, too.

    Args:
        stream: bytes of a number of the residual stream; all else is bfloat16, 2.
    """
    D, M, H, G = config.dim, config.ff_dim, config.heads, config.kv_heads
    numbers = D + config.qkv_dim + (H + G + 2 * H) * config.head_dim + 2 * M
    numbers += config.qkv_dim if adapters else M
    if not compiled:
        numbers += M + D
    return 2 * numbers + stream * D


def working_bytes(config: PaLMConfig, tokens: int) -> int:
    """Gradients in one block that live for a moment: of gate and up, and of the stream.

    (That of their product takes the product's place.)
    """
    return 2 * tokens * (2 * config.ff_dim + 2 * config.dim)


def exchange_bytes(config: PaLMConfig, gpus: int) -> float:
    """What FSDP needs besides its shards: two whole blocks in bfloat16, the one at work
    and the next; the gradient of one in float32, to be added up; and the embedding."""
    if gpus == 1:
        return 0.0
    embedding = config.vocab_size * config.dim
    block = (count_parameters(config) - embedding) / config.depth
    return (2 * 2 + 4) * block + 2 * embedding


def training_peak(
    config: PaLMConfig,
    machine: MachineConfig,
    tokens: int,
    gpus: int = 1,
    adapters: bool = False,
    accumulates: bool = False,
    logit_bytes: int = LOGIT_BYTES,
) -> Parts:
    """A network's memory at the worst moment of a training step, by its parts.

    There are two such moments. When the backward pass *begins*, all activations are
    there, and no gradients (unless those of an earlier micro-batch are). When it
    *ends*, all gradients are there, and the activations of one block.

    Args:
        config: of the network.
        machine: weights, compile, recompute, and the adapters' rank.
        tokens: of a micro-batch, on one GPU.
        gpus: that share weights, gradients and moments.
        adapters: whether only adapters are trained.
        accumulates: whether a step has several micro-batches.
        logit_bytes: of a logit at the loss; less where the loss is compiled.
    """
    state = network_state(config, machine, gpus, adapters)
    # On one GPU products make bfloat16 of float32 weights, and keep it until the
    # gradient has gone through; the embedding's float32 goes on in the stream.
    masters = machine.weights == "float32" and gpus == 1 and not adapters
    copy = 2.0 * count_parameters(config) if masters else 0.0
    stream = 4 if masters else 2
    one = kept_bytes(config, machine.compile, adapters, stream) * tokens
    every = config.depth * one
    if machine.recompute:  # what goes into each block, and one block as it is again
        every = config.depth * stream * config.dim * tokens + one
    working = working_bytes(config, tokens)
    head = logit_bytes * config.vocab_size * tokens
    begin = {
        **state,
        "gradients": state["gradients"] if accumulates else 0.0,
        "copies": copy / config.depth if machine.recompute else copy,
        "activations": every,
        "working": max(working, head),
        "exchange": exchange_bytes(config, gpus),
    }
    end = {
        **begin,
        "gradients": state["gradients"],
        "copies": copy / config.depth,
        "activations": one,
        "working": working,
    }
    return max(begin, end, key=total)


def sampling_bytes(config: PaLMConfig, rows: int, length: int, copied: bool) -> Parts:
    """What answering needs besides the weights that are trained.

    Args:
        rows: answers at once on one GPU.
        length: of prompt and answer together.
        copied: whether a copy of the policy in bfloat16, whole on every GPU, is kept
            for it. With adapters there is none: they are added into the frozen weights,
            and taken out again.
    """
    pairs = 2 * config.kv_heads * config.head_dim * config.depth
    return {
        "copy": 2.0 * count_parameters(config) if copied else 0.0,
        "keys and values": 2.0 * pairs * length * rows,
        "working": 3.0 * 4 * config.vocab_size * rows,  # logits in float32, sorted out
    }


def asking_bytes(
    config: PaLMConfig, tokens: int, gpus: int, head: bool = True
) -> float:
    """A pass without gradients: one block's activations, the head, what FSDP needs."""
    block = 2 * tokens * (3 * config.ff_dim + 3 * config.dim)
    logits = 8 * config.vocab_size * tokens if head else 0  # and their logarithms
    return max(block, logits) + exchange_bytes(config, gpus)


def total(parts: Parts) -> float:
    return sum(parts.values())

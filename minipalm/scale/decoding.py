"""How long sampling takes: every step reads all weights for one token a row."""

from minipalm.config import MachineConfig, PaLMConfig
from minipalm.model.palm import count_parameters
from minipalm.scale.gpu import GPU
from minipalm.scale.seconds import forward_seconds

# Set by measurement, see `minipalm.scale.measured`.
SMALL_PRODUCTS = 0.85  # share of the products' rate where a batch has few rows
# Seconds a layer that its many small kernels take: recorded as a graph, and started one
# by one from Python.
LAYER = {True: 31e-6, False: 500e-6}


def decode_floor(
    config: PaLMConfig, rows: int, seen: float, flops: float, bandwidth: float
) -> float:
    """The least time of one decoding step: one more token for each of some rows.

    Every weight is read once, however many rows there are, and so are the keys and
    values of the tokens seen, all in bfloat16. And a token costs its forward pass:
    2 operations a weight, and 4·H·K a layer for each token seen. Reading and computing
    go on at the same time, so the longer of the two counts.

    Args:
        config: N is `count_parameters(config)`; a layer keeps G·K keys and as many
            values a token, G is kv_heads, K is head_dim, H is heads.
        rows: answers that are written at once.
        seen: tokens of a row so far.
        flops: operations a second.
        bandwidth: bytes a second.

    Returns:
        seconds.

    Raises:
        ValueError: there are no rows.

    Example: the full-size policy (V = 32,768) on an H200 (685e12, 4.3e12), seen = 192:
    3.19 ms for one row, 3.22 ms for 64, 5.14 ms for 256.

    Source: Pope et al. 2022 (arXiv 2211.05102), section 2.
    """
    if rows < 1:
        raise ValueError(f"expected 1 row or more (got {rows})")
    weights = count_parameters(config)
    pairs = 2 * config.kv_heads * config.head_dim * config.depth
    read = 2 * (weights + rows * seen * pairs)
    attention = 4 * config.heads * config.head_dim * config.depth * seen
    computed = rows * (2 * weights + attention)
    return max(read / bandwidth, computed / flops)


def decode_seconds(
    config: PaLMConfig, machine: MachineConfig, rows: int, seen: float, gpu: GPU
) -> float:
    """One decoding step as it is: products of few rows are slower, kernels small."""
    rate = SMALL_PRODUCTS * gpu.flops
    floor = decode_floor(config, rows, seen, rate, gpu.bandwidth)
    return floor + LAYER[machine.decoder] * config.depth


def rollout_seconds(
    config: PaLMConfig,
    machine: MachineConfig,
    rows: int,
    max_prompt: int,
    max_response: int,
    gpu: GPU,
) -> float:
    """Prompts read, answers written to their greatest length."""
    prefill = forward_seconds(config, machine, rows * max_prompt, max_prompt, gpu)
    seen = max_prompt + max_response / 2
    step = decode_seconds(config, machine, rows, seen, gpu)
    return prefill + (max_response - 1) * step

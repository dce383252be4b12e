"""How long a training step takes: products, memory, and the wire between GPUs.

The constants were set by measurements of prototypes of the same shapes
(data/results/plan_prototypes.json); all else is counted. Times in seconds.
"""

from minipalm.config import MachineConfig, PaLMConfig
from minipalm.model.palm import count_parameters
from minipalm.scale.flops import (
    adapter_parameters,
    forward_flops,
    training_flops,
)
from minipalm.scale.gpu import GPU
from minipalm.scale.memory import BYTES, kept_bytes
from minipalm.scale.sharding import fsdp_traffic

# Norms, gates, rotations, the softmax of the head: all that is not a product reads and
# writes memory. So many bytes, for each byte that a block keeps for its backward pass:
TRAFFIC = {True: 5.7, False: 13.0}  # compiled, and not
OPTIMIZER = {4: 0.80, 2: 0.61}  # share of the bandwidth, by bytes of a weight


def elementwise_seconds(
    config: PaLMConfig, machine: MachineConfig, tokens: float, gpu: GPU
) -> float:
    """What is not a product, forward and backward: a third of it is forward."""
    kept = kept_bytes(config, compiled=True) * config.depth * tokens
    return TRAFFIC[machine.compile] * kept / gpu.bandwidth


def forward_seconds(
    config: PaLMConfig, machine: MachineConfig, tokens: float, length: int, gpu: GPU
) -> float:
    """A pass without gradients over rows of `length` tokens."""
    products = tokens * forward_flops(config, (length + 1) / 2) / gpu.flops
    return products + elementwise_seconds(config, machine, tokens, gpu) / 3


def optimizer_seconds(
    numbers: float, weight_bytes: int, gpu: GPU, gpus: int = 1
) -> float:
    """Clipping and AdamW: they read and write, and hardly compute.

    The norm reads the gradients, clipping reads and writes them, AdamW reads four
    numbers a weight (weight, gradient, two moments) and writes three: ten in all.
    """
    moved = 10 * weight_bytes * numbers / gpus
    return moved / (OPTIMIZER[weight_bytes] * gpu.bandwidth)


def training_seconds(
    config: PaLMConfig,
    machine: MachineConfig,
    rows: float,
    length: int,
    gpu: GPU,
    gpus: int = 1,
    micro_batches: int = 1,
    adapters: bool = False,
) -> float:
    """One optimizer step, zeroing, clipping and AdamW included.

    Nothing of the wire is hidden behind products: on two H200s nothing was.

    Args:
        rows: of the step, on each GPU.
        length: of a row.
        micro_batches: that the rows are cut into.
        adapters: whether only adapters are trained.
    """
    tokens = rows * length
    whole = count_parameters(config)
    trained = adapter_parameters(config, machine.lora_rank) if adapters else whole
    weight_bytes = 4 if adapters else BYTES[machine.weights]
    flops = training_flops(config, length, adapters, machine.recompute)
    elementwise = elementwise_seconds(config, machine, tokens, gpu)
    if machine.recompute:
        elementwise *= 4 / 3
    if machine.recompute and machine.compile:
        # nothing before a block's end needs its last products, the ways out, again
        heads = config.heads * config.head_dim
        flops -= 2 * config.depth * config.dim * (config.ff_dim + heads)
    casts = 0.0
    if weight_bytes == 4 and not adapters:  # to bfloat16, and gradients back
        casts = micro_batches * 2 * (4 + 2) * whole / gpus / gpu.bandwidth
    wire = fsdp_traffic(whole, trained, gpus, micro_batches) / gpu.link
    products = tokens * flops / gpu.flops
    end = optimizer_seconds(trained, weight_bytes, gpu, gpus)
    return products + elementwise + casts + wire + end

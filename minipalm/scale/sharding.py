"""What goes over the wire when GPUs share a network."""

from minipalm.config import PaLMConfig
from minipalm.model.palm import count_parameters
from minipalm.scale.gpu import GPU


def fsdp_traffic(
    weights: int, trained: int, gpus: int, micro_batches: int = 1
) -> float:
    """Bytes that each GPU receives from the others in a training step under FSDP.

    Each of g GPUs holds 1/g of the weights. A micro-batch needs them whole, a block at
    a time, in bfloat16, and forgets each block after use: once for the forward pass,
    once more for the backward pass. Gradients of the trained weights are added up in
    float32, each GPU keeping its share; where a GPU receives the parts of the others
    for it, that is as much as it would receive of float32 weights.

    Args:
        weights: all of the network's, frozen or not.
        trained: those that have a gradient.
        gpus: g, 1 or more. What a GPU has itself, it does not receive.
        micro_batches: of a step; each has all of this traffic.

    Returns:
        bytes. One GPU receives none.

    Raises:
        ValueError: gpus or micro_batches is less than 1.

    Example: 1000 weights, all trained, 4 GPUs, one micro-batch: 3000 bytes for both
    gatherings, 3000 for the gradients.

    Source: Rajbhandari et al. 2019, ZeRO (arXiv 1910.02054), section 7.2.2.
    """
    if gpus < 1 or micro_batches < 1:
        raise ValueError(
            f"expected 1 GPU and 1 micro-batch or more (got {gpus} and {micro_batches})"
        )
    received = (2 * 2 * weights + 4 * trained) * (gpus - 1) / gpus
    return micro_batches * received


def gather_seconds(config: PaLMConfig, gpu: GPU, gpus: int) -> float:
    """Every GPU gets the whole network in bfloat16, once."""
    return 2 * count_parameters(config) * (gpus - 1) / gpus / gpu.link

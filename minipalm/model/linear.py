"""Matrix products that use the whole width of a processor."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

IMAGES = 16  # PyTorch gives oneDNN a convolution of so many images on any thread count
LEAST_ROWS, LEAST_WEIGHTS = 256, 2**16  # of smaller products less is saved
WIDE = torch.backends.mkldnn.is_available() and (
    torch.backends.cpu.get_cpu_capability() == "AVX512"
)


def linear(
    x: Float[Tensor, "*batch I"], weight: Float[Tensor, "O I"]
) -> Float[Tensor, "*batch O"]:
    """x Wᵀ, as `F.linear`.

    On processors PyTorch leaves plain products to MKL, which on AMD's uses half of
    their vectors' width, and convolutions to oneDNN, which uses all of it. A matrix is
    a convolution of width 1: each row of x is a pixel, its I numbers are the channels.
    So large float32 products, and their gradients, are up to twice as fast.
    """
    rows = math.prod(x.shape[:-1])
    if not (
        WIDE
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and rows >= LEAST_ROWS
        and weight.numel() >= LEAST_WEIGHTS
        and weight.shape[1:] == x.shape[-1:]  # else `F.linear` says what is wrong
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
    ):
        return F.linear(x, weight)
    pixels = x.reshape(rows, -1)
    if rows % IMAGES:
        pixels = F.pad(pixels, (0, 0, 0, -rows % IMAGES))
    images = pixels.view(IMAGES, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)
    y = F.conv2d(images, weight[:, :, None, None]).permute(0, 2, 3, 1)
    return y.reshape(-1, len(weight))[:rows].view(*x.shape[:-1], len(weight))


class Linear(nn.Linear):
    """A matrix without a bias: `linear`."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Float[Tensor, "*batch I"]) -> Float[Tensor, "*batch O"]:
        return linear(x, self.weight)

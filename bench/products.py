"""Matrix products on this processor: PyTorch's own, and `minipalm.model.linear`.

python -m bench.products          GFLOP/s on one thread, at the shapes of the races
"""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import shapes
from minipalm.model.linear import WIDE, linear

ROWS = 4 * shapes.TRAIN_TOKENS  # of a backward pass
D, M = shapes.DIM, 4 * shapes.DIM
SHAPES = {
    "input projection": (D, (shapes.HEADS + 2) * shapes.HEAD_DIM + 2 * M),
    "attention, out": (shapes.HEADS * shapes.HEAD_DIM, D),
    "feed-forward, out": (M, D),
    "head": (D, shapes.VOCAB),
}


def seconds(step: Callable[[], object], times: int = 5, calls: int = 10) -> float:
    """Processor time of a call, the least of some."""
    taken = []
    for _ in range(times + 1):
        start = time.process_time()
        for _ in range(calls):
            step()
        taken.append((time.process_time() - start) / calls)
    return min(taken[1:])


def rate(
    product: Callable[[Tensor, Tensor], Tensor], inputs: int, outputs: int
) -> float:
    """GFLOP/s of a product and of the two of its gradients, together."""
    generator = torch.Generator().manual_seed(0)
    x, weight, pull = (
        torch.randn(*shape, generator=generator)
        for shape in ((ROWS, inputs), (outputs, inputs), (ROWS, outputs))
    )
    x.requires_grad_(), weight.requires_grad_()

    def step() -> None:
        product(x, weight).backward(pull)
        x.grad = weight.grad = None

    return 3 * 2 * ROWS * inputs * outputs / seconds(step) / 1e9


def main() -> None:
    torch.set_num_threads(1)
    if not WIDE:
        print("without AVX-512 or oneDNN both are PyTorch's own")
    print(f"{ROWS} rows{'':12}{'F.linear':>10}{'linear':>10}{'ratio':>8}")
    for name, (inputs, outputs) in SHAPES.items():
        plain, ours = (rate(one, inputs, outputs) for one in (F.linear, linear))
        print(f"{name:21}{plain:10.0f}{ours:10.0f}{ours / plain:8.2f}")


if __name__ == "__main__":
    main()

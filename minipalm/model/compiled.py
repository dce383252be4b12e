"""Two ways to lay out the work of a block otherwise: compiled, and recomputed."""

from collections.abc import Callable
from functools import cache
from types import MethodType
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from minipalm.model.palm import PaLM

Forward = Any  # the forward pass of a block, as a function of the block and the rest


@cache
def compiled(function: Forward, backend: str = "inductor") -> Forward:
    """The function by torch.compile, once for all who ask for it.

    Each new shape is compiled anew, which takes seconds: keep batches of one shape. A
    part that cannot be compiled is an error and not a slow run.

    Source: Ansel et al. 2024, PyTorch 2 (doi 10.1145/3620665.3640366).
    """
    # By default the ninth shape, of all networks together, would be an error.
    torch._dynamo.config.recompile_limit = 64
    return torch.compile(function, dynamic=False, fullgraph=True, backend=backend)


def replace_forward(model: PaLM, change: Callable[[Forward], Forward]) -> None:
    """Give each block the forward pass `change(forward)`; its weights stay in place.

    The block is the first argument, so that all blocks share one function, and a copy
    of a block works on its own weights.
    """
    for block in model.blocks:
        method: Any = block.forward
        block.forward = MethodType(change(method.__func__), block)


def compile_blocks(model: PaLM, backend: str = "inductor") -> None:
    """Let a compiler fuse what stands between the matrix products of each block.

    A block is compiled once, not a model, since all blocks are alike. The names in
    state_dict stay as they are. With a cache, whose length grows with every token, the
    block runs as it was: see `minipalm.model.decoder` for fast sampling.

    Args:
        model: changed in place. Call `recompute_blocks` before, if at all, and compile
            before sharding.
        backend: of torch.compile.
    """

    @cache
    def change(plain: Forward) -> Forward:
        fast = compiled(plain, backend)

        def forward(
            block: Any,
            x: Any,
            rope: Any,
            mask: Any = None,
            cache: Any = None,
            layer: int = 0,
            last: int | None = None,
        ) -> Any:
            if cache is not None:
                return plain(block, x, rope, mask, cache, layer, last)
            return fast(block, x, rope, mask, None, 0, last)

        return forward

    replace_forward(model, change)


def recompute_blocks(model: PaLM) -> None:
    """Keep only what goes into each block, and compute the rest again for its gradient.

    A step then takes about a third longer: a forward pass more. Of a token there stay
    D numbers a layer in memory, instead of about fifteen times as many.

    Args:
        model: changed in place.

    Source: Chen et al. 2016 (arXiv 1604.06174), section 3.
    """

    @cache
    def change(plain: Forward) -> Forward:
        def forward(block: Any, *args: Any) -> Any:
            return checkpoint(plain, block, *args, use_reentrant=False)

        return forward

    replace_forward(model, change)

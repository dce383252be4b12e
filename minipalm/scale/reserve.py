"""What a GPU needs beside what is allocated: CUDA's own, and what PyTorch holds back.

PyTorch takes memory from the GPU in large pieces and keeps them. What one moment gives
back does not always suit the next, which then takes more: *reserved* grows beyond
*allocated*, and a card is full when reserved is.

What lies there all the time (weights, AdamW's moments) is in its place from the first
step on. Only what comes and goes can be held twice. So this is told as a share of that:
the worst that was seen of each kind of stage, in data/results (`waste_table` has every
case; a test holds these numbers to it).

- On one GPU, 0.18: of little that came and went. Where it was much, 0.06 at most.
- Several that train: 0.51, with all rows at once. In micro-batches it was 0.13 at most,
  and in a prototype with PyTorch's default allocator 0.46.
- Several, in stages that sample and then read or learn: 0.98. What sampling has held,
  a whole copy of the policy first of all, was there again for learning.
"""

import os
from collections.abc import Mapping, MutableMapping

from minipalm.scale.gpu import GIB
from minipalm.scale.memory import Parts, total

OUTSIDE = 1.5 * GIB  # CUDA's own, and NCCL's buffers: not PyTorch's (assumption)
ONE_GPU, TRAINING, ALTERNATING = 0.18, 0.51, 0.98  # see above; the last two of several

# PyTorch's name and, where given, the older one that it still reads.
NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
GROWING = "expandable_segments:True"  # pieces grow in place; so all was measured


def let_memory_grow(environ: MutableMapping[str, str] = os.environ) -> str:
    """Set PyTorch's allocator as it was when it was measured, unless you have set it.

    To be called before anything is on a GPU, and before processes are started that are
    to do the same: PyTorch reads it once, when it first needs memory there.

    Returns:
        what PyTorch will read.
    """
    given = [environ[name] for name in NAMES if name in environ]
    if not given:
        environ[NAMES[0]] = GROWING
    return (given or [GROWING])[-1]


def waste(gpus: int, alternates: bool) -> float:
    """Share of what comes and goes that PyTorch may hold besides.

    Args:
        alternates: whether a step samples, reads and learns by turns.
    """
    if gpus == 1:
        return ONE_GPU
    return ALTERNATING if alternates else TRAINING


def coming_and_going(memory: Mapping[str, Parts]) -> float:
    """Bytes of what is not there all the time, at the worst moment.

    Args:
        memory: of each network, its parts.
    """
    stays = [p.get("weights", 0.0) + p.get("moments", 0.0) for p in memory.values()]
    return sum(map(total, memory.values())) - sum(stays)


def verdict(peak: float, held: float, there: float) -> str:
    """Whether it fits: "yes", "tight" or "NO".

    Tight: what is allocated fits, but not with what PyTorch was seen to hold besides.

    Args:
        peak, held: bytes that are allocated, and that PyTorch may hold besides.
        there: bytes of the GPU.
    """
    if peak + OUTSIDE > there:
        return "NO"
    return "yes" if peak + held + OUTSIDE <= there else "tight"

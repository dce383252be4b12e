"""Clocks, ceilings and networks for the measurements at full size."""

import gc
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from minipalm.config import PaLMConfig, Preset, get_preset
from minipalm.model.palm import PaLM

GIB = 2**30
Numbers = dict[str, float]


@dataclass(frozen=True)
class Sizes:
    """What is measured; `tiny` goes the same ways on a laptop's processor."""

    preset: Preset
    window: int  # tokens of a training row
    rows: int  # of a step
    fp32_rows: int  # of a step with float32 weights, which leave less room
    peer_depth: int  # blocks where peers are trained
    peer_rows: tuple[int, ...]  # of a step there
    batches: tuple[int, ...]  # answers at a time
    matmul: int  # side of the matrices that give the ceiling
    seconds: float  # how long they are multiplied
    copy: int  # bytes
    steps: int  # timed ones

    @property
    def policy(self) -> PaLMConfig:
        return replace(self.preset.policy, vocab_size=self.preset.vocab_size)

    @property
    def trunk(self) -> PaLMConfig:
        return replace(self.preset.reward_trunk, vocab_size=self.preset.vocab_size)


def full_sizes() -> Sizes:
    return Sizes(
        preset=get_preset("full"),
        window=2048,
        rows=8,
        fp32_rows=4,
        peer_depth=8,
        peer_rows=(4, 8),
        batches=(1, 64, 256),
        matmul=8192,
        seconds=3.0,
        copy=8 * GIB,
        steps=10,
    )


def tiny_sizes() -> Sizes:
    full = get_preset("full")
    small = dict(dim=64, heads=4, head_dim=16)
    preset = replace(
        full,
        vocab_size=128,
        max_prompt=16,
        max_response=16,
        policy=replace(full.policy, depth=3, **small),
        reward_trunk=replace(full.reward_trunk, depth=2, **small),
        ppo=replace(full.ppo, batch_size=16, minibatch_size=8, micro_batch=4),
    )
    return Sizes(preset, 64, 2, 1, 2, (1, 2), (1, 4, 16), 128, 0.01, 2**20, 2)


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def mark() -> Any:
    """A point of time in the work of the GPU, which nobody waits for."""
    if not torch.cuda.is_available():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def between(one: Any, other: Any) -> float:
    """Seconds between two marks; the GPU must have come past both."""
    if not torch.cuda.is_available():
        return other - one
    return one.elapsed_time(other) / 1e3


def log(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def clear() -> None:
    """Give back what the last measurement held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak() -> float:
    """GiB allocated at most since `clear`."""
    if not torch.cuda.is_available():
        return 0.0
    return torch.cuda.max_memory_allocated() / GIB


def reserved() -> float:
    """GiB that PyTorch has taken from the GPU at most since `clear`."""
    if not torch.cuda.is_available():
        return 0.0
    return torch.cuda.max_memory_reserved() / GIB


def median_seconds(step: Callable[[], object], times: int, warm: int = 2) -> float:
    for _ in range(warm):
        step()
    taken = []
    for _ in range(times):
        start = now()
        step()
        taken.append(now() - start)
    return statistics.median(taken)


def network(config: PaLMConfig, dtype: torch.dtype = torch.bfloat16) -> PaLM:
    """Random weights, drawn where they are to lie."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device():
            return PaLM(config, torch.Generator(device()).manual_seed(0))
    finally:
        torch.set_default_dtype(before)


def token_rows(config: PaLMConfig, rows: int, tokens: int, seed: int = 0) -> Tensor:
    generator = torch.Generator(device()).manual_seed(seed)
    size = (rows, tokens)
    return torch.randint(
        3, config.vocab_size, size, generator=generator, device=device()
    )


def ceilings(sizes: Sizes) -> Numbers:
    """What the card does for seconds on end: its clock falls as it gets hot.

    Its burst, of the first tenth of a second after a warm-up, is left out where it is
    below that: then something else was slow.
    """
    n = sizes.matmul
    a, b = torch.randn(2, n, n, device=device(), dtype=torch.bfloat16)
    out = torch.empty_like(a)

    def products(seconds: float) -> float:
        start, count = now(), 0
        while count == 0 or now() - start < seconds:
            for _ in range(50):
                torch.mm(a, b, out=out)
            count += 50
        return 2 * n**3 * count / (now() - start)

    products(0.0)  # the first product loads a library
    burst = products(0.0)
    products(sizes.seconds / 3)
    sustained = products(sizes.seconds)
    source = torch.empty(sizes.copy // 2, dtype=torch.uint8, device=device()).fill_(1)
    target = torch.empty_like(source)
    seconds = median_seconds(lambda: target.copy_(source), 20)
    found = {
        "sustained_tflops": sustained / 1e12,
        "copy_gbs": sizes.copy / seconds / 1e9,
    }
    return {"burst_tflops": burst / 1e12, **found} if burst > sustained else found

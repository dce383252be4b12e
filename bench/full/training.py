"""Training steps at full size: ours in four ways, and two peers."""

import gc
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from bench.full.measure import (
    Numbers,
    Sizes,
    between,
    clear,
    device,
    mark,
    network,
    now,
    peak,
    token_rows,
)
from minipalm.config import MachineConfig, PaLMConfig
from minipalm.model.palm import count_parameters
from minipalm.model.place import fine_tuned, place
from minipalm.parallel import ranks
from minipalm.train.language_model import next_token_loss
from minipalm.train.optim import adamw, set_lr

FAST = MachineConfig(device="auto", compute="bfloat16", compile=True)


def flops_per_token(config: PaLMConfig, tokens: int, products: int = 6) -> float:
    """`products` a weight (6: all are trained; 4: only adapters), and attention."""
    attention = 6 * config.heads * config.head_dim * tokens * config.depth
    return products * count_parameters(config) + attention


def timed_steps(
    model: nn.Module,
    loss: Callable[[Tensor], Tensor],
    ids: Tensor,
    flops: float,
    times: int,
) -> Numbers:
    """Forward, backward, clipping, AdamW, and what each takes.

    Args:
        flops: credited to a token.
    """
    optimizer = adamw(model)
    set_lr(optimizer, 1e-6)
    forward_backward, steps = [], []
    for step in range(times + 3):
        start = now()
        loss(ids).backward()
        middle = mark()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        end = mark()
        if step >= 3:
            steps.append(now() - start)
            forward_backward.append(steps[-1] - between(middle, end))
    seconds = statistics.median(steps)
    tokens = ids.shape[0] * (ids.shape[1] - 1)
    return {
        "tokens": tokens,
        "seconds": seconds,
        "spread": (max(steps) - min(steps)) / seconds,
        "forward_backward_seconds": statistics.median(forward_backward),
        "tokens_per_second": tokens / seconds,
        "tflops": tokens * flops / seconds / 1e12,
        "forward_backward_tflops": tokens
        * flops
        / statistics.median(forward_backward)
        / 1e12,
        "peak_gib": peak(),
    }


def ours(
    config: PaLMConfig, rows: int, sizes: Sizes, machine: MachineConfig, weights: str
) -> Numbers:
    """All weights are trained."""
    start = network(config)
    model = place(start, machine, weights=weights)
    del start
    clear()
    ids = token_rows(config, rows, sizes.window + 1)
    flops = flops_per_token(config, sizes.window)
    return timed_steps(
        model, lambda ids: next_token_loss(model, ids), ids, flops, sizes.steps
    )


def train_bf16(sizes: Sizes) -> Numbers:
    return ours(sizes.policy, sizes.rows, sizes, FAST, "bfloat16")


def train_fp32(sizes: Sizes) -> Numbers:
    return ours(sizes.policy, sizes.fp32_rows, sizes, FAST, "float32")


def train_recomputed(sizes: Sizes) -> Numbers:
    machine = replace(FAST, recompute=True)
    return ours(sizes.policy, sizes.rows, sizes, machine, "bfloat16")


def train_lora(sizes: Sizes) -> Numbers:
    start = network(sizes.policy)
    machine = replace(FAST, lora_rank=16)
    reference = place(start, machine, trained=False)
    policy = fine_tuned(start, machine, reference)
    del start
    clear()
    ids = token_rows(sizes.policy, sizes.rows, sizes.window + 1)
    flops = flops_per_token(sizes.policy, sizes.window, products=4)
    return timed_steps(
        policy, lambda ids: next_token_loss(policy, ids), ids, flops, sizes.steps
    )


def train_two_gpus(sizes: Sizes) -> Numbers:
    """Sharded, float32 weights; every GPU has rows of its own. Numbers are a GPU's."""
    rank, world, _ = ranks()
    numbers = ours(sizes.policy, sizes.fp32_rows, sizes, FAST, "float32")
    return {**numbers, "gpus": world}


# --- peers: as many weights, as many tokens, the same optimizer ---------------------


def peer_config(sizes: Sizes) -> PaLMConfig:
    return replace(sizes.policy, depth=sizes.peer_depth)


def each_batch(model: Any, loss: Callable[[Tensor], Tensor], sizes: Sizes) -> Numbers:
    """The steps at each number of tokens, which ends the name of each number."""
    config = peer_config(sizes)
    flops = flops_per_token(config, sizes.window)
    parameters = sum(weight.numel() for weight in model.parameters())
    numbers: Numbers = {"parameters": parameters, "ours": count_parameters(config)}
    for rows in sizes.peer_rows:
        gc.collect()
        clear()
        ids = token_rows(config, rows, sizes.window + 1)
        found = timed_steps(model, loss, ids, flops, 3 * sizes.steps)
        tokens = int(found.pop("tokens"))
        numbers |= {f"{name}_{tokens}": value for name, value in found.items()}
    return numbers


def train_ours_short(sizes: Sizes) -> Numbers:
    start = network(peer_config(sizes))
    model = place(start, FAST, weights="bfloat16")
    del start
    return each_batch(model, lambda ids: next_token_loss(model, ids), sizes)


def train_palm_rlhf(sizes: Sizes) -> Numbers:
    from bench.full.peers import palm_rlhf

    model = palm_rlhf(peer_config(sizes))
    return each_batch(model, lambda ids: model(ids, return_loss=True), sizes)


def train_llama(sizes: Sizes) -> Numbers:
    """transformers' LlamaForCausalLM, each layer compiled."""
    from bench.full.peers import llama

    model = llama(peer_config(sizes))
    if device().type == "cuda":
        for layer in model.model.layers:
            layer.compile()

    def loss(ids: Tensor) -> Tensor:
        return model(input_ids=ids[:, :-1], labels=ids[:, :-1], use_cache=False).loss

    return each_batch(model, loss, sizes)

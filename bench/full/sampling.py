"""Sampling at full size: one decode step, whole answers, realistic lengths, peers."""

import statistics
from typing import Any

import torch
from torch import Tensor

from bench.full.measure import (
    Numbers,
    Sizes,
    clear,
    device,
    log,
    network,
    now,
    peak,
    token_rows,
)
from minipalm.model.decoder import Decoder
from minipalm.model.palm import PaLM, count_parameters


def lengths(rows: int, longest: int) -> Tensor:
    """Answers as they are: many short ones, some that are cut off; mean about 0.4."""
    generator = torch.Generator().manual_seed(1)
    share = torch.empty(rows).exponential_(1.0, generator=generator)
    return (longest * (0.08 + 0.36 * share)).long().clamp(1, longest)


def prepared(
    model: PaLM, sizes: Sizes, rows: int, ends: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts, their mask, and uniform numbers.

    Token 0 ends an answer. It is drawn by the number 0, and practically by no other.
    """
    P, T = sizes.preset.max_prompt, sizes.preset.max_response
    prompts = token_rows(sizes.policy, rows, P)
    generator = torch.Generator(device()).manual_seed(2)
    uniforms = torch.rand(rows, T, generator=generator, device=device())
    uniforms = uniforms.clamp(min=0.05)
    if ends is not None:
        uniforms[torch.arange(rows), ends.to(device()) - 1] = 0.0
    return prompts, torch.ones_like(prompts, dtype=torch.bool), uniforms


def median_sample(decoder: Decoder, inputs: Any, times: int = 3) -> tuple[float, int]:
    """Seconds of a whole `sample`, and how many tokens it gives."""
    taken, tokens = [], 0
    for _ in range(times + 1):
        start = now()
        sampled = decoder.sample(*inputs, eos_id=0)
        taken.append(now() - start)
        tokens = int(sampled.mask.sum())
    return statistics.median(taken[1:]), tokens


def decode(sizes: Sizes) -> Numbers:
    model = network(sizes.policy)
    P, T = sizes.preset.max_prompt, sizes.preset.max_response
    found: Numbers = {"weights_bytes": 2.0 * count_parameters(sizes.policy)}
    for rows in sizes.batches:
        clear()
        start = now()
        decoder = Decoder(model, rows, P, T)
        found[f"setup_{rows}"] = now() - start
        inputs = prepared(model, sizes, rows, None)
        whole, tokens = median_sample(decoder, inputs)
        assert tokens == rows * T, tokens
        first = (*inputs[:2], inputs[2][:, :1])
        prefill, _ = median_sample(decoder, first)
        found[f"seconds_{rows}"] = whole
        found[f"prefill_{rows}"] = prefill
        found[f"step_ms_{rows}"] = (whole - prefill) / (T - 1) * 1e3
        found[f"tokens_per_second_{rows}"] = tokens / whole
        found[f"peak_gib_{rows}"] = peak()
        log(f"decode {rows}: {found[f'step_ms_{rows}']:.2f} ms")
        if rows == sizes.batches[-1]:
            found |= realistic(decoder, model, sizes, rows)
        del decoder
    return found


def realistic(decoder: Decoder, model: PaLM, sizes: Sizes, rows: int) -> Numbers:
    """The same with answers that end: the steps that are done, and their time."""
    ends = lengths(rows, sizes.preset.max_response)
    inputs = prepared(model, sizes, rows, ends)
    seconds, tokens = median_sample(decoder, inputs)
    assert tokens == int(ends.sum()), (tokens, int(ends.sum()))
    return {
        "realistic_mean_length": tokens / rows,
        "realistic_longest": float(ends.max()),
        "realistic_seconds": seconds,
        "realistic_tokens_per_second": tokens / seconds,
    }


# --- peers --------------------------------------------------------------------------


def decode_llama(sizes: Sizes) -> Numbers:
    """transformers' `generate` with a static cache; one key/value head at the last."""
    from transformers import StoppingCriteria, StoppingCriteriaList

    from bench.full.peers import llama

    class Clock(StoppingCriteria):
        """Is asked after every token."""

        times: list[float] = []

        def __call__(self, input_ids: Any, scores: Any, **options: Any) -> Any:
            self.times.append(now())
            return torch.zeros(len(input_ids), dtype=torch.bool, device=device())

    P, T = sizes.preset.max_prompt, sizes.preset.max_response
    found: Numbers = {}
    model = llama(sizes.policy)
    for rows in sizes.batches:
        if rows == sizes.batches[-1]:
            del model
            clear()
            model = llama(sizes.policy, kv_heads=1)
        clock = Clock()
        prompts = token_rows(sizes.policy, rows, P)
        options: dict[str, Any] = dict(
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=T,
            do_sample=True,
            top_k=0,
            cache_implementation="static",
            pad_token_id=0,
        )
        start = now()
        for _ in range(2):  # compiles
            model.generate(prompts, **options)
        found[f"setup_{rows}"] = now() - start
        taken = []
        for _ in range(2):
            start = now()
            out = model.generate(prompts, **options)
            taken.append(now() - start)
        assert out.shape == (rows, P + T)
        model.generate(
            prompts, stopping_criteria=StoppingCriteriaList([clock]), **options
        )
        steps = [b - a for a, b in zip(clock.times, clock.times[1:])]
        clock.times.clear()
        found[f"seconds_{rows}"] = min(taken)
        found[f"step_ms_{rows}"] = statistics.median(steps) * 1e3
        found[f"tokens_per_second_{rows}"] = rows * T / min(taken)
        log(f"transformers {rows}: {found[f'step_ms_{rows}']:.2f} ms")
    found["parameters_one_kv_head"] = float(sum(w.numel() for w in model.parameters()))
    return found


def decode_palm_rlhf(sizes: Sizes) -> Numbers:
    """palm-rlhf-pytorch's `generate`, at half of the answer: it has no cache."""
    from bench.full.peers import palm_rlhf

    P, T = sizes.preset.max_prompt, sizes.preset.max_response
    rows, tokens = sizes.batches[1], 4
    model = palm_rlhf(sizes.policy)
    begin = P + T // 2
    prompts = token_rows(sizes.policy, rows, begin)
    times = []
    for _ in range(3):
        start = now()
        model.generate(begin + tokens, prompts, use_tqdm=False)
        times.append((now() - start) / tokens)
    return {f"step_ms_{rows}": statistics.median(times) * 1e3, "length": begin}

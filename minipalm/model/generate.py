"""Sampling: a batch of answers, one token at a time, with a key/value cache."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minipalm.model.cache import KVCache
from minipalm.model.palm import PaLM


@dataclass(frozen=True)
class Sampled:
    """Answers to a batch of prompts.

    Attributes:
        responses: tokens; what stands after the end of an answer means nothing.
        mask: True up to and including the end-of-sequence token.
        logprobs: log-probability of each token under the law it was drawn from, nats;
            0 where mask is False.
    """

    responses: Int[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]
    logprobs: Float[Tensor, "B T"]


def sampling_law(
    logits: Float[Tensor, "B V"],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Float[Tensor, "B V"]:
    """Log-probabilities to draw the next token from, float32.

    Args:
        logits: from the model.
        temperature: divides the logits; 0 puts all probability on the largest (and
            shares it among equals), whatever the filters say.
        top_k: keep the k most probable tokens (ties at the edge are all kept).
        top_p: keep the fewest most probable tokens that together have at least
            probability p, 0 < p <= 1.

    Each filter works on the law that the one before has left: temperature, then top_k,
    then top_p. Tokens that are not kept have log-probability minus infinity, and the
    rest is normalised again: then a policy and its samples do not follow the same law,
    so RLHF samples without filters.

    Example: probabilities (.5, .3, .2) with top_p=.6 become (.625, .375, 0), since the
    first token alone does not reach .6.

    Raises:
        ValueError: an argument out of its range.

    Source: top-p, Holtzman et al. 2019 (arXiv 1904.09751), "nucleus sampling".
    """
    if temperature < 0 or (top_k is not None and top_k < 1):
        raise ValueError(
            f"temperature must be >= 0 and top_k >= 1 (got {temperature} and {top_k})"
        )
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is a probability, 0 < top_p <= 1 (got {top_p})")
    logits = logits.float()
    if temperature == 0:
        return torch.where(
            logits == logits.amax(-1, keepdim=True), 0.0, -torch.inf
        ).log_softmax(-1)
    logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        smallest = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if top_p is not None and top_p < 1:  # rounding would cut the tail at 1
        ranked, order = logits.softmax(-1).sort(dim=-1, descending=True)
        before = ranked.cumsum(-1) - ranked  # probability of the more probable ones
        drop = (before >= top_p).scatter(-1, order, before >= top_p)
        logits = logits.masked_fill(drop, -torch.inf)
    return logits.log_softmax(-1)


@torch.no_grad()
def generate(
    model: PaLM,
    prompts: Int[Tensor, "B P"],
    prompt_mask: Bool[Tensor, "B P"],
    *,
    max_new_tokens: int,
    eos_id: int,
    generator: torch.Generator,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Sampled:
    """Answer each prompt until its end-of-sequence token, or for max_new_tokens.

    Each row is drawn as if it were alone: its padding is not seen, other rows' ends do
    not end it. The plain form asks the model about the whole row for every token; with
    a `KVCache` only the newest token is computed. Both draw from the same law.

    Args:
        prompts: left-padded, so that all answers begin in the same column.
        prompt_mask: True where a prompt token stands. At least one a row.
        max_new_tokens: T, the longest answer, its end-of-sequence token included.
        eos_id: ends a row. It is looked for in the answer only.
        generator: draws the tokens; on the device of the model.
        temperature, top_k, top_p: see `sampling_law`.

    Returns:
        the answers; T is max_new_tokens, whatever the longest answer is. No gradient.

    Example: prompts of shape (4, 9) and max_new_tokens=26 give three tensors (4, 26);
    a row that draws eos_id as third token has True three times in its mask.

    Raises:
        ValueError: a prompt is not left-padded, or is empty.
    """
    if not (prompt_mask[:, -1].all() and (prompt_mask.long().diff() >= 0).all()):
        raise ValueError(
            "prompts must be left-padded and not empty: every row of prompt_mask must "
            "be False, ..., False, True, ..., True"
        )
    B, P = prompts.shape
    responses = prompts.new_zeros(B, max_new_tokens)
    logprobs = torch.zeros(B, max_new_tokens, device=prompts.device)
    mask = torch.zeros(B, max_new_tokens, dtype=torch.bool, device=prompts.device)
    rows = torch.arange(B, device=prompts.device)  # of the batch, still being written
    cache = KVCache(model.config, B, P + max_new_tokens, model.embedding.weight)
    hidden = model.hidden(prompts, prompt_mask.long(), cache=cache)
    for t in range(max_new_tokens):
        law = sampling_law(model.logits(hidden[:, -1]), temperature, top_k, top_p)
        token = torch.multinomial(law.exp(), 1, generator=generator)
        responses[rows, t] = token[:, 0]
        logprobs[rows, t] = law.gather(-1, token)[:, 0]
        mask[rows, t] = True
        going = token[:, 0] != eos_id
        if t == max_new_tokens - 1 or not going.any():
            break
        if not going.all():  # rows that have ended are not computed any further
            rows, token = rows[going], token[going]
            cache.keep(going.nonzero()[:, 0])
        hidden = model.hidden(token, cache=cache)
    return Sampled(responses, mask, logprobs)

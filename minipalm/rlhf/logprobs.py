"""Which logits belong to which token: log-probabilities of given answers."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minipalm.model.palm import PaLM


def token_logprobs(
    logits: Float[Tensor, "*batch V"], ids: Int[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """log softmax(logits) at the given tokens, in float32 whatever the logits' type.

    bfloat16 has 8 bits: a ratio of two probabilities that were computed in it is off by
    parts in a thousand, as much as a PPO step changes. So the logits become float32
    before anything is done with them, and the result is float32.

    Args:
        logits: of any finite size, with one or more axes before V; with a gradient.
        ids: the tokens, place by place those that the logits stand for.

    Returns:
        log-probabilities, nats, of the shape of ids; at most 0, and finite.

    Example: logits (0, log 3) give log 1/4 = −1.3863 for token 0, −.2877 for token 1.
    """
    losses = F.cross_entropy(
        logits.flatten(0, -2).float(), ids.flatten(), reduction="none"
    )
    return -losses.view(ids.shape)


def entropy(logits: Float[Tensor, "*batch V"]) -> Float[Tensor, "*batch"]:
    """−Σ p log p of the law p = softmax(logits), nats: from 0 to log V.

    Args:
        logits: of any finite size: what has probability 0 in float32 adds 0. With a
            gradient. Computed in float32 whatever their type.

    Returns:
        float32, one number for each law.

    Example: four equal logits give log 4 = 1.3863; logits (0, log 3) give .5623.
    """
    logprobs = logits.float().log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(-1)


def response_logits(
    policy: PaLM,
    prompts: Int[Tensor, "B P"],
    prompt_mask: Bool[Tensor, "B P"],
    responses: Int[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    temperature: float = 1.0,
) -> Float[Tensor, "B T V"]:
    """The logits that each response token was (or would be) drawn from.

    Token t of the answer stands at place P + t and is predicted one place earlier:
    the logits from place P − 1 on.

    `policy.hidden(ids, segments, last=L)` gives the states of the last L columns, with
    segments 1 at tokens and 0 at padding, and `policy.logits` turns states to logits.

    Args:
        policy: a network; its weights get a gradient.
        prompts, prompt_mask: left-padded, P columns; masks are True at tokens.
        responses, mask: right-padded; what stands where mask is False has no effect on
            the logits where it is True.
        temperature: divides the logits; the one that the answers were drawn at.

    Returns:
        float32 whatever the policy's type, divided in float32: place t has the logits
        of token t of the answer, its end-of-sequence token included.

    Example: the prompt is <bos> a, the answer b <eos>. The logits of b come from the
    state at a, those of <eos> from the state at b.
    """
    # The last token predicts nothing that is asked for.
    ids = torch.cat([prompts, responses[:, :-1]], dim=1)
    segments = torch.cat([prompt_mask, mask[:, :-1]], dim=1).to(torch.long)
    hidden = policy.hidden(ids, segments, last=responses.shape[1])
    return policy.logits(hidden).float() / temperature


def masked_mean(
    x: Float[Tensor, "*shape"],
    mask: Bool[Tensor, "*shape"],
    total: Int[Tensor, ""] | int | None = None,
) -> Float[Tensor, ""]:
    """The mean of x over the places where mask is True, a scalar: Σ x·mask / total.

    Args:
        x: numbers of any shape; carries gradient. Where mask is False it may be
            anything, infinite or NaN, with no effect.
        mask: True where a place counts, of x's shape.
        total: what the sum is divided by; by default the number of True in mask. Under
            gradient accumulation give the count of the whole batch: then the
            micro-batches' losses add up to the loss of the batch, whatever their
            lengths.

    All axes together: `masked_mean([[1., 3., 9.]], [[True, True, False]])` is 2. Where
    no place counts it is 0.
    """
    if total is None:
        total = mask.sum().clamp(min=1)
    return torch.where(mask, x, 0.0).sum() / total

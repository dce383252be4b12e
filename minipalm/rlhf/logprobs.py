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
    parts in a thousand, as much as a PPO step changes.
    """
    losses = F.cross_entropy(
        logits.flatten(0, -2).float(), ids.flatten(), reduction="none"
    )
    return -losses.view(ids.shape)


def entropy(logits: Float[Tensor, "*batch V"]) -> Float[Tensor, "*batch"]:
    """−Σ p log p of the law that the logits give, nats: from 0 to log V."""
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

    Args:
        prompts, prompt_mask: left-padded.
        responses, mask: right-padded; what stands where mask is False has no effect on
            the logits where it is True.
        temperature: divides the logits; the one that the answers were drawn at.
    """
    # The last token predicts nothing that is asked for.
    ids = torch.cat([prompts, responses[:, :-1]], dim=1)
    segments = torch.cat([prompt_mask, mask[:, :-1]], dim=1).long()
    hidden = policy.hidden(ids, segments, last=responses.shape[1])
    return policy.logits(hidden).float() / temperature


def masked_mean(
    x: Float[Tensor, "*shape"],
    mask: Bool[Tensor, "*shape"],
    total: Int[Tensor, ""] | int | None = None,
) -> Float[Tensor, ""]:
    """Σ x·mask / total, where total is by default the number of True in mask.

    Under gradient accumulation give the count of the whole batch as `total`: then the
    micro-batches' losses add up to the loss of the batch, whatever their lengths.
    """
    if total is None:
        total = mask.sum().clamp(min=1)
    return torch.where(mask, x, 0.0).sum() / total

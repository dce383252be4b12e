"""How surprised a policy is by texts, and how varied its own are."""

from collections.abc import Sequence

from jaxtyping import Bool, Float
from torch import Tensor


def perplexity(logprobs: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> float:
    """Among how many equally likely tokens a policy hesitates: exp(−mean log p).

    The mean is over all tokens of all texts, so a long text counts for more. Only
    perplexities of the same texts under the same tokenizer may be compared.

    Args:
        logprobs: of each token, nats; whatever stands outside the mask, NaN too, has no
            effect.
        mask: True at tokens.

    Returns:
        a Python float, 1 or more; computed in float64.

    Example: tokens of probability 1/2, 1/4 and 1/8: exp(6 log 2 / 3) = 4.

    Raises:
        ValueError: no token is in the mask.
    """
    if not mask.any():
        raise ValueError("perplexity needs a token at least; the mask is empty")
    return logprobs[mask].double().mean().neg().exp().item()


def distinct_n(texts: Sequence[str], n: int = 2) -> float:
    """The share of different ones among all runs of n words: how varied the texts are.

    More texts repeat more, so only equal numbers of texts, of about equal length, may
    be compared.

    Args:
        texts: of any length; words stand between spaces. A run lies within one text,
            and a text of fewer than n words has none.
        n: words of a run, 1 or more; "a b" and "b a" are different runs.

    Returns:
        from 0 to 1; 0.0 if there is no run at all.

    Example: "a b a b" and "b a" have the runs ab, ba, ab and ba: 2 of 4, so 0.5.

    Source: after Li et al. 2016 (arXiv 1510.03055), who divide by words, not by runs.
    """
    runs = []
    for text in texts:
        words = text.split()
        runs += [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(runs)) / len(runs) if runs else 0.0

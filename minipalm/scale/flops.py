"""How many operations a token costs, in training and in sampling."""

from minipalm.config import PaLMConfig
from minipalm.model.palm import count_parameters


def forward_flops(config: PaLMConfig, seen: float) -> float:
    """Operations of one token on its way through the network, head included.

    A weight takes part in one product and one sum: 2 operations a token. Attention
    besides takes 4·H·K a layer for each token seen: H·K products and sums for the
    scores, as many for the mixture of values.

    Args:
        config: H is heads, K is head_dim.
        seen: tokens that it looks at, itself included, on average.

    Example: the full-size policy, 32,768 tokens of vocabulary, seen = 1024: 13.9e9.
    """
    attention = 4 * config.heads * config.head_dim * config.depth * seen
    return 2 * count_parameters(config) + attention


def training_flops(
    config: PaLMConfig, length: int, adapters: bool = False, recompute: bool = False
) -> float:
    """Operations that a training step spends on one token of a row.

    Forward, each of the N weights of `count_parameters(config)` costs 2 operations, a
    product and a sum (norms are few, and the embedding's weights are the head's).
    Attention adds 4·H·K a layer for each token seen. Token t of a causal row sees t
    tokens, t = 1 … length: (length + 1)/2 on average.

    The backward pass costs twice the forward pass: once for the gradients of inputs,
    once for those of weights. The second half falls away for weights that are frozen;
    attention has no weights, and always costs both. What adapters cost themselves is
    left out.

    Args:
        config: H is heads, K is head_dim; depth, vocab_size and dim are read, too.
        length: tokens of a row; 1 or more.
        adapters: whether all weights are frozen and only small adapters are trained.
        recompute: whether the blocks' activations are thrown away and made a second
            time in the backward pass. The head, 2·V·D operations, is not.

    Returns:
        operations, as a float.

    Raises:
        ValueError: a row of less than one token.

    Example: the full-size policy (V = 32,768) at length 2048: 4.157e10; with adapters
    2.785e10; with recompute 5.516e10.

    Source: Kaplan et al. 2020 (arXiv 2001.08361), section 2.1; Korthikanti et al. 2022
    (arXiv 2205.05198), for what is computed again.
    """
    if length < 1:
        raise ValueError(f"a row has 1 token or more (got {length})")
    attention = 4 * config.heads * config.head_dim * config.depth * (length + 1) / 2
    weights = 2 * count_parameters(config)
    total = (2 if adapters else 3) * weights + 3 * attention
    if recompute:
        total += weights + attention - 2 * config.vocab_size * config.dim
    return total


def adapter_parameters(config: PaLMConfig, rank: int) -> int:
    """Trained weights of low-rank adapters on q, k, v and on attention's way out.

    Each is a pair, rank × inputs and outputs × rank.
    """
    heads = config.heads * config.head_dim
    pairs = (config.dim + config.qkv_dim) + (heads + config.dim)
    return config.depth * rank * pairs

"""The reward model: a score for an answer, learnt from comparisons."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from minipalm.model.palm import PaLM
from minipalm.model.place import beside, machine_of
from minipalm.parallel import row_by_row
from minipalm.rlhf.pairs import Pairs


def check_pooling(pooling: str) -> None:
    if pooling not in ("last", "mean"):
        raise ValueError(f"pooling must be 'last' or 'mean' (got {pooling!r})")


def scalar_head(trunk: PaLM, generator: torch.Generator | None = None) -> nn.Linear:
    """A linear layer from a state of width D to a number, before any training.

    Its weights are drawn from N(0, 1/(D+1)) by `nn.init.normal_`, its bias is 0. States
    that have been through a norm have entries of size 1, so the first scores are of
    size 1, too, and the loss begins near that of a coin.

    Args:
        trunk: what the head will stand on; D is `trunk.config.dim`. The head has the
            device and the type of its weights, such as `trunk.embedding.weight`.
        generator: draws the weights; None for torch's global one.

    Example: for D = 8 the standard deviation is 1/3, the variance 1/9.

    Source: Stiennon et al. 2020 (arXiv 2009.01325), the appendix on training.
    """
    like = trunk.embedding.weight
    head = nn.Linear(trunk.config.dim, 1, device=like.device, dtype=like.dtype)
    std = 1 / math.sqrt(trunk.config.dim + 1)
    nn.init.normal_(head.weight, std=std, generator=generator)
    nn.init.zeros_(head.bias)
    return head


class RewardModel(nn.Module):
    """A language model's trunk with a scalar head, pooled over the answer.

    Args:
        trunk: a fine-tuned language model, usually smaller than the policy; the model
            keeps it (no copy) and does not use its logits.
        pooling: "last" or "mean": how the states of an answer's tokens become one, see
            `pool`.
        generator: draws the head from N(0, 1/(D+1)); its bias is 0.

    The raw score has no zero and no unit, since comparisons do not see them.
    `fit_scale` gives it both: SFT samples then have mean 0 and standard deviation 1.

    Source: Stiennon et al. 2020 (arXiv 2009.01325), section 3.4, for head and loss.
    """

    mean: Tensor  # of the raw scores of SFT samples
    std: Tensor

    def __init__(
        self, trunk: PaLM, pooling: str, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        check_pooling(pooling)
        self.trunk = trunk
        self.pooling = pooling
        self.head = scalar_head(trunk, generator)
        like = self.head.weight
        self.register_buffer("mean", torch.zeros((), device=like.device))
        self.register_buffer("std", torch.ones((), device=like.device))

    def forward(
        self,
        prompts: Int[Tensor, "B P"],
        prompt_mask: Bool[Tensor, "B P"],
        responses: Int[Tensor, "B T"],
        mask: Bool[Tensor, "B T"],
    ) -> Float[Tensor, "B"]:
        """A score for each answer: (w·h + b − mean) / std, with h the pooled states.

        The trunk reads prompt and answer as one text, `self.trunk.hidden(ids, segments,
        last=L)`: the states of the last L columns. `segments` is 1 at tokens and 0 at
        padding, which no token may see. Only the answer's states are pooled, as
        `self.pooling` says (see `pool`), then read by `self.head`. Gradients flow into
        head and trunk, not into mean and std.

        Args:
            prompts, prompt_mask: left-padded; masks are True at tokens.
            responses, mask: right-padded, at least one token a row.

        Returns:
            the same scores however much padding there is, and in any batch.

        Example: pooled states that the head reads as 2.5, with mean 0.5 and std 4, have
        the score 0.5.
        """
        ids = torch.cat([prompts, responses], dim=1)
        segments = torch.cat([prompt_mask, mask], dim=1).to(torch.long)
        hidden = self.trunk.hidden(ids, segments, last=responses.shape[1])
        return (
            self.head(pool(hidden, mask, self.pooling))[:, 0] - self.mean
        ) / self.std

    @torch.no_grad()
    def fit_scale(self, scores: Float[Tensor, "N"]) -> None:
        """Move and stretch the scale so that these scores get mean 0 and sd 1.

        Args:
            scores: of SFT samples, by this model as it is now.

        Raises:
            ValueError: the scores have no spread that could become the unit.

        Source: Ziegler et al. 2019 (arXiv 1909.08593), section 2.
        """
        mean, std = new_scale(scores, self.mean, self.std)
        self.mean.copy_(mean)
        self.std.copy_(std)


@torch.no_grad()
def new_scale(
    scores: Float[Tensor, "N"], mean: Float[Tensor, ""], std: Float[Tensor, ""]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The mean and std that give these scores mean 0 and standard deviation 1.

    A raw score s is shown as (s − mean) / std. The scores that come in are shown ones,
    so they have an old mean and std already; what comes out replaces these.

    Args:
        scores: N ≥ 2 normalised scores, of SFT samples.
        mean, std: with which they were normalised: 0 and 1 the first time.

    Returns:
        the new mean and std, of raw scores, without a gradient. The standard deviation
        is that of a sample: it divides by N − 1.

    Raises:
        ValueError: the scores have no spread that could become the unit: fewer than
            two of them, or all equal, or not numbers (NaN).

    Example: scores (1, 2, 3) with mean 10 and std 5 were raw scores (15, 20, 25): the
    new mean is 20, the new std 5. With mean 0 and std 1 they are 2 and 1.

    Source: Ziegler et al. 2019 (arXiv 1909.08593), section 2.
    """
    spread = scores.std() if len(scores) > 1 else scores.new_zeros(())
    if not spread > 0:  # also if it is NaN
        raise ValueError(
            f"the scale needs scores that differ (got {len(scores)} of standard "
            f"deviation {spread.item()})"
        )
    return mean + scores.mean() * std, std * spread


def pool(
    x: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"], pooling: str
) -> Float[Tensor, "B D"]:
    """One row for each answer: its last token's, or the mean over its tokens.

    Args:
        x: states of the answers' tokens, with a gradient, which flows on.
        mask: True at an answer's own tokens, right-padded, at least one a row. What
            stands where it is False must not count, not even NaN.
        pooling: "last", or "mean" over the tokens that each answer has.

    Example: states (1, 3, 8) of width 1 with mask (True, True, False): "last" is 3,
    "mean" is 2.
    """
    if pooling == "last":
        last = mask.sum(1) - 1
        return x[torch.arange(len(x), device=x.device), last]
    weights = mask / mask.sum(1, keepdim=True)
    own = torch.where(mask[..., None], x, 0.0)
    return (own * weights[..., None]).sum(1)


def score_pairs(
    model: RewardModel, pairs: Pairs, groups: int = 4
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
    """Scores of the chosen and of the rejected answers.

    Args:
        model: scores them.
        pairs: N comparisons.
        groups: answers of about the same length are scored together, in so many passes,
            each as wide as its longest: less padding to compute, the same scores. 0:
            all in one pass, as wide as they come.
    """
    prompts, prompt_mask = pairs.prompts.repeat(2, 1), pairs.prompt_mask.repeat(2, 1)
    answers = torch.cat([pairs.chosen, pairs.rejected])
    mask = torch.cat([pairs.chosen_mask, pairs.rejected_mask])
    if machine_of(model).compile:  # for one width
        groups = 0
    if groups == 0:
        chosen, rejected = model(prompts, prompt_mask, answers, mask).chunk(2)
        return chosen, rejected
    order = mask.sum(1).argsort()
    scores = []
    for rows in order.chunk(groups):
        P, T = int(prompt_mask[rows].sum(1).max()), int(mask[rows].sum(1).max())
        asked = prompts[rows, -P:], prompt_mask[rows, -P:]
        scores.append(model(*asked, answers[rows, :T], mask[rows, :T]))
    chosen, rejected = torch.cat(scores)[order.argsort()].chunk(2)
    return chosen, rejected


def score_all(
    model: RewardModel, pairs: Pairs, size: int = 0
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
    """`score_pairs` of any number of pairs, `size` at a time, without a gradient.

    Each process scores its share, and all get all scores, on the CPU.
    """

    def both(rows: Int[Tensor, "n"]) -> Float[Tensor, "n 2"]:
        return torch.stack(score_pairs(model, beside(model, pairs[rows])), dim=1)

    chosen, rejected = row_by_row(both, len(pairs), size).cpu().unbind(1)
    return chosen, rejected


def pairwise_loss(
    chosen: Float[Tensor, "N"], rejected: Float[Tensor, "N"], margin: float = 0.0
) -> Float[Tensor, ""]:
    """−log σ(chosen − rejected − margin), mean over pairs, in nats.

    Minus the log-likelihood of a label under Bradley and Terry's model, in which the
    better of two answers wins with probability σ(difference of scores), where σ is the
    logistic function 1/(1 + e^−x). Only differences count: adding a constant to all
    scores changes nothing.

    Args:
        chosen, rejected: scores of the better and of the worse answers, row n of both
            for one pair; both get a gradient. However far apart, the loss is finite.
        margin: by how much the better one must win to be as cheap as a tie without it.

    Example: a difference of 0 costs log 2 = 0.6931, of 1 costs 0.3133, of 1 with margin
    0.5 costs 0.4741, of −200 costs 200.

    Source: InstructGPT (arXiv 2203.02155), equation 1; the margin, Touvron et al. 2023,
    Llama 2 (arXiv 2307.09288), equation 2.
    """
    return -F.logsigmoid(chosen - rejected - margin).mean()

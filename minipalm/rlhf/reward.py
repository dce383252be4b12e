"""The reward model: a score for an answer, learnt from comparisons."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from minipalm.model.palm import PaLM
from minipalm.rlhf.pairs import Pairs


def check_pooling(pooling: str) -> None:
    if pooling not in ("last", "mean"):
        raise ValueError(f"pooling must be 'last' or 'mean' (got {pooling!r})")


def scalar_head(trunk: PaLM, generator: torch.Generator | None = None) -> nn.Linear:
    """From a state to a number: weights from N(0, 1/(D+1)), bias 0; where trunk is."""
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
        pooling: "last" reads the token score at the answer's last token, "mean"
            averages the token scores over the answer.
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
        """Normalised scores; the same for more padding or another batch.

        Args:
            prompts, prompt_mask: left-padded.
            responses, mask: right-padded, at least one token a row.
        """
        ids = torch.cat([prompts, responses], dim=1)
        segments = torch.cat([prompt_mask, mask], dim=1).long()
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

        Source: Ziegler et al. 2019 (arXiv 1909.08593), section 2.2, last paragraph.
        """
        spread = scores.std() if len(scores) > 1 else scores.new_zeros(())
        if not spread > 0:  # also if it is NaN
            raise ValueError(
                f"the scale needs scores that differ (got {len(scores)} of standard "
                f"deviation {spread.item()})"
            )
        self.mean += scores.mean() * self.std
        self.std *= spread


def pool(
    x: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"], pooling: str
) -> Float[Tensor, "B D"]:
    """One row for each answer: its last token's, or the mean over its tokens.

    Since the head is linear, pooling the hidden states and pooling the token scores is
    the same.
    """
    if pooling == "last":
        last = mask.sum(1) - 1
        return x[torch.arange(len(x), device=x.device), last]
    weights = mask / mask.sum(1, keepdim=True)
    return (x * weights[..., None]).sum(1)


def score_pairs(
    model: RewardModel, pairs: Pairs, groups: int = 4
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
    """Scores of the chosen and of the rejected answers.

    Args:
        model: scores them.
        pairs: N comparisons.
        groups: answers of about the same length are scored together, in so many passes,
            each as wide as its longest: less padding to compute, the same scores.
    """
    prompts, prompt_mask = pairs.prompts.repeat(2, 1), pairs.prompt_mask.repeat(2, 1)
    answers = torch.cat([pairs.chosen, pairs.rejected])
    mask = torch.cat([pairs.chosen_mask, pairs.rejected_mask])
    order = mask.sum(1).argsort()
    scores = []
    for rows in order.chunk(groups):
        P, T = int(prompt_mask[rows].sum(1).max()), int(mask[rows].sum(1).max())
        asked = prompts[rows, -P:], prompt_mask[rows, -P:]
        scores.append(model(*asked, answers[rows, :T], mask[rows, :T]))
    chosen, rejected = torch.cat(scores)[order.argsort()].chunk(2)
    return chosen, rejected


def pairwise_loss(
    chosen: Float[Tensor, "N"], rejected: Float[Tensor, "N"], margin: float = 0.0
) -> Float[Tensor, ""]:
    """−log σ(chosen − rejected − margin), mean over pairs, in nats.

    The likelihood of the labels under Bradley and Terry's model, in which the better of
    two answers wins with probability σ(difference of scores). Only differences count:
    adding a constant to all scores changes nothing.

    Example: a difference of 0 costs log 2 = 0.6931, of 1 costs 0.3133.

    Source: InstructGPT (arXiv 2203.02155), equation 1; the margin, Touvron et al. 2023,
    Llama 2 (arXiv 2307.09288), equation 2.
    """
    return -F.logsigmoid(chosen - rejected - margin).mean()

"""Several reward models instead of one: what they disagree on is not to be trusted.

Reward models that were trained alike agree where they have seen data, and differ where
they have not: there each is wrong in a way of its own. A policy that is paid by all of
them at once must find an answer that fools them all.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from minipalm.rlhf.reward import RewardModel
from minipalm.rlhf.rollout import Reward

Combine = Callable[[Float[Tensor, "K B"]], Float[Tensor, "B"]]


def ensemble_mean(scores: Float[Tensor, "K B"]) -> Float[Tensor, "B"]:
    """What the K reward models say on average.

    Args:
        scores: row k holds what model k says of B answers, each in its own standard
            deviations of SFT answers, so that none speaks louder than the others.

    Example: scores (1, 3) and (2, −3): (1.5, 0).
    """
    return scores.mean(0)


def worst_case(scores: Float[Tensor, "K B"]) -> Float[Tensor, "B"]:
    """What the most severe of the K reward models says, answer by answer.

    Args:
        scores: as in `ensemble_mean`.

    Example: scores (1, 3) and (2, −3): (1, −3), from different models.

    Source: Coste, Anwar, Kirk and Krueger 2023 (arXiv 2310.02743): worst-case
    optimization.
    """
    return scores.amin(0)


def uncertainty_weighted(
    scores: Float[Tensor, "K B"], caution: float = 0.5
) -> Float[Tensor, "B"]:
    """The mean of the K reward models, less what their disagreement costs.

    mean_k s_k − λ · mean_k (s_k − mean)²: the variance divides by K, since these K are
    all the models there are.

    Args:
        scores: as in `ensemble_mean`; K is 1 or more.
        caution: λ, per unit of the score; 0 is the mean.

    Raises:
        ValueError: caution is below 0: disagreement would be rewarded.

    Example: scores (1, 3) and (2, −3), λ = .5: means 1.5 and 0, variances .25 and 9,
    so (1.375, −4.5).

    Source: Coste, Anwar, Kirk and Krueger 2023 (arXiv 2310.02743): uncertainty-
    weighted optimization.
    """
    if caution < 0:
        raise ValueError(f"caution must be 0 or more (got {caution})")
    mean = scores.mean(0)
    return mean - caution * (scores - mean).square().mean(0)


@torch.no_grad()
def all_scores(
    members: Sequence[RewardModel], *answers: Tensor
) -> Float[Tensor, "K B"]:
    """What each of K reward models says of B answers.

    Args:
        members: the reward models, each with its own scale.
        answers: prompts, prompt_mask, responses, mask, as a RewardModel takes them.
    """
    return torch.stack([member(*answers) for member in members])


def ensemble_reward(members: Sequence[RewardModel], combine: Combine) -> Reward:
    """A reward for PPO, made of several reward models.

    Args:
        members: the reward models.
        combine: makes one score of K, such as `worst_case`.

    Raises:
        ValueError: there is no member.
    """
    if not members:
        raise ValueError("an ensemble needs at least one reward model (got none)")

    def reward(*answers: Tensor) -> Tensor:
        return combine(all_scores(members, *answers))

    return reward

"""The critic: what a text is worth so far, at every token."""

import copy

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from minipalm.model.palm import PaLM
from minipalm.rlhf.reward import RewardModel, check_pooling, scalar_head


class Critic(nn.Module):
    """A trunk with a scalar head: V_t, the reward expected before token t is emitted.

    Args:
        trunk: a language model; the critic keeps it (no copy).
        pooling: of the tokens' scores to a value, as in the reward model that it
            starts from: "last" takes the score of the token before t; "mean" the mean
            over the answer's tokens before t (where there is none yet, the score of the
            prompt's last token).

    It is a network of its own, so that its errors cannot move the policy.
    """

    def __init__(self, trunk: PaLM, pooling: str) -> None:
        super().__init__()
        check_pooling(pooling)
        self.trunk = trunk
        self.pooling = pooling
        self.head = scalar_head(trunk)

    def forward(
        self,
        prompts: Int[Tensor, "B P"],
        prompt_mask: Bool[Tensor, "B P"],
        responses: Int[Tensor, "B T"],
        mask: Bool[Tensor, "B T"],
    ) -> Float[Tensor, "B T"]:
        """V_t for each response token; column 0 is the value of the bare prompt.

        V_t is read one place before token t, so it cannot know what it will judge. It
        carries a gradient to trunk and head.

        Args:
            prompts, prompt_mask: left-padded.
            responses, mask: right-padded. What stands where a mask is False changes no
                value where it is True; there, anything may come back.

        `self.trunk.hidden(ids, segments, last=n)` gives the states at the last n places
        of rows of tokens; segments is 1 at tokens, 0 at padding. `self.head` makes a
        score of each state. `self.pooling` makes values of the scores, see above.

        Example: the head gives .5 at the prompt's last token, then 1, 2, 6 at an answer
        of three tokens: V is (.5, 1, 2) for "last", (.5, 1, 1.5) for "mean".
        """
        ids = torch.cat([prompts, responses[:, :-1]], dim=1)
        segments = torch.cat([prompt_mask, mask[:, :-1]], dim=1).long()
        hidden = self.trunk.hidden(ids, segments, last=responses.shape[1])
        scores = self.head(hidden)[..., 0]
        if self.pooling == "last":
            return scores
        emitted = scores[:, 1:]  # at the answer's own tokens, all but its last
        count = torch.arange(1, emitted.shape[1] + 1, device=scores.device)
        return torch.cat([scores[:, :1], emitted.cumsum(1) / count], dim=1)


def critic_from_reward_model(reward_model: RewardModel) -> Critic:
    """A critic that starts as a copy of the reward model, in its normalised units.

    The reward model answers (w·h + b − mean) / std. Folding mean and std into the head,
    as w / std and (b − mean) / std, makes the value of a whole answer equal to its
    score. Without it the critic starts off by the raw scale, and with another pooling
    by the spread of single tokens' scores.

    Args:
        reward_model: its `trunk`, `head` (weight and bias), `pooling`, `mean` and `std`
            are read; it is not changed, now or when the critic learns.

    Returns:
        a critic of its own, with the reward model's pooling.

    Example: raw scores of mean 3 and std 2, a head with weights w and bias 1: the
    critic's head has weights w / 2 and bias −1.

    Source: Ouyang et al. 2022, InstructGPT (arXiv 2203.02155), section 3.5 and appendix
    C.4, for the start from the reward model.
    """
    critic = Critic(copy.deepcopy(reward_model.trunk), reward_model.pooling)
    with torch.no_grad():
        critic.head.weight.copy_(reward_model.head.weight / reward_model.std)
        bias = (reward_model.head.bias - reward_model.mean) / reward_model.std
        critic.head.bias.copy_(bias)
    return critic

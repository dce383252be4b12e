"""The critic: what a text is worth so far, at every token."""

import copy

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from minipalm.model.palm import PaLM
from minipalm.rlhf.reward import RewardModel


class Critic(nn.Module):
    """A trunk with a scalar head: V_t, the reward expected before token t is emitted.

    Args:
        trunk: a language model; the critic keeps it (no copy).

    It is a network of its own, so that its errors cannot move the policy.
    """

    def __init__(self, trunk: PaLM) -> None:
        super().__init__()
        self.trunk = trunk
        like = trunk.embedding.weight  # for its device and type
        self.head = nn.Linear(trunk.config.dim, 1, device=like.device, dtype=like.dtype)

    def forward(
        self,
        prompts: Int[Tensor, "B P"],
        prompt_mask: Bool[Tensor, "B P"],
        responses: Int[Tensor, "B T"],
        mask: Bool[Tensor, "B T"],
    ) -> Float[Tensor, "B T"]:
        """V_t for each response token; column 0 is the value of the bare prompt.

        V_t is read one place before token t, so it cannot know what it will judge.
        """
        ids = torch.cat([prompts, responses[:, :-1]], dim=1)
        segments = torch.cat([prompt_mask, mask[:, :-1]], dim=1).long()
        hidden = self.trunk.hidden(ids, segments, last=responses.shape[1])
        return self.head(hidden)[..., 0]


def critic_from_reward_model(reward_model: RewardModel) -> Critic:
    """A critic that starts as a copy of the reward model, in its normalised units.

    The reward model answers (w·h + b − mean) / std. Folding mean and std into the head,
    w / std and (b − mean) / std, gives the critic the units of
    the rewards that it will see; without it, it starts off by the raw scale.

    Source: Ouyang et al. 2022, InstructGPT (arXiv 2203.02155), appendix C.4, for the
    start from the reward model.
    """
    critic = Critic(copy.deepcopy(reward_model.trunk))
    with torch.no_grad():
        critic.head.weight.copy_(reward_model.head.weight / reward_model.std)
        bias = (reward_model.head.bias - reward_model.mean) / reward_model.std
        critic.head.bias.copy_(bias)
    return critic

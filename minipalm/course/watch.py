"""What lesson 13 looks at while a policy trains, and writes down."""

import copy
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import torch

from minipalm.course.wrong_rewards import World, gold_totals, scores_of
from minipalm.data.gold import label_pair
from minipalm.evaluate.judge import gold_of
from minipalm.model.palm import PaLM
from minipalm.rlhf.answers import answers_of
from minipalm.rlhf.ensemble import all_scores
from minipalm.rlhf.kl import exact_kl
from minipalm.rlhf.logprobs import response_logits
from minipalm.rlhf.reward import RewardModel
from minipalm.rlhf.rollout import Rollout

TOLD = 4  # iterations from one sample to the next


class Watch:
    """Looks at each iteration's answers, and asks three prompts now and then.

    PPO calls it after an update. What was sampled before the update is judged with the
    weights of before, which it keeps.

    Args:
        world: what the run begins with.
        policy: that is trained; read, never changed.
        members: the reward models that it is paid by, one or more.
        judge: a reward model that the policy is not paid by.
        penalty: for a missing end, which the proxy's own score does not have.
    """

    def __init__(
        self,
        world: World,
        policy: PaLM,
        members: Sequence[RewardModel],
        judge: RewardModel,
        penalty: float,
    ) -> None:
        self.world, self.policy = world, policy
        self.members, self.judge, self.penalty = members, judge, penalty
        self.before = copy.deepcopy(policy).requires_grad_(False)
        self.told: list[dict[str, Any]] = []
        self.iteration = 0
        self.labeller = Random(world.seed)

    @torch.no_grad()
    def __call__(self, rollout: Rollout) -> dict[str, float]:
        world, tokens = self.world, rollout.tokens
        after, reference = (
            response_logits(one, *tokens) for one in (self.before, world.sft)
        )
        moved = torch.where(rollout.mask, exact_kl(after, reference), 0.0)
        answers = answers_of(tokens, world.tokenizer)
        parts = gold_of(answers)
        assert parts is not None  # the prompts are TinyTales' own
        endless = 1 - sum(answers.finished) / len(parts)
        golds = [one.total for one in parts]
        row = {
            "gold": sum(golds) / len(parts),
            "preferred": self.preferred(answers.prompts, golds),
            "proxy": rollout.scores.mean().item() + self.penalty * endless,
            "judge": self.judge(*tokens).mean().item(),
            "exact_kl": moved.sum(1).mean().item(),
            **{
                name: sum(getattr(one, name) for one in parts) / len(parts)
                for name in ("mood", "grammar", "fresh")
            },
        }
        if len(self.members) > 1:
            scores = all_scores(self.members, *tokens)
            row["spread"] = scores.std(0).mean().item()
        if self.iteration % TOLD == 0:
            self.tell()
        self.iteration += 1
        self.before.load_state_dict(self.policy.state_dict())
        return row

    def preferred(self, prompts: Sequence[str], golds: Sequence[float]) -> float:
        """How often the labeller prefers an answer to one of SFT's, to the same prompt.

        This can be known outside of a toy, too: it costs a label an answer.
        """
        rivals = self.world.sft_golds
        won = [
            label_pair(gold, self.labeller.choice(rivals[prompt]), self.labeller)
            for prompt, gold in zip(prompts, golds, strict=True)
        ]
        return sum(won) / len(won)

    def tell(self) -> None:
        """Note what the policy of before says, always with the same random numbers."""
        texts = self.world.texts[:: len(self.world.texts) // 3][:3]
        answers = self.world.ask(self.before, texts, self.world.seed)
        self.told.append(
            {
                "iteration": self.iteration,
                "said": answers.texts,
                "finished": answers.finished,
                "gold": gold_totals(answers).tolist(),
                "proxy": scores_of(self.members[0], answers).tolist(),
            }
        )


COLUMNS = {  # of the file: of the run
    **{name: name for name in ("gold", "proxy", "judge", "preferred")},
    **{name: name for name in ("mood", "grammar", "fresh")},
    "kl": "exact_kl",
    "tokens": "length",
    "unfinished": "unfinished",
    "spread": "spread",
}


def curve_of(rows: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """The columns of the file, from the lines of a run that a `Watch` has looked at."""
    return {
        ours: [row[theirs] for row in rows]
        for ours, theirs in COLUMNS.items()
        if theirs in rows[0]
    }

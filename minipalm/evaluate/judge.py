"""Judge answers from every side: the true reward, the proxy, the distance travelled."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor

from minipalm.data.gold import GoldParts, gold_parts
from minipalm.data.lexicon import is_tinytales_prompt
from minipalm.model.palm import PaLM
from minipalm.parallel import row_by_row
from minipalm.rlhf.answers import Answers
from minipalm.rlhf.kl import exact_kl
from minipalm.rlhf.logprobs import response_logits
from minipalm.rlhf.reward import RewardModel


@dataclass(frozen=True)
class Judged:
    """What each answer is worth; entry n of all is about answer n.

    Attributes:
        answers: the answers themselves.
        gold: the true reward's parts; None where a prompt is not a TinyTales one.
        proxy: the reward model's score, in standard deviations of SFT samples.
        kl: exact KL(policy ‖ reference), summed over the answer, nats.
    """

    answers: Answers
    gold: list[GoldParts] | None
    proxy: Float[Tensor, "N"]
    kl: Float[Tensor, "N"]

    def gold_totals(self) -> Float[Tensor, "N"]:
        """The gold reward of each answer, 0 to 10; NaN where there is none."""
        if self.gold is None:
            return torch.full_like(self.proxy, torch.nan)
        return torch.tensor([parts.total for parts in self.gold])

    def row(self) -> dict[str, float | None]:
        """Means over the answers: a row of the results table."""
        parts = [field.name for field in fields(GoldParts)]
        row: dict[str, float | None] = dict.fromkeys(["gold", "gold_sd", *parts])
        if self.gold is not None:
            totals = self.gold_totals()
            row["gold"], row["gold_sd"] = totals.mean().item(), totals.std().item()
            for name in parts:
                row[name] = sum(getattr(one, name) for one in self.gold) / len(totals)
        mask = self.answers.tokens[3]
        return {
            **row,
            "proxy": self.proxy.mean().item(),
            "kl": self.kl.mean().item(),
            "tokens": mask.sum(1).float().mean().item(),
            "unfinished": 1 - sum(self.answers.finished) / len(mask),
        }


def gold_of(answers: Answers) -> list[GoldParts] | None:
    """The gold reward of each answer; None if any prompt is not a TinyTales one."""
    if not all(is_tinytales_prompt(prompt) for prompt in answers.prompts):
        return None
    told = zip(answers.prompts, answers.texts, answers.finished, strict=True)
    return [gold_parts(*one) for one in told]


def rows_by_prompt(prompts: Sequence[str]) -> dict[str, list[int]]:
    """Which rows ask the same.

    Example: ("a", "b", "a") are {"a": [0, 2], "b": [1]}.
    """
    rows = defaultdict(list)
    for row, prompt in enumerate(prompts):
        rows[prompt].append(row)
    return dict(rows)


def same_prompt_pairs(prompts: Sequence[str]) -> Int[Tensor, "M 2"]:
    """Pairs of rows that ask the same, no row in two of them.

    Example: ("a", "b", "a", "a") have one pair, (0, 2).
    """
    groups = rows_by_prompt(prompts).values()
    pairs = [pair for rows in groups for pair in zip(rows[::2], rows[1::2])]
    return torch.tensor(pairs, dtype=torch.long).view(-1, 2)


@torch.no_grad()
def judge(
    answers: Answers,
    policy: PaLM,
    reference: PaLM,
    reward_model: RewardModel,
    batch_size: int = 256,
) -> Judged:
    """Work out what the answers are worth.

    Args:
        answers: of the policy, at temperature 1.
        policy: gave the answers.
        reference: what the KL is measured from.
        reward_model: gives the proxy score.
        batch_size: answers at a time.
    """

    def both(rows: Int[Tensor, "n"]) -> Float[Tensor, "n 2"]:
        prompts, prompt_mask, responses, mask = (x[rows] for x in answers.tokens)
        some = (prompts, prompt_mask, responses, mask)
        before, after = (response_logits(m, *some) for m in (reference, policy))
        moved = torch.where(mask, exact_kl(after, before), 0.0).sum(1)
        return torch.stack([reward_model(*some), moved], dim=1)

    proxy, kl = row_by_row(both, len(answers), batch_size).cpu().unbind(1)
    return Judged(answers, gold_of(answers), proxy, kl)

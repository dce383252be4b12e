"""Lesson 11: both losses, the critic, minibatches, and the update itself."""

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minipalm.config import PaLMConfig, PPOConfig
from minipalm.course.exercise import Candidate, Case, Exercise, Trap, Twin
from minipalm.model.palm import PaLM
from minipalm.rlhf.critic import Critic, critic_from_reward_model
from minipalm.rlhf.ppo import (
    PPOStats,
    minibatches,
    policy_loss,
    ppo_update,
    value_loss,
)
from minipalm.rlhf.reward import RewardModel
from minipalm.rlhf.rollout import Rollout


def ragged(lengths: list[int], width: int) -> Tensor:
    return torch.arange(width) < torch.tensor(lengths)[:, None]


# --- 11.1 policy_loss ---------------------------------------------------------------

KNOWN_RATIOS = torch.tensor([[1.5, 0.5, 1.5, 0.5]])
KNOWN_ADVANTAGES = torch.tensor([[1.0, 1.0, -1.0, -1.0]])


def policy_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)

    def batch(lengths: list[int], width: int, spread: float = 0.4) -> list[Tensor]:
        """Ratios on both sides of 1 ± ε, advantages of both signs; far-off padding."""
        shape = len(lengths), width
        old = -1.0 - torch.rand(shape, generator=draw)
        new = old + spread * torch.randn(shape, generator=draw)
        advantages = torch.randn(shape, generator=draw)
        advantages = advantages + 0.5 * advantages.sign()
        mask = ragged(lengths, width)
        new, old = torch.where(mask, new, -4.0), torch.where(mask, old, 0.0)
        advantages = torch.where(mask, advantages, 3.0)
        for one in (new, old, advantages):
            one.requires_grad_(True)
        return [new, old, advantages, mask]

    def unknown(lengths: list[int], width: int) -> list[Tensor]:
        """NaN in the padding of all three, as where nothing was ever computed."""
        *numbers, mask = batch(lengths, width)
        blank = [torch.where(mask, one.detach(), torch.nan) for one in numbers]
        return [*blank, mask]

    far = torch.tensor([[-0.1, -0.3, -0.2]]).requires_grad_(True)
    before, blame = torch.tensor([[-26.0, -0.4, -0.1]]), torch.tensor([[-0.5, 1, 2]])
    full = KNOWN_RATIOS > 0
    example = KNOWN_RATIOS.log().requires_grad_(True), 0 * KNOWN_RATIOS
    return [
        Case("the example of the docstring", *example, KNOWN_ADVANTAGES, full),
        Case("answers of unequal lengths", *batch([5, 1, 3], 6)),
        Case("ε = 0.1", *batch([4, 2], 5, 0.2), clip=0.1),
        Case("ε = 0.5", *batch([4, 6, 2], 6, 0.8), clip=0.5),
        Case("before the first step", *batch([3, 5], 5, 0.0)),
        Case("a part of a larger minibatch", *batch([2, 4], 5), total=17),
        Case("no token at all", *batch([0, 0], 3)),
        Case("NaN in the padding", *unknown([3, 1, 4], 5)),
        Case("blamed, and far likelier than before", far, before, blame, blame != 0),
    ]


def policy_oracle(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: float = 0.2,
    total: int | None = None,
) -> Tensor:
    """Token by token: what it asks for, and whether it has had enough of it."""
    loss, count = 0.0 * logprobs[mask].sum(), 0
    for b in range(len(mask)):
        for t in range(mask.shape[1]):
            if not mask[b, t]:
                continue
            count += 1
            a = float(advantages[b, t])
            ratio = torch.exp(logprobs[b, t] - float(old_logprobs[b, t]))
            if a > 0 and ratio > 1 + clip:
                loss = loss - (1 + clip) * a
            elif a < 0 and ratio < 1 - clip:
                loss = loss - (1 - clip) * a
            else:
                loss = loss - ratio * a
    return loss / (total or max(count, 1))


def policy_loss_by_sign(logprobs, old_logprobs, advantages, mask, clip=0.2, total=None):
    """A good token's ratio is cut from above, a bad one's from below."""
    ratio = torch.exp(logprobs - old_logprobs.detach())
    good = ratio.clamp(max=1 + clip)
    bad = ratio.clamp(min=1 - clip)
    advantages = advantages.detach()
    gain = torch.where(advantages > 0, good, bad) * advantages
    count = mask.sum().clamp(min=1) if total is None else total
    return -gain.masked_fill(~mask, 0.0).sum() / count


def policy_loss_as_maximum(new, old, advantages, mask, clip=0.2, total=None):
    """The larger of two losses instead of the smaller of two gains."""
    rho = (new[mask] - old[mask].detach()).exp()
    cost = -advantages[mask].detach()
    worse = torch.max(rho * cost, torch.clip(rho, 1 - clip, 1 + clip) * cost)
    if total is None:
        total = max(int(mask.sum()), 1)
    return worse.sum() / total


POLICY_LOSS = Exercise(
    id="11.1",
    answer=policy_loss,
    why="This is PPO: make praised words likelier, but not by more than one batch of "
    "answers can justify.",
    difficulty=3,
    importance=5,
    minutes=12,
    hints=(
        "A praised token has already become half as likely again. What should it be "
        "told now? And a blamed one that has become likelier?",
        "$-\\min(\\rho A,\\ \\mathrm{clip}(\\rho, 1-\\epsilon, 1+\\epsilon)A)$ with "
        "$\\rho = \\exp(\\log\\pi - \\log\\pi_{old})$, mean over the mask.",
        "`ratio = (logprobs - old_logprobs.detach()).exp()`",
    ),
    bonus="Draw the four cases: A above or below 0, ρ above or below 1 ± ε. In which "
    "one would clipping without the minimum leave a mistake uncorrected for ever?",
    cases=policy_cases,
    oracle=policy_oracle,
    traps=(
        Trap(
            "The sign is turned round: this is the objective itself, and minimising it "
            "makes praised tokens *less* likely. A loss is its negative.",
            ("losses = -torch.minimum", "losses = torch.minimum"),
        ),
        Trap(
            "The larger of the two gains is taken. The smaller one counts: PPO is "
            "pessimistic, and so a token that has gone too far gets nothing more.",
            ("-torch.minimum", "-torch.maximum"),
        ),
        Trap(
            "The minimum is missing: with the clipped ratio alone, a token that has "
            "moved the *wrong* way gets no gradient to come back.",
            (
                "torch.minimum(ratio * advantages, clipped * advantages)",
                "(clipped * advantages)",
            ),
        ),
        Trap(
            "Nothing is clipped: without 1 ± ε a few tokens can run away from the "
            "policy that gave the answers.",
            (
                "torch.minimum(ratio * advantages, clipped * advantages)",
                "(ratio * advantages)",
            ),
        ),
        Trap(
            "The logarithm of the ratio is clipped to ± ε. The clip belongs to the "
            "ratio: 1 − ε to 1 + ε.",
            ("ratio.clamp(1 - clip, 1 + clip)", "ratio.log().clamp(-clip, clip).exp()"),
        ),
        Trap(
            "The ratio is upside down: it is π / π_old, so the new log-probability "
            "comes first in the difference.",
            (
                "(logprobs - old_logprobs.detach())",
                "(old_logprobs.detach() - logprobs)",
            ),
        ),
        Trap(
            "A difference of log-probabilities is the *logarithm* of the ratio: the "
            "ratio is its exponential.",
            (
                "(logprobs - old_logprobs.detach()).exp()",
                "1 + (logprobs - old_logprobs.detach())",
            ),
        ),
        Trap(
            "The log-probabilities are divided. The ratio is of probabilities: the "
            "exponential of a difference.",
            (
                "(logprobs - old_logprobs.detach()).exp()",
                "logprobs / old_logprobs.detach().clamp(max=-1e-3)",
            ),
        ),
        Trap(
            "Padding is counted: mean over the tokens of the mask, nothing else.",
            (
                "masked_mean(losses, mask, total)",
                "masked_mean(losses, torch.ones_like(mask), total)",
            ),
        ),
        Trap(
            "The sum over the mask is divided by all places, padding too. Divide by "
            "the number of tokens, or by `total`.",
            (
                "masked_mean(losses, mask, total)",
                "masked_mean(losses, mask, total or mask.numel())",
            ),
        ),
        Trap(
            "This is a sum: its size grows with the batch. Divide by the number of "
            "tokens, or by `total`.",
            ("masked_mean(losses, mask, total)", "masked_mean(losses, mask, 1)"),
        ),
        Trap(
            "Each answer is averaged by itself first, so a word of a short answer "
            "weighs more. All tokens weigh the same here.",
            (
                "masked_mean(losses, mask, total)",
                "(losses.masked_fill(~mask, 0).sum(1) / mask.sum(1).clamp(min=1))"
                ".mean()"
                " if total is None else masked_mean(losses, mask, total)",
            ),
        ),
        Trap(
            "`total` is not used: in a part of a minibatch, divide by the token count "
            "of the whole one.",
            ("masked_mean(losses, mask, total)", "masked_mean(losses, mask)"),
        ),
        Trap(
            "losses * mask lets the padding in where it is NaN or infinite: 0 · NaN is "
            "NaN. Choose places, as `masked_mean` does.",
            (
                "masked_mean(losses, mask, total)",
                "masked_mean(losses * mask, torch.ones_like(mask), "
                "mask.sum().clamp(min=1) if total is None else total)",
            ),
        ),
        Trap(
            "The log of the ratio is clamped. Some libraries do that, but a blamed "
            "token that has become far likelier then gets no gradient to come back.",
            (
                "(logprobs - old_logprobs.detach())",
                "(logprobs - old_logprobs.detach()).clamp(-20.0, 20.0)",
            ),
        ),
        Trap(
            "ε is fixed at 0.2, whatever `clip` says.",
            ("ratio.clamp(1 - clip, 1 + clip)", "ratio.clamp(0.8, 1.2)"),
        ),
        Trap(
            "Advantages carry a gradient here: then the critic is pushed to promise "
            "more, not to be right. They are constants: detach.",
            ("advantages.detach()", "advantages"),
        ),
        Trap(
            "The old log-probabilities carry a gradient here. They belong to a policy "
            "of the past, which nothing can change: detach.",
            ("old_logprobs.detach()", "old_logprobs"),
        ),
        Trap(
            "The old policy is taken to be the new one, so the ratio is 1 always and "
            "the clip never acts. Use `old_logprobs`.",
            ("old_logprobs.detach()", "logprobs.detach()"),
        ),
        Trap(
            "The ratio carries no gradient, so nobody learns: detach the old "
            "log-probabilities, not the new ones.",
            (
                "(logprobs - old_logprobs.detach()).exp()",
                "(logprobs.detach() - old_logprobs.detach()).exp() + 0 * logprobs",
            ),
        ),
    ),
    twins=(Twin(policy_loss_by_sign), Twin(policy_loss_as_maximum)),
    equivalent={
        "torch.minimum(ratio * advantages, clipped * advantages) → "
        "torch.minimum(clipped * advantages, ratio * advantages)": (
            "the smaller of two numbers, whichever is named first"
        ),
    },
)

# --- 11.2 value_loss ----------------------------------------------------------------


def value_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)

    def batch(lengths: list[int], width: int, spread: float = 0.5) -> list[Tensor]:
        shape = len(lengths), width
        old = torch.randn(shape, generator=draw)
        new = old + spread * torch.randn(shape, generator=draw)
        returns = old + torch.randn(shape, generator=draw)
        mask = ragged(lengths, width)
        returns = torch.where(mask, returns, 9.0)
        for one in (new, old, returns):
            one.requires_grad_(True)
        return [new, old, returns, mask]

    def unknown(lengths: list[int], width: int) -> list[Tensor]:
        """NaN in the padding of all three, as where nothing was ever computed."""
        *numbers, mask = batch(lengths, width)
        blank = [torch.where(mask, one.detach(), torch.nan) for one in numbers]
        return [*blank, mask]

    one = torch.ones(1, 1)
    known = one.clone().requires_grad_(True), 0.5 * one, 1.2 * one, one > 0
    return [
        Case("the example of the docstring", *known),
        Case("answers of unequal lengths", *batch([5, 1, 3], 6)),
        Case("ε = 0.05", *batch([4, 2], 5), clip=0.05),
        Case("ε = 0.8", *batch([4, 6, 2], 6, 1.5), clip=0.8),
        Case("before the first step", *batch([3, 5], 5, 0.0)),
        Case("a part of a larger minibatch", *batch([2, 4], 5), total=17),
        Case("no token at all", *batch([0, 0], 3)),
        Case("NaN in the padding", *unknown([3, 1, 4], 5)),
    ]


def value_oracle(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    clip: float = 0.2,
    total: int | None = None,
) -> Tensor:
    """Token by token."""
    loss, count = 0.0 * values[mask].sum(), 0
    for b in range(len(mask)):
        for t in range(mask.shape[1]):
            if not mask[b, t]:
                continue
            count += 1
            old, wanted = float(old_values[b, t]), float(returns[b, t])
            least, most = old - clip, old + clip
            value = values[b, t]
            near = value.clamp(least, most)
            miss, near_miss = abs(value - wanted), abs(near - wanted)
            worse = miss if miss >= near_miss else near_miss
            loss = loss + worse * worse / 2
    return loss / (total or max(count, 1))


def value_loss_by_where(values, old_values, returns, mask, clip=0.2, total=None):
    old, target = old_values.detach(), returns.detach()
    near = torch.minimum(torch.maximum(values, old - clip), old + clip)
    far_off, near_off = values - target, near - target
    worse = torch.where(far_off.abs() >= near_off.abs(), far_off, near_off)
    count = mask.sum().clamp(min=1) if total is None else total
    return 0.5 * torch.where(mask, worse**2, 0.0).sum() / count


def value_loss_by_mse(values, old_values, returns, mask, clip=0.2, total=None):
    old, target = old_values.detach()[mask], returns.detach()[mask]
    v = values[mask]
    plain = F.mse_loss(v, target, reduction="none")
    held = F.mse_loss(old + (v - old).clamp(-clip, clip), target, reduction="none")
    if total is None:
        total = max(int(mask.sum()), 1)
    return torch.maximum(plain, held).sum() / (2 * total)


VALUE_LOSS = Exercise(
    id="11.2",
    answer=value_loss,
    why="The critic must not run after one batch either: the next advantages are "
    "measured against it.",
    difficulty=2,
    importance=4,
    minutes=7,
    at_home=True,
    hints=(
        "What is held near what: the new value near its return, or near the old value?",
        "$\\tfrac12 \\max((V-R)^2, (V_{clip}-R)^2)$ with $V_{clip} = V_{old} + "
        "\\mathrm{clip}(V - V_{old}, -\\epsilon, \\epsilon)$.",
        "`clipped = old_values + (values - old_values).clamp(-clip, clip)`",
    ),
    bonus="ε is in units of the reward. What happens to a critic whose rewards are a "
    "hundred times larger, with the same ε?",
    cases=value_cases,
    oracle=value_oracle,
    traps=(
        Trap(
            "The smaller of the two errors is taken: then a value far from its return "
            "can look good. The larger one counts.",
            ("torch.maximum", "torch.minimum"),
        ),
        Trap(
            "Values are held near the *return*. They are held near the old value, "
            "V_old: the clip limits the step, not the error.",
            (
                "old_values + (values - old_values).clamp(-clip, clip)",
                "returns + (values - returns).clamp(-clip, clip)",
            ),
        ),
        Trap(
            "The factor ½ is missing.",
            (
                "masked_mean(errors / 2, mask, total)",
                "masked_mean(errors, mask, total)",
            ),
        ),
        Trap(
            "Nothing is clipped: this is the plain squared error.",
            (
                "torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)",
                "(values - returns) ** 2",
            ),
        ),
        Trap(
            "Only the clipped value counts: a value that has left V_old ± ε the wrong "
            "way gets no gradient to come back.",
            (
                "torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)",
                "(clipped - returns) ** 2",
            ),
        ),
        Trap(
            "The value itself is cut to ± ε. Its *distance from V_old* is.",
            (
                "old_values + (values - old_values).clamp(-clip, clip)",
                "values.clamp(-clip, clip)",
            ),
        ),
        Trap(
            "These are absolute errors; the loss takes their squares.",
            (
                "torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)",
                "torch.maximum((values - returns).abs(), (clipped - returns).abs())",
            ),
        ),
        Trap(
            "ε is a distance, in units of the reward. Here it is a share of V_old, as "
            "if values were ratios.",
            (
                "old_values + (values - old_values).clamp(-clip, clip)",
                "old_values * (values / old_values).clamp(1 - clip, 1 + clip)",
            ),
        ),
        Trap(
            "Padding is counted: mean over the tokens of the mask, nothing else.",
            (
                "masked_mean(errors / 2, mask, total)",
                "masked_mean(errors / 2, torch.ones_like(mask), total)",
            ),
        ),
        Trap(
            "This is a sum: divide by the number of tokens, or by `total`.",
            (
                "masked_mean(errors / 2, mask, total)",
                "masked_mean(errors / 2, mask, 1)",
            ),
        ),
        Trap(
            "`total` is not used: in a part of a minibatch, divide by the token count "
            "of the whole one.",
            ("masked_mean(errors / 2, mask, total)", "masked_mean(errors / 2, mask)"),
        ),
        Trap(
            "errors * mask lets the padding in where it is NaN or infinite: 0 · NaN is "
            "NaN. Choose places, as `masked_mean` does.",
            (
                "masked_mean(errors / 2, mask, total)",
                "masked_mean(errors / 2 * mask, torch.ones_like(mask), "
                "mask.sum().clamp(min=1) if total is None else total)",
            ),
        ),
        Trap(
            "ε is fixed at 0.2, whatever `clip` says.",
            (".clamp(-clip, clip)", ".clamp(-0.2, 0.2)"),
        ),
        Trap(
            "The returns carry a gradient here: a target that can be moved is no "
            "target. Detach them.",
            ("old_values.detach(), returns.detach()", "old_values.detach(), returns"),
        ),
        Trap(
            "The old values carry a gradient here. They belong to a critic of the "
            "past: detach them.",
            ("old_values.detach(), returns.detach()", "old_values, returns.detach()"),
        ),
    ),
    twins=(Twin(value_loss_by_where), Twin(value_loss_by_mse)),
    equivalent={
        "torch.maximum((values - returns) ** 2, (clipped - returns) ** 2) → "
        "torch.maximum((clipped - returns) ** 2, (values - returns) ** 2)": (
            "the larger of two numbers, whichever is named first"
        ),
        "clipped - returns → returns - clipped": "a square has no sign",
        "values - returns → returns - values": "a square has no sign",
    },
)

# --- 11.3 Critic --------------------------------------------------------------------


def tiny_palm(seed: int) -> PaLM:
    """Far from uniform, so that every token and every mask is felt."""
    draw = torch.Generator().manual_seed(seed)
    config = PaLMConfig(7, dim=8, depth=1, heads=2, head_dim=4, embed_std=1.0)
    model = PaLM(config, draw)
    for name, weight in model.named_parameters():
        if "norm" in name:
            nn.init.uniform_(weight, 0.5, 1.5, generator=draw)
    return model


Tokens = tuple[Tensor, Tensor, Tensor, Tensor]


def tiny_tokens(seed: int, prompt_lengths: list[int], lengths: list[int]) -> Tokens:
    """Prompts padded on the left, answers on the right, by tokens drawn at random."""
    draw = torch.Generator().manual_seed(seed)
    P, T, B = max(prompt_lengths) + 1, max(lengths) + 1, len(lengths)
    prompts = torch.randint(7, (B, P), generator=draw)
    responses = torch.randint(7, (B, T), generator=draw)
    prompt_mask = torch.arange(P) >= P - torch.tensor(prompt_lengths)[:, None]
    return prompts, prompt_mask, responses, ragged(lengths, T)


def critic_cases(seed: int) -> list[Case]:
    def world(*lengths: list[int], pooling: str) -> tuple[PaLM, str, Tensor, Tokens]:
        draw = torch.Generator().manual_seed(seed)
        head = torch.randn(1, 8, generator=draw)
        return tiny_palm(seed), pooling, head, tiny_tokens(seed + 1, *lengths)

    full = tiny_tokens(seed, [3, 3], [4, 4])
    full = full[0][:, 1:], full[1][:, 1:], full[2][:, :4], full[3][:, :4]
    last = world([2, 4, 1], [5, 1, 3], pooling="last")
    mean = world([2, 4, 1], [5, 1, 3], pooling="mean")
    return [
        Case("no padding, the last token's score", *last[:3], full),
        Case("no padding, the mean of scores", *mean[:3], full),
        Case("unequal lengths, the last token's score", *last),
        Case("unequal lengths, the mean of scores", *mean),
        Case("answers of one token", *world([1, 3], [1, 1], pooling="mean")),
    ]


def run_critic(
    candidate: Candidate, trunk: PaLM, pooling: str, head: Tensor, tokens: Tokens
) -> Tensor:
    critic = candidate(trunk, pooling)
    with torch.no_grad():
        critic.head.weight.copy_(head)
        critic.head.bias.fill_(0.3)
    values = critic(*tokens)
    return torch.where(tokens[3], values, 0.0) if values.dim() == 2 else values


def critic_oracle(trunk: PaLM, pooling: str, head: Tensor, tokens: Tokens) -> Tensor:
    """Each prefix on its own, without any padding: what stands before token t."""
    prompts, prompt_mask, responses, mask = tokens
    rows = []
    for b in range(len(mask)):
        seen = prompts[b][prompt_mask[b]].tolist()
        row = []
        for t in range(mask.shape[1]):
            if not mask[b, t]:
                row.append(torch.zeros(()))
                continue
            states = trunk.hidden(torch.tensor([seen]))[0]
            scores = [state @ head[0] + 0.3 for state in states]
            told = scores[len(scores) - t :] if pooling == "mean" else []
            row.append(sum(told) / len(told) if told else scores[-1])
            seen.append(int(responses[b, t]))
        rows.append(torch.stack(row))
    return torch.stack(rows)


class CriticByShift(nn.Module):
    """Reads everything, then moves it one place to the right."""

    def __init__(self, trunk, pooling):
        super().__init__()
        self.trunk, self.pooling = trunk, pooling
        self.head = nn.Linear(trunk.config.dim, 1)

    def forward(self, prompts, prompt_mask, responses, mask):
        P = prompts.shape[1]
        ids = torch.cat([prompts, responses], 1)
        seen = torch.cat([prompt_mask, mask], 1).long()
        scores = self.head(self.trunk.hidden(ids, seen)).squeeze(-1)
        asked, told = scores[:, P - 1 : P], scores[:, P:-1]
        if self.pooling == "mean":
            sums = (told * mask[:, :-1]).cumsum(1)
            told = sums / mask[:, :-1].cumsum(1).clamp(min=1)
        return torch.cat([asked, told], 1)


class CriticByPrefix(nn.Module):
    """A pass for each column: slow and sure."""

    def __init__(self, trunk, pooling):
        super().__init__()
        self.trunk, self.pooling = trunk, pooling
        self.head = nn.Linear(trunk.config.dim, 1)

    def forward(self, prompts, prompt_mask, responses, mask):
        columns = []
        for t in range(responses.shape[1]):
            ids = torch.cat([prompts, responses[:, :t]], 1)
            seen = torch.cat([prompt_mask, mask[:, :t]], 1).long()
            n = t if t and self.pooling == "mean" else 1
            states = self.trunk.hidden(ids, seen, last=n)
            columns.append(self.head(states.mean(1))[:, 0])
        return torch.stack(columns, 1)


CRITIC = Exercise(
    id="11.3",
    answer=Critic,
    hole="forward",
    why="A baseline that has seen the word it judges praises and blames nobody.",
    difficulty=4,
    importance=4,
    minutes=12,
    hints=(
        "At which place of the row `prompt, answer` does the network know all that "
        "comes before token t, and nothing of token t?",
        "T places: from the prompt's last token to the last but one of the answer. For "
        '"mean", $V_t = \\frac1t \\sum_{s<t} \\text{score}_s$ over the answer.',
        "`ids = torch.cat([prompts, responses[:, :-1]], dim=1)`",
    ),
    bonus="Let the critic see the token it judges, and train with it. Which curve of "
    "the dashboard looks *better* than before, and why is that bad?",
    cases=critic_cases,
    run=run_critic,
    oracle=critic_oracle,
    traps=(
        Trap(
            "V_t has seen token t: it is read at the token itself. Read one place "
            "earlier: column 0 is the value of the bare prompt.",
            (
                "torch.cat([prompts, responses[:, :-1]], dim=1)",
                "torch.cat([prompts, responses], dim=1)",
            ),
            (
                "torch.cat([prompt_mask, mask[:, :-1]], dim=1)",
                "torch.cat([prompt_mask, mask], dim=1)",
            ),
        ),
        Trap(
            "V_t is read two places before token t: it misses the last thing that was "
            "said.",
            (
                "hidden = self.trunk.hidden(ids, segments, last=responses.shape[1])",
                "hidden = self.trunk.hidden(ids, segments, last=responses.shape[1] + 1)"
                "[:, :-1]",
            ),
        ),
        Trap(
            "The padding is read as if it were words. `segments` says what is a token: "
            "prompt_mask, then mask.",
            (
                "hidden = self.trunk.hidden(ids, segments,",
                "hidden = self.trunk.hidden(ids,",
            ),
        ),
        Trap(
            '`pooling` is not used: "mean" averages over the answer\'s tokens so far.',
            ('if self.pooling == "last":', "if True:"),
        ),
        Trap(
            "The mean counts the prompt's last token, too. It stands in only while the "
            "answer has no token yet.",
            ("emitted = scores[:, 1:]", "emitted = scores"),
            (
                "torch.cat([scores[:, :1], emitted.cumsum(1) / count], dim=1)",
                "emitted.cumsum(1) / count",
            ),
        ),
        Trap(
            "The sum of the scores so far is not divided by their number: the value "
            "grows with every word.",
            ("emitted.cumsum(1) / count", "emitted.cumsum(1)"),
        ),
        Trap(
            "The count is off by one: V_t is a mean over the t tokens *before* token "
            "t.",
            (
                "torch.arange(1, emitted.shape[1] + 1,",
                "torch.arange(2, emitted.shape[1] + 2,",
            ),
        ),
        Trap(
            "One number for the whole answer, at each of its tokens: a baseline that "
            "knows the end takes the credit away from the words that led there.",
            (
                "torch.cat([scores[:, :1], emitted.cumsum(1) / count], dim=1)",
                "((scores * mask).sum(1) / mask.sum(1))[:, None].expand(*mask.shape)",
            ),
        ),
        Trap(
            "The trunk learns nothing: the states are detached. The critic is a "
            "network of its own, trunk included.",
            ("self.head(hidden)", "self.head(hidden.detach())"),
        ),
    ),
    twins=(Twin(CriticByShift), Twin(CriticByPrefix)),
    equivalent={
        "self.head(hidden)[..., 0] → self.head(hidden)[..., -1]": (
            "the head gives one number: the first is the last"
        ),
    },
)

# --- 11.4 critic_from_reward_model --------------------------------------------------


def start_cases(seed: int) -> list[Case]:
    def world(pooling: str, mean: float, std: float, bias: float) -> RewardModel:
        draw = torch.Generator().manual_seed(seed)
        model = RewardModel(tiny_palm(seed), pooling, draw)
        model.mean.fill_(mean), model.std.fill_(std)
        nn.init.constant_(model.head.bias, bias)
        return model

    tokens = tiny_tokens(seed + 1, [2, 4, 1], [5, 1, 3])
    frozen = world("mean", -0.7, 0.4, 0.9).requires_grad_(False)
    return [
        Case("mean 3, std 2", world("last", 3.0, 2.0, 1.0), tokens),
        Case("mean of tokens", world("mean", 1.5, 0.5, -0.6), tokens),
        Case("a frozen reward model", frozen, tokens),
        Case("a raw reward model", world("mean", 0.0, 1.0, 0.0), tokens),
    ]


def run_start(
    candidate: Candidate, reward_model: RewardModel, tokens: Tokens
) -> dict[str, object]:
    """What the critic says, and what its learning does to the reward model."""
    before = reward_model(*tokens).detach()
    critic = candidate(reward_model)
    values = torch.where(tokens[3], critic(*tokens), 0.0).detach()
    with torch.no_grad():
        for weight in critic.parameters():
            weight += 1.0
    moved = (reward_model(*tokens) - before).abs().max().item()
    return {"values": values, "pooling": critic.pooling, "the judge moved by": moved}


def start_oracle(reward_model: RewardModel, tokens: Tokens) -> dict[str, object]:
    """Score every prefix with the reward model's own trunk; normalise by hand."""
    mean, std = float(reward_model.mean), float(reward_model.std)
    raw = critic_oracle(
        reward_model.trunk, reward_model.pooling, reward_model.head.weight, tokens
    )
    raw = raw - 0.3 + reward_model.head.bias
    values = torch.where(tokens[3], (raw - mean) / std, 0.0).detach()
    return {
        "values": values,
        "pooling": reward_model.pooling,
        "the judge moved by": 0.0,
    }


def start_by_state(reward_model):
    critic = Critic(PaLM(reward_model.trunk.config), reward_model.pooling)
    critic.trunk.load_state_dict(reward_model.trunk.state_dict())
    state = {name: x.clone() for name, x in reward_model.head.state_dict().items()}
    state["weight"] /= reward_model.std
    state["bias"] = (state["bias"] - reward_model.mean) / reward_model.std
    critic.head.load_state_dict(state)
    return critic


def start_by_copy(reward_model):
    from copy import deepcopy

    twin = deepcopy(reward_model)
    critic = Critic(twin.trunk, twin.pooling)
    critic.head.weight.data = twin.head.weight.data * (1 / twin.std)
    critic.head.bias.data = twin.head.bias.data / twin.std - twin.mean / twin.std
    return critic


START = Exercise(
    id="11.4",
    answer=critic_from_reward_model,
    why="A critic that starts where the reward model stands is right about finished "
    "answers before the first step.",
    difficulty=2,
    importance=3,
    minutes=6,
    hints=(
        "The reward model subtracts and divides after its head; the critic has a head "
        "only. Which weights and which bias give the same number?",
        "$(w \\cdot h + b - \\text{mean}) / \\text{std} = \\frac{w}{\\text{std}} "
        "\\cdot h + \\frac{b - \\text{mean}}{\\text{std}}$, in a copy of the trunk.",
        "`critic = Critic(copy.deepcopy(reward_model.trunk), reward_model.pooling)`",
    ),
    bonus="Start the critic from the fine-tuned policy instead, with a new head. How "
    "many iterations pass until its explained variance has caught up?",
    cases=start_cases,
    run=run_start,
    oracle=start_oracle,
    changes_inputs=True,
    traps=(
        Trap(
            "The raw scale is kept: the reward model's mean and std must be folded "
            "into the head, or values and scores are in different units.",
            ("reward_model.head.weight / reward_model.std", "reward_model.head.weight"),
            (
                "(reward_model.head.bias - reward_model.mean) / reward_model.std",
                "reward_model.head.bias",
            ),
        ),
        Trap(
            "The mean is added; the reward model subtracts it.",
            (
                "reward_model.head.bias - reward_model.mean",
                "reward_model.head.bias + reward_model.mean",
            ),
        ),
        Trap(
            "The bias is not divided by std. (w·h + b − mean) is divided as a whole.",
            (
                "(reward_model.head.bias - reward_model.mean) / reward_model.std",
                "reward_model.head.bias - reward_model.mean",
            ),
        ),
        Trap(
            "The bias is divided by std, the mean is not: subtract first, then divide.",
            (
                "(reward_model.head.bias - reward_model.mean) / reward_model.std",
                "reward_model.head.bias / reward_model.std - reward_model.mean",
            ),
        ),
        Trap(
            "The weights are not divided by std, only the bias is.",
            ("reward_model.head.weight / reward_model.std", "reward_model.head.weight"),
        ),
        Trap(
            "Weights and bias are multiplied by std; the reward model divides.",
            (
                "reward_model.head.weight / reward_model.std",
                "reward_model.head.weight * reward_model.std",
            ),
            (
                "(reward_model.head.bias - reward_model.mean) / reward_model.std",
                "(reward_model.head.bias - reward_model.mean) * reward_model.std",
            ),
        ),
        Trap(
            "Critic and reward model share one trunk: when the critic learns, the "
            "judge changes its mind. Copy it.",
            ("copy.deepcopy(reward_model.trunk)", "reward_model.trunk"),
        ),
        Trap(
            "The pooling is fixed. The critic needs the reward model's, or the spread "
            "of its values is another one.",
            ("reward_model.pooling", '"last"'),
        ),
        Trap(
            "The mean is forgotten: the critic starts off by mean / std everywhere.",
            (
                "(reward_model.head.bias - reward_model.mean) / reward_model.std",
                "reward_model.head.bias / reward_model.std",
            ),
        ),
    ),
    twins=(Twin(start_by_state), Twin(start_by_copy)),
    equivalent={},
)

# --- 11.5 minibatches ---------------------------------------------------------------


def numbered(n: int) -> Rollout:
    """n answers that differ in every field; the score is the row's number."""
    rows = torch.arange(n)
    wide = rows[:, None].expand(n, 2)
    mask = torch.ones(n, 2, dtype=torch.bool)
    number = 1.0 * wide
    old, before = number - 10.0, number + 10.0
    return Rollout(
        prompts=wide,
        prompt_mask=mask,
        responses=wide + 100,
        mask=mask,
        logprobs=old,
        ref_logprobs=before,
        scores=rows.float(),
        values=number,
        advantages=number + 20.0,
        returns=number + 30.0,
    )


def minibatch_cases(seed: int) -> list[Case]:
    return [
        Case("the example of the docstring", 5, 2, 2, seed),
        Case("three epochs of 12 answers", 12, 4, 3, seed + 10),
        Case("a smaller last one", 11, 4, 3, seed + 20),
        Case("all answers at once", 9, 9, 2, seed + 30),
        Case("more room than answers", 8, 99, 2, seed + 40),
        Case("one epoch", 10, 5, 1, seed + 50),
    ]


def run_minibatches(
    candidate: Candidate, n: int, size: int, epochs: int, seed: int
) -> dict[str, object]:
    """What can be seen of it, whatever the order is that it draws."""
    config = PPOConfig(
        iterations=1,
        batch_size=n,
        minibatch_size=size,
        epochs=epochs,
        policy_lr=0.1,
        value_lr=0.1,
    )

    left_alone: list[bool] = []

    def draw(state: int, ambient: int = 0) -> list[Rollout]:
        torch.manual_seed(ambient)
        before = torch.get_rng_state()
        generator = torch.Generator().manual_seed(state)
        parts = list(candidate(numbered(n), config, generator))
        left_alone.append(torch.equal(torch.get_rng_state(), before))
        return parts

    parts = draw(seed)
    flat = [int(one) for part in parts for one in part.scores]
    orders = [flat[k : k + n] for k in range(0, len(flat), n)]
    again, other = draw(seed, ambient=1), draw(seed + 1)
    return {
        "answers in each part": [len(part) for part in parts],
        "answers of each epoch": [sorted(order) for order in orders],
        "orders": len({tuple(order) for order in [*orders, list(range(n))]}),
        "whole answers": all(
            torch.equal(getattr(part, name), getattr(numbered(n)[rows], name))
            for part in parts
            for rows in [part.scores.long()]
            for name in vars(part)
        ),
        "the same generator, the same orders": [p.scores.tolist() for p in again]
        == [p.scores.tolist() for p in parts],
        "another generator, other orders": [p.scores.tolist() for p in other]
        != [p.scores.tolist() for p in parts],
        "torch's own random state is left alone": all(left_alone),
    }


def minibatches_oracle(n: int, size: int, epochs: int, seed: int) -> dict[str, object]:
    sizes = [min(size, n - start) for start in range(0, n, size)]
    return {
        "answers in each part": sizes * epochs,
        "answers of each epoch": [list(range(n))] * epochs,
        "orders": epochs + 1,
        "whole answers": True,
        "the same generator, the same orders": True,
        "another generator, other orders": True,
        "torch's own random state is left alone": True,
    }


def minibatches_by_sorting(rollout, config, generator):
    """Draw a number for each answer and sort by it."""
    parts = []
    for _ in range(config.epochs):
        order = torch.rand(len(rollout), generator=generator).argsort()
        for start in range(0, len(order), config.minibatch_size):
            parts.append(rollout[order[start : start + config.minibatch_size]])
    return parts


def minibatches_by_drawing(rollout, config, generator):
    """Draw answers without replacement, as from a hat."""
    for _ in range(config.epochs):
        hat = torch.ones(len(rollout))
        order = torch.multinomial(hat, len(hat), generator=generator)
        while len(order):
            yield rollout[order[: config.minibatch_size]]
            order = order[config.minibatch_size :]


MINIBATCHES = Exercise(
    id="11.5",
    answer=minibatches,
    why="Sampling answers is the dearest part of PPO: each is used several times, and "
    "none more often than the others.",
    difficulty=2,
    importance=3,
    minutes=6,
    hints=(
        "If the same answers always shared a minibatch, what would one epoch see that "
        "the next does not?",
        "For each epoch a permutation of the $N$ rows, cut into parts.",
        "`order = torch.randperm(len(rollout), generator=generator)`",
    ),
    bonus="Sort the answers by length before cutting, then shuffle the parts. How much "
    "padding is saved, and what is lost?",
    cases=minibatch_cases,
    run=run_minibatches,
    oracle=minibatches_oracle,
    changes_inputs=True,
    traps=(
        Trap(
            "All epochs go through the answers in the same order: draw a new one for "
            "each epoch.",
            (
                "    for _ in range(config.epochs):\n"
                "        order = torch.randperm(len(rollout), generator=generator)\n",
                "    order = torch.randperm(len(rollout), generator=generator)\n"
                "    for _ in range(config.epochs):\n",
            ),
        ),
        Trap(
            "The answers come in the order in which they were given, unshuffled.",
            (
                "torch.randperm(len(rollout), generator=generator)",
                "torch.arange(len(rollout))",
            ),
        ),
        Trap(
            "Answers are drawn with replacement: some are seen twice in an epoch, "
            "others never.",
            (
                "torch.randperm(len(rollout), generator=generator)",
                "torch.randint(len(rollout), (len(rollout),), generator=generator)",
            ),
        ),
        Trap(
            "An epoch's smaller last part is dropped: its answers were paid for, use "
            "them.",
            (
                "        for rows in order.split(config.minibatch_size):\n",
                "        for rows in order.split(config.minibatch_size):\n"
                "            if len(rows) < config.minibatch_size:\n"
                "                continue\n",
            ),
        ),
        Trap(
            "One epoch only: `config.epochs` says how often each answer is used.",
            ("range(config.epochs)", "range(1)"),
        ),
        Trap(
            "The order comes from torch's global generator, not from `generator`: a "
            "run that is resumed would go another way.",
            (
                "torch.randperm(len(rollout), generator=generator)",
                "torch.randperm(len(rollout))",
            ),
        ),
        Trap(
            "torch.manual_seed sets the global random state, and all that is drawn "
            "elsewhere changes with it. Hand `generator` to randperm.",
            (
                "        order = torch.randperm(len(rollout), generator=generator)\n",
                "        seed = torch.randint(1 << 30, (1,), generator=generator)\n"
                "        torch.manual_seed(int(seed))\n"
                "        order = torch.randperm(len(rollout))\n",
            ),
        ),
        Trap(
            "`minibatch_size` is the number of answers in a part, not the number of "
            "parts.",
            (
                "order.split(config.minibatch_size)",
                "order.chunk(config.minibatch_size)",
            ),
        ),
        Trap(
            "All epochs are shuffled together: an answer may come twice before another "
            "has come once.",
            (
                "    for _ in range(config.epochs):\n"
                "        order = torch.randperm(len(rollout), generator=generator)\n",
                "    every = torch.arange(len(rollout)).repeat(config.epochs)\n"
                "    order = torch.randperm(len(every), generator=generator)\n"
                "    for order in every[order].split(len(rollout)):\n",
            ),
        ),
    ),
    twins=(Twin(minibatches_by_sorting), Twin(minibatches_by_drawing)),
    equivalent={},
)

# --- 11.6 ppo_update ----------------------------------------------------------------

V, T = 7, 4  # words, tokens of the longest answer


class Table(PaLM):
    """A language model that knows the last token only: a table of logits."""

    def __init__(self, table: Tensor) -> None:
        nn.Module.__init__(self)
        self.table = nn.Parameter(table)

    def hidden(self, ids, segments=None, positions=None, cache=None, last=None):
        return F.one_hot(ids[:, -last:], V).float()

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden @ self.table


class Guess(Critic):
    """A critic that knows the last token only."""

    def __init__(self, table: Tensor) -> None:
        nn.Module.__init__(self)
        self.table = nn.Parameter(table)

    def forward(
        self, prompts: Tensor, prompt_mask: Tensor, responses: Tensor, mask: Tensor
    ) -> Tensor:
        return self.table[before(prompts, responses)]


def before(prompts: Tensor, responses: Tensor) -> Tensor:
    """The token that stands before each token of an answer."""
    return torch.cat([prompts[:, -1:], responses[:, :-1]], 1)


@dataclass
class World:
    """A policy and a critic small enough to follow by hand, and what they work on.

    lengths: of the answers; equal: whether all answers are one and the same, so that
    their order cannot matter; away: how far the sampler is from the policy; bandit:
    whether answers are all words, each once, with word 3 the good one.
    """

    seed: int
    lengths: list[int]
    lr: float = 0.5
    equal: bool = False
    away: float = 0.0
    bandit: bool = False

    def tables(self) -> tuple[Tensor, Tensor]:
        draw = torch.Generator().manual_seed(self.seed)
        return torch.randn(V, V, generator=draw), torch.randn(V, generator=draw)

    def rollout(self, table: Tensor, guess: Tensor) -> Rollout:
        """Answers with what this policy and this critic think of them now."""
        draw = torch.Generator().manual_seed(self.seed + 1)
        B = len(self.lengths)
        prompts = torch.zeros(B, 2, dtype=torch.long)
        responses = torch.randint(V, (B, T), generator=draw)
        numbers = torch.randn(3, B, T, generator=draw)
        mask = ragged(self.lengths, T)
        if self.equal:
            responses = responses[:1].expand(B, T)
            numbers = numbers[:, :1].expand(3, B, T)
        if self.bandit:
            responses = torch.arange(V)[:, None].expand(V, T)
            numbers = 2.5 * (responses == 3) - 0.4 + 0 * numbers
        advantages, returns = 2.0 * numbers[0], 3.0 * numbers[1]
        law = table.detach()[before(prompts, responses)].log_softmax(-1)
        logprobs = law.gather(-1, responses[..., None])[..., 0]
        logprobs = torch.where(mask, logprobs + self.away * numbers[2], 0.0)
        values = torch.where(mask, guess.detach()[before(prompts, responses)], 0.0)
        seen = torch.ones(B, 2, dtype=torch.bool)
        answers = prompts, seen, responses, mask, logprobs, logprobs
        return Rollout(*answers, returns[:, 0], values, advantages, returns)


class Counting(torch.optim.SGD):
    """An optimizer that counts its steps."""

    steps = 0

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        super().step(closure)
        self.steps += 1


def a_config(epochs: int, size: int, **other: float | None) -> PPOConfig:
    return PPOConfig(
        iterations=1,
        batch_size=size,
        minibatch_size=size,
        epochs=epochs,
        policy_lr=0.1,
        value_lr=0.1,
        **{"grad_clip": 1.0, **other},  # type: ignore[arg-type]
    )


def update_cases(seed: int) -> list[Case]:
    ragged_world = [4, 2, 3, 1, 4]

    def world(lengths: list[int], **other: float) -> World:
        return World(10 * seed, lengths, **other)  # type: ignore[arg-type]

    equal = [3] * 6
    stop = a_config(4, 6, stop_kl=0.02)
    refuse = a_config(3, 5, stop_kl=0.0)
    go_on = a_config(1, 6)
    return [
        Case("one step", world(ragged_world), [a_config(1, 5)]),
        Case("three epochs", world(ragged_world), [a_config(3, 5, entropy_coef=0.1)]),
        Case("parts of two", world(ragged_world), [a_config(2, 5, micro_batch=2)]),
        Case("three minibatches", world(equal, equal=True), [a_config(2, 2)]),
        Case("a smaller last one", world(equal[:5], equal=True), [a_config(2, 2)]),
        Case("a tight clip", world(equal, equal=True), [a_config(2, 3, grad_clip=0.1)]),
        Case("too far, then again", world(equal, lr=2.0, equal=True), [stop, go_on]),
        Case(
            "refused at once", world(ragged_world, away=0.5), [refuse, a_config(1, 5)]
        ),
        Case("a bandit", world([1] * V, bandit=True), 6 * [a_config(2, V)]),
    ]


def run_update(
    candidate: Candidate, world: World, configs: list[PPOConfig]
) -> dict[str, object]:
    """An update for each config, of the same two networks; what is left of them."""
    table, guess = world.tables()
    policy, critic = Table(table), Guess(guess)
    optimizers = [Counting(m.parameters(), lr=world.lr) for m in (policy, critic)]
    generator = torch.Generator().manual_seed(world.seed)
    stats = []
    for config in configs:
        rollout = world.rollout(policy.table, critic.table)
        told = candidate(policy, critic, rollout, *optimizers, config, generator)
        stats.append({one.name: getattr(told, one.name) for one in fields(PPOStats)})
    return {
        "steps of the optimizers": [one.steps for one in optimizers],
        "chance of word 3": policy.table[0].softmax(0)[3].item(),
        "the policy": policy.table.detach().clone(),
        "the critic": critic.table.detach().clone(),
        "stats": stats,
    }


def losses_by_hand(
    table: Tensor, guess: Tensor, some: Rollout, config: PPOConfig
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Both losses of some answers, and the stats, token by token."""
    n = int(some.mask.sum())
    objective, error = torch.zeros(()), torch.zeros(())
    told = dict.fromkeys(("policy_loss", "ratio", "clip_fraction", "approx_kl"), 0.0)
    last = before(some.prompts, some.responses)
    for b, t in some.mask.nonzero().tolist():
        word, context, a = some.responses[b, t], last[b, t], some.advantages[b, t]
        law = table[context].softmax(0)
        ratio = law[word] / some.logprobs[b, t].exp()
        low, high = 1 - config.clip, 1 + config.clip
        held = (
            ratio.detach().clamp(low, high) if (ratio < low or ratio > high) else ratio
        )
        gain = ratio * a if float(ratio * a) <= float(held * a) else held * a
        objective = objective - gain / n
        objective = objective + config.entropy_coef * (law * law.log()).sum() / n
        value, wanted, old = guess[context], some.returns[b, t], some.values[b, t]
        near = value.clamp(old - config.value_clip, old + config.value_clip)
        far = (value - wanted).abs() >= (near - wanted).abs()
        error = error + ((value if far else near) - wanted) ** 2 / 2 / n
        told["policy_loss"] -= gain.item() / n
        told["ratio"] += ratio.item() / n
        told["clip_fraction"] += (abs(ratio.item() - 1) > config.clip) / n
        told["approx_kl"] += (ratio - 1 - ratio.log()).item() / n
    return objective, error, told | {"value_loss": error.item()}


def update_oracle(world: World, configs: list[PPOConfig]) -> dict[str, object]:
    """Gradient descent with plain arithmetic; no optimizer, no module."""
    table, guess = (x.requires_grad_(True) for x in world.tables())
    stats, steps = [], 0
    for config in configs:
        rollout, done, refused = world.rollout(table, guess), [], False
        for _ in range(config.epochs):
            for start in range(0, len(rollout), config.minibatch_size):
                if refused:
                    continue
                some = rollout[slice(start, start + config.minibatch_size)]
                objective, error, told = losses_by_hand(table, guess, some, config)
                done.append(told)
                told |= {"policy_grad_norm": 0.0, "value_grad_norm": 0.0, "steps": 0}
                refused = config.stop_kl is not None and (
                    told["approx_kl"] > config.stop_kl
                )
                if refused:
                    continue
                told["steps"], steps = 1, steps + 1
                for name, loss, x in (
                    ("policy", objective, table),
                    ("value", error, guess),
                ):
                    [slope] = torch.autograd.grad(loss, x)
                    norm = slope.square().sum().sqrt().item()
                    told[f"{name}_grad_norm"] = norm
                    shorter = min(1.0, config.grad_clip / (norm + 1e-6))
                    with torch.no_grad():
                        x -= world.lr * shorter * slope
        whole = {name: sum(one[name] for one in done) for name in done[0]}
        means = {name: total / len(done) for name, total in whole.items()}
        stats.append(
            {one.name: means[one.name] for one in fields(PPOStats)}
            | {"steps": int(whole["steps"])}
        )
    return {
        "steps of the optimizers": [steps, steps],
        "chance of word 3": table[0].softmax(0)[3].item(),
        "the policy": table.detach().clone(),
        "the critic": guess.detach().clone(),
        "stats": stats,
    }


def update_zeroing_first(
    policy, critic, rollout, policy_optimizer, critic_optimizer, config, generator
):
    """Zero before each minibatch instead of after; one way out."""
    from minipalm.rlhf.ppo import mean_stats, minibatch_gradients

    done = []
    for batch in minibatches(rollout, config, generator):
        policy_optimizer.zero_grad()
        critic_optimizer.zero_grad()
        one = PPOStats()
        rows = torch.arange(len(batch)).split(config.micro_batch or len(batch))
        for some in rows:
            tokens = batch.mask.sum()
            minibatch_gradients(policy, critic, batch[some], tokens, config, one)
        done.append(one)
        if one.approx_kl > (float("inf") if config.stop_kl is None else config.stop_kl):
            break
        clip = nn.utils.clip_grad_norm_
        one.policy_grad_norm = float(clip(policy.parameters(), config.grad_clip))
        one.value_grad_norm = float(clip(critic.parameters(), config.grad_clip))
        policy_optimizer.step()
        critic_optimizer.step()
        one.steps = 1
    policy_optimizer.zero_grad()
    critic_optimizer.zero_grad()
    return mean_stats(done)


def update_by_networks(
    policy, critic, rollout, policy_optimizer, critic_optimizer, config, generator
):
    """The same for each network, by hand; a flag instead of a break."""
    from minipalm.rlhf.ppo import mean_stats, minibatch_gradients

    done, going = [], True
    networks = {
        "policy": (policy, policy_optimizer),
        "value": (critic, critic_optimizer),
    }
    for batch in minibatches(rollout, config, generator):
        if not going:
            continue
        one = PPOStats(steps=1)
        size = config.micro_batch if config.micro_batch > 0 else len(batch)
        start = 0
        while start < len(batch):
            rows = slice(start, start + size)
            total = batch.mask.sum()
            minibatch_gradients(policy, critic, batch[rows], total, config, one)
            start += size
        going = config.stop_kl is None or one.approx_kl <= config.stop_kl
        one.steps = int(going)
        for name, (network, optimizer) in networks.items():
            weights = list(network.parameters())
            norm = torch.stack([w.grad.norm() for w in weights]).norm()
            if going:
                for weight in weights:
                    weight.grad *= (config.grad_clip / (norm + 1e-6)).clamp(max=1)
                setattr(one, f"{name}_grad_norm", norm.item())
                optimizer.step()
            for weight in weights:
                weight.grad = None
        done.append(one)
    return mean_stats(done)


STEP = (
    "        for optimizer in (policy_optimizer, critic_optimizer):\n"
    "            optimizer.step()\n"
    "            optimizer.zero_grad()\n"
)
STOP = (
    "        if config.stop_kl is not None and stats.approx_kl > config.stop_kl:\n"
    "            stats.steps = 0\n"
    "            policy_optimizer.zero_grad()\n"
    "            critic_optimizer.zero_grad()\n"
    "            break\n"
)
CLIP = (
    "        norm = clip_grad_norm_(policy.parameters(), config.grad_clip)\n"
    "        stats.policy_grad_norm = norm.item()\n"
    "        norm = clip_grad_norm_(critic.parameters(), config.grad_clip)\n"
    "        stats.value_grad_norm = norm.item()\n"
)
LOOP = "    for batch in minibatches(rollout, config, generator):\n"

PPO_UPDATE = Exercise(
    id="11.6",
    answer=ppo_update,
    why="The loop where most implementations go wrong without any error: count its "
    "steps, clip each network, stop in time.",
    difficulty=4,
    importance=5,
    minutes=18,
    hints=(
        "What must be true of the gradients when a minibatch begins, and what of the "
        "ratio in the first of all steps?",
        "For each minibatch: gradients of its parts → stop? → clip policy, clip "
        "critic → both step → zero both.",
        "`for batch in minibatches(rollout, config, generator):`",
    ),
    bonus="Print `stats.ratio` of the first minibatch. It is 1: why? Then sample at "
    "temperature 0.7 and leave config.temperature at 1: what is it now?",
    cases=update_cases,
    run=run_update,
    oracle=update_oracle,
    changes_inputs=True,
    traps=(
        Trap(
            "One step an update: the optimizers must step after *every* minibatch, "
            "epochs × minibatches times.",
            (STEP, ""),
            (
                "    return mean_stats(done)",
                STEP.replace("\n    ", "\n")[4:] + "    return mean_stats(done)",
            ),
        ),
        Trap(
            "Gradients are never set back to zero: every step repeats all the steps "
            "before it.",
            (STEP, STEP.replace("            optimizer.zero_grad()\n", "")),
        ),
        Trap(
            "Both networks are clipped as one: a critic that is far off, as at the "
            "start, then all but stops the policy. Clip each by its own norm.",
            (
                CLIP,
                "        both = [*policy.parameters(), *critic.parameters()]\n"
                "        norm = clip_grad_norm_(both, config.grad_clip)\n"
                "        stats.policy_grad_norm = norm.item()\n"
                "        stats.value_grad_norm = norm.item()\n",
            ),
        ),
        Trap(
            "The gradients are not clipped before the step: `config.grad_clip` is the "
            "largest norm that each network's may have.",
            (
                "clip_grad_norm_(policy.parameters(), config.grad_clip)",
                'clip_grad_norm_(policy.parameters(), float("inf"))',
            ),
            (
                "clip_grad_norm_(critic.parameters(), config.grad_clip)",
                'clip_grad_norm_(critic.parameters(), float("inf"))',
            ),
        ),
        Trap(
            "The step that has gone too far is applied all the same: look at approx_kl "
            "*before* the optimizers step.",
            (STOP, ""),
            (STEP, STEP + STOP),
        ),
        Trap(
            "One step is refused and the next ones go on: the first minibatch beyond "
            "`stop_kl` ends the whole update.",
            (STOP, STOP.replace("break", "continue")),
        ),
        Trap(
            "`stop_kl` is not looked at: where it is given and exceeded, the update "
            "ends.",
            (STOP, ""),
        ),
        Trap(
            "The refused step's gradients stay behind and go into the next update: "
            "zero them, too.",
            (
                STOP,
                "".join(
                    line for line in STOP.splitlines(True) if "zero_grad" not in line
                ),
            ),
        ),
        Trap(
            "A refused step is counted among the steps: it was not done, so its steps "
            "are 0.",
            ("            stats.steps = 0\n", ""),
        ),
        Trap(
            "The refused minibatch is missing in the stats: its approx_kl is the "
            "reason why the update ended, so it belongs into the log.",
            ("        done.append(stats)\n", ""),
            (STEP, STEP + "        done.append(stats)\n"),
            (
                "    return mean_stats(done)",
                "    return mean_stats(done) if done else PPOStats()",
            ),
        ),
        Trap(
            "Each part is averaged over its own tokens, so parts of short answers "
            "weigh more: `total` is the token count of the whole minibatch.",
            ("micro, total, config", "micro, micro.mask.sum(), config"),
        ),
        Trap(
            "The critic never steps: both optimizers must.",
            ("(policy_optimizer, critic_optimizer)", "(policy_optimizer,)"),
        ),
        Trap(
            "The policy never steps: both optimizers must.",
            ("(policy_optimizer, critic_optimizer)", "(critic_optimizer,)"),
        ),
        Trap(
            "The epochs are counted twice: `minibatches` goes through all of them by "
            "itself.",
            (
                LOOP,
                "    import itertools\n"
                "    for batch in itertools.chain.from_iterable(\n"
                "        minibatches(rollout, config, generator)\n"
                "        for _ in range(config.epochs)\n"
                "    ):\n",
            ),
        ),
        Trap(
            "The old log-probabilities are computed anew for each minibatch, so the "
            "ratio is always 1 and nothing is ever clipped. They stay those of the "
            "sampler.",
            (
                "            minibatch_gradients(",
                "            import dataclasses\n"
                "            with torch.no_grad():\n"
                "                logits = response_logits(policy, *micro.tokens)\n"
                "                now = token_logprobs(logits, micro.responses)\n"
                "            micro = dataclasses.replace(micro, logprobs=now)\n"
                "            minibatch_gradients(",
            ),
        ),
        Trap(
            "The logged norms are those after clipping, which are never above the "
            "limit: log what `clip_grad_norm_` gives back.",
            (
                "stats.policy_grad_norm = norm.item()",
                "stats.policy_grad_norm = min(norm.item(), config.grad_clip)",
            ),
            (
                "stats.value_grad_norm = norm.item()",
                "stats.value_grad_norm = min(norm.item(), config.grad_clip)",
            ),
        ),
        Trap(
            "Only the first part of each minibatch is used: `micro_batch` cuts it into "
            "parts, and the gradients of all of them add up.",
            ("range(0, len(batch), config.micro_batch or len(batch))", "range(1)"),
        ),
    ),
    twins=(Twin(update_zeroing_first), Twin(update_by_networks)),
    equivalent={
        "stats.approx_kl > config.stop_kl → stats.approx_kl >= config.stop_kl": (
            "two sums of float32 that are exactly equal do not occur"
        ),
    },
)

EXERCISES = (POLICY_LOSS, VALUE_LOSS, CRITIC, START, MINIBATCHES, PPO_UPDATE)

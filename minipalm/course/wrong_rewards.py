"""Reward models that are wrong in ways we choose: what lesson 13 lets PPO run against.

All of a seed's reward models learn from the same answers of the same SFT policy. What
differs is how many comparisons they see, how large they are, how often the labeller
errs, and whether he likes length.
"""

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from random import Random

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minipalm.config import TOY, PaLMConfig, PPOConfig, Preset
from minipalm.course.methods import make_base
from minipalm.data.batches import pad_left, prompt_ids, response_ids
from minipalm.data.datasets import read_demonstrations, read_prompts
from minipalm.data.gold import gold_reward, label_pair
from minipalm.data.tokenizer import Tokenizer
from minipalm.evaluate.length import within
from minipalm.model.palm import PaLM
from minipalm.rlhf.answers import Answers, answer
from minipalm.rlhf.pairs import Pairs, pairs_of
from minipalm.rlhf.reward import RewardModel
from minipalm.rlhf.sft import pack_examples
from minipalm.train.networks import load_policy, load_trunk, tokenizer_of
from minipalm.train.reward_model import train_reward_model
from minipalm.train.run import Run
from minipalm.train.sft import train_sft

# half the speed: the way is what we look at
PPO = replace(TOY.ppo, policy_lr=7e-4, iterations=40)
BEST_OF = 256  # answers to a prompt, for best of n
ASKED = 64  # prompts of best of n
NARROW = 16  # width of the smallest trunk; the others are those of the pipeline


@dataclass(frozen=True)
class Recipe:
    """How a reward model comes about."""

    pairs: int = 4000  # comparisons that it sees
    width: int = 32  # D of its trunk: 16, 32, or 48 as the policy
    flipped: float = 0.0  # share of labels that are turned round, besides the usual
    # slips of the labeller
    per_token: float = 0.0  # points of gold that the labeller gives away for a token
    within: int | None = None  # only pairs whose lengths differ by so much, or less
    member: int = 0  # member k of an ensemble: the next `pairs` comparisons
    half: int = 0  # 1: of the other comparisons, which no policy is paid by

    @property
    def name(self) -> str:
        """Names its folder: what differs from a plain one."""
        plain = asdict(Recipe())
        odd = {k: v for k, v in asdict(self).items() if v != plain[k]}
        return "-".join(f"{k}{v}" for k, v in odd.items()) or "plain"


@dataclass(frozen=True)
class World:
    """What all runs of a seed begin with. Nobody may change it.

    Attributes:
        trunks: fine-tuned language models by their width, to make reward models of.
        prompts, prompt_mask: of all prompts, left-padded; texts are the same.
        ppo: of every run, but for the penalty.
        comparisons: how many; the first half is for policies, the other for judges.
        least_steps: of a reward model's training, however few its pairs.
        folder: where runs are kept.
        made: reward models that are there already.
    """

    seed: int
    preset: Preset
    tokenizer: Tokenizer
    sft: PaLM
    trunks: dict[int, PaLM]
    texts: list[str]
    prompts: Int[Tensor, "N P"]
    prompt_mask: Bool[Tensor, "N P"]
    ppo: PPOConfig
    comparisons: int
    least_steps: int
    folder: Path
    made: dict[Recipe, RewardModel] = field(default_factory=dict)

    def ask(self, policy: PaLM, texts: Sequence[str], seed: int) -> Answers:
        return answer(
            policy,
            self.tokenizer,
            texts,
            max_prompt=self.preset.max_prompt,
            max_response=self.preset.max_response,
            generator=torch.Generator().manual_seed(seed),
        )

    def draw(self, number: int, seed: int) -> list[str]:
        """Prompts, with replacement."""
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randint(len(self.texts), (number,), generator=generator)
        return [self.texts[row] for row in rows]

    @cached_property
    def compared(self) -> tuple[Answers, Answers]:
        """Two answers of SFT to each of many prompts, before anybody labels them."""
        texts = self.draw(self.comparisons, self.seed)
        return self.ask(self.sft, texts, 2), self.ask(self.sft, texts, 3)

    @cached_property
    def golds(self) -> Float[Tensor, "2 N"]:
        """What the compared answers are worth, which only labellers know."""
        return torch.stack([gold_totals(answers) for answers in self.compared])

    @cached_property
    def sft_golds(self) -> dict[str, list[float]]:
        """The gold rewards of SFT's answers to each prompt."""
        found: dict[str, list[float]] = {}
        for answers, golds in zip(self.compared, self.golds.tolist()):
            for prompt, gold in zip(answers.prompts, golds):
                found.setdefault(prompt, []).append(gold)
        return found

    @cached_property
    def usual(self) -> Answers:
        """Answers of SFT that set each reward model's scale: mean 0, deviation 1."""
        return self.ask(self.sft, self.draw(1024, self.seed + 1), 4)

    @cached_property
    def many(self) -> Answers:
        """BEST_OF answers of SFT to each of ASKED prompts, prompt after prompt."""
        texts = self.draw(ASKED, self.seed + 2)
        return self.ask(self.sft, [text for text in texts for _ in range(BEST_OF)], 5)


def gold_totals(answers: Answers) -> Float[Tensor, "N"]:
    """The gold reward of each answer."""
    told = zip(answers.prompts, answers.texts, answers.finished, strict=True)
    return torch.tensor([gold_reward(*one) for one in told])


def lengths_of(answers: Answers) -> Int[Tensor, "N"]:
    """Tokens of each answer."""
    return answers.tokens[3].sum(1)


def labels(
    golds: Float[Tensor, "2 N"], lengths: Int[Tensor, "2 N"], recipe: Recipe, seed: int
) -> list[bool]:
    """Whether the labeller prefers the first answer of each pair.

    Args:
        golds, lengths: of both answers.
        recipe: `per_token` and `flipped` are read.
        seed: of the labeller's slips.
    """
    rng = Random(seed)
    liked = (golds + recipe.per_token * lengths).T.tolist()
    said = [label_pair(a, b, rng) for a, b in liked]
    return [won != (rng.random() < recipe.flipped) for won in said]


def pairs_for(world: World, recipe: Recipe) -> Pairs:
    """The comparisons that a reward model learns from."""
    first, second = world.compared
    lengths = torch.stack([lengths_of(first), lengths_of(second)])
    said = labels(world.golds, lengths, recipe, world.seed)
    half = world.comparisons // 2
    rows = torch.arange(recipe.half * half, (recipe.half + 1) * half)
    if recipe.within is not None:
        one, other = lengths[:, rows]
        rows = rows[within(one, other, recipe.within)]
    rows = rows[recipe.member * recipe.pairs :][: recipe.pairs]
    return pairs_of(first, second, said)[rows]


def reward_model(world: World, recipe: Recipe) -> RewardModel:
    """Train it, or read what has been trained; SFT's answers give it its scale.

    Two epochs, but `world.least_steps` at least.
    """
    if recipe in world.made:
        return world.made[recipe]
    generator = torch.Generator().manual_seed(100 * world.seed + recipe.member)
    trunk = copy.deepcopy(world.trunks[recipe.width]).requires_grad_(True)
    model = RewardModel(trunk, world.preset.reward.pooling, generator)
    pairs = pairs_for(world, recipe)
    optim = world.preset.reward.optim
    steps = max(2 * len(pairs) // optim.batch_size, world.least_steps)
    optim = replace(optim, steps=steps)
    run = Run(world.folder / "reward" / recipe.name, pairs=len(pairs), **asdict(optim))
    config = replace(world.preset.reward, optim=optim)
    train_reward_model(model, pairs, config, run, 100 * world.seed + recipe.member)
    model.requires_grad_(False)
    model.fit_scale(scores_of(model, world.usual))
    world.made[recipe] = model
    return model


@torch.no_grad()
def scores_of(model: RewardModel, answers: Answers) -> Float[Tensor, "N"]:
    return torch.cat([model(*some) for some in answers.token_batches(256)])


def open_world(seed: int, out: Path) -> World:
    """What a seed's pipeline has made (see `methods.make_base`), and a small trunk."""
    make_base(seed, out)
    tokenizer = tokenizer_of(out)
    folder = out / "13_wrong_reward"
    sft = load_policy(out, "07_sft", TOY, tokenizer)
    trunk = load_trunk(out, "07_sft", TOY, tokenizer)
    small = PaLMConfig(
        tokenizer.vocab_size, dim=NARROW, depth=2, heads=1, head_dim=NARROW
    )
    narrow = PaLM(small, torch.Generator().manual_seed(seed))
    examples = [
        (prompt_ids(tokenizer, one.prompt), response_ids(tokenizer, one.response))
        for one in read_demonstrations(out / "data" / "demonstrations.jsonl")
    ]
    run = Run(folder / "narrow", seed=seed, **asdict(TOY.sft))
    train_sft(narrow, pack_examples(examples, TOY.window), TOY.sft, run, seed)
    texts = [one.prompt for one in read_prompts(out / "data" / "prompts.jsonl")]
    return World(
        seed,
        TOY,
        tokenizer,
        sft.requires_grad_(False),
        {
            one.config.dim: one.requires_grad_(False)
            for one in (narrow, trunk, copy.deepcopy(sft))
        },
        texts,
        *pad_left([prompt_ids(tokenizer, text) for text in texts], TOY.max_prompt),
        ppo=PPO,
        comparisons=8000,
        least_steps=60,
        folder=folder,
    )

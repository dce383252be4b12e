"""minipalm's side of every race, put together from the parts its own loops use."""

import copy
import itertools
from collections.abc import Iterable, Iterator

import torch

from bench import shapes
from bench.race import Side, Step, repeat
from minipalm.config import OptimConfig, PaLMConfig, PPOConfig
from minipalm.data.batches import pad_left, pad_right
from minipalm.model.generate import generate
from minipalm.model.palm import PaLM
from minipalm.rlhf.critic import critic_from_reward_model
from minipalm.rlhf.pairs import Pairs
from minipalm.rlhf.ppo import ppo_update
from minipalm.rlhf.reward import RewardModel, pairwise_loss, score_pairs
from minipalm.rlhf.rollout import collect
from minipalm.rlhf.sft import pack_examples, sft_loss
from minipalm.train.language_model import next_token_loss
from minipalm.train.optim import adamw, micro_batches, optimizer_step

NO_EOS = -1  # is never sampled: every answer has its full length, as on the other side
POOLING = "last"  # as TRL's networks have it
OPTIM = OptimConfig(
    steps=1_000,
    batch_size=shapes.TRAIN_ROWS,
    lr=1e-4,
    micro_batch=4,  # 1,024 tokens a backward pass: what they leave fits into the cache
)


def network() -> PaLM:
    config = PaLMConfig(
        shapes.VOCAB, shapes.DIM, shapes.DEPTH, shapes.HEADS, shapes.HEAD_DIM
    )
    return PaLM(config, torch.Generator().manual_seed(0))


def side(step: Step, model: torch.nn.Module) -> Side:
    return Side(repeat(step), sum(weight.numel() for weight in model.parameters()))


def batches(examples: list, size: int) -> Iterator[list]:
    """Consecutive batches, round and round."""
    starts: Iterable[int] = range(0, len(examples), size)
    return (examples[start : start + size] for start in itertools.cycle(starts))


def training_step() -> Side:
    """Forward, backward, clip, AdamW, as `train_language_model` does them."""
    model = network()
    optimizer = adamw(model)
    ids = shapes.token_rows(shapes.TRAIN_ROWS, shapes.TRAIN_TOKENS)
    total = ids[:, 1:].numel()

    def step() -> None:
        for part in micro_batches(torch.arange(len(ids)), OPTIM.micro_batch):
            next_token_loss(model, ids[part], total).backward()
        optimizer_step(model, optimizer, OPTIM, 100)

    return side(step, model)


def generation() -> Side:
    model = network()
    prompts = shapes.token_rows(shapes.SAMPLE_ROWS, shapes.PROMPT)
    mask = torch.ones_like(prompts, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        generate(
            model,
            prompts,
            mask,
            max_new_tokens=shapes.SAMPLE_TOKENS,
            eos_id=NO_EOS,
            generator=generator,
        )

    return side(step, model)


def ppo() -> Side:
    """Sample, score, and 16 steps of policy and critic."""
    policy, reward = network(), RewardModel(network(), POOLING)
    reference, critic = copy.deepcopy(policy), critic_from_reward_model(reward)
    optimizers = adamw(policy), adamw(critic)
    for group in (*optimizers[0].param_groups, *optimizers[1].param_groups):
        group["lr"] = 1e-6
    config = PPOConfig(
        iterations=1,
        batch_size=shapes.ROLLOUTS,
        minibatch_size=shapes.ROLLOUTS // shapes.MINIBATCHES,
        epochs=shapes.EPOCHS,
        policy_lr=1e-6,
        value_lr=1e-6,
    )
    prompts = shapes.token_rows(shapes.ROLLOUTS, shapes.PROMPT)
    mask = torch.ones_like(prompts, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        rollout = collect(
            policy,
            reference,
            critic,
            reward,
            prompts,
            mask,
            config=config,
            max_response=shapes.RESPONSE,
            eos_id=NO_EOS,
            kl_coef=0.05,
            generator=generator,
        )
        stats = ppo_update(policy, critic, rollout, *optimizers, config, generator)
        assert stats.steps == shapes.EPOCHS * shapes.MINIBATCHES

    return side(step, policy)


def length(example: shapes.Example) -> int:
    prompt, response = example
    return len(prompt) + len(response)


def sft_step(demonstrations: list[shapes.Example]) -> Side:
    """Pack the step's demonstrations into rows as wide as the longest; train."""
    model = network()
    optimizer = adamw(model)
    stream = batches(demonstrations, shapes.DEMONSTRATIONS)

    def step() -> None:
        longest_first = sorted(next(stream), key=length, reverse=True)
        rows = pack_examples(longest_first, length(longest_first[0]))
        sft_loss(model, rows).backward()
        optimizer_step(model, optimizer, OPTIM, 100)

    return side(step, model)


def reward_model_step(comparisons: list[shapes.Pair]) -> Side:
    """Score both answers of the step's pairs; train."""
    model = RewardModel(network(), POOLING)
    optimizer = adamw(model)
    stream = batches(comparisons, shapes.PAIRS)

    def step() -> None:
        pairs = as_pairs(next(stream))
        pairwise_loss(*score_pairs(model, pairs)).backward()
        optimizer_step(model, optimizer, OPTIM, 100)

    return side(step, model)


def as_pairs(batch: list[shapes.Pair]) -> Pairs:
    """Tensors no wider than this batch needs."""
    longest_prompt = max(len(pair.prompt) for pair in batch)
    longest = max(max(len(pair.chosen), len(pair.rejected)) for pair in batch)
    return Pairs(
        *pad_left([pair.prompt for pair in batch], longest_prompt),
        *pad_right([pair.chosen for pair in batch], longest),
        *pad_right([pair.rejected for pair in batch], longest),
    )

"""palm-rlhf-pytorch: the library that this course rebuilds."""

import warnings

import torch
from palm_rlhf_pytorch import PaLM, RewardModel, RLHFTrainer

from bench import shapes
from bench.race import Side, Step, repeat

warnings.filterwarnings("ignore", category=FutureWarning, module="torch.backends")


def network(flash: bool = False) -> PaLM:
    return PaLM(
        num_tokens=shapes.VOCAB,
        dim=shapes.DIM,
        depth=shapes.DEPTH,
        heads=shapes.HEADS,
        dim_head=shapes.HEAD_DIM,
        flash_attn=flash,
    )


def side(step: Step, model: torch.nn.Module) -> Side:
    return Side(repeat(step), sum(weight.numel() for weight in model.parameters()))


def training_step(flash: bool) -> Side:
    """It has no pretraining loop of its own to time: our optimizer, on its network."""
    model = network(flash)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids = shapes.token_rows(shapes.TRAIN_ROWS, shapes.TRAIN_TOKENS)

    def step() -> None:
        model(ids, return_loss=True).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return side(step, model)


def generation() -> Side:
    model = network()
    prompts = shapes.token_rows(shapes.SAMPLE_ROWS, shapes.PROMPT)

    def step() -> None:
        answers = model.generate(shapes.PROMPT + shapes.SAMPLE_TOKENS, prompts)
        assert answers.shape == (shapes.SAMPLE_ROWS, shapes.SAMPLE_TOKENS)

    return side(step, model)


def ppo() -> Side:
    """Its trainer, with its defaults: LoRA, and rollouts one at a time."""
    policy = network()
    parameters = sum(weight.numel() for weight in policy.parameters())  # LoRA adds some
    trainer = RLHFTrainer(
        palm=policy,
        reward_model=RewardModel(policy),
        prompt_token_ids=shapes.token_rows(shapes.ROLLOUTS, shapes.PROMPT),
        minibatch_size=shapes.ROLLOUTS // shapes.MINIBATCHES,
        epochs=shapes.EPOCHS,
    )

    def update() -> None:
        trainer.train(
            num_episodes=1,
            max_timesteps=shapes.ROLLOUTS,
            update_timesteps=shapes.ROLLOUTS,
            max_seq_len=shapes.PROMPT + shapes.RESPONSE,
        )

    return Side(repeat(update), parameters)

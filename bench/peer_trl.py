"""TRL: its trainers run their own loops, on Llama networks of our size.

Its settings are its defaults, but for three: bf16 and gradient checkpointing are off
(they are on by default, and would slow it down on a CPU), and the batches come in
order, so that both sides see the same ones.
"""

import tempfile
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    TrainerCallback,
)
from trl import RewardConfig, RewardTrainer, SFTConfig, SFTTrainer
from trl.experimental.ppo import PPOConfig, PPOTrainer

from bench import shapes
from bench.race import Loop, Side, Step


def config(**more: Any) -> LlamaConfig:
    """Parameters as ours, but for a second norm in each of its serial blocks."""
    return LlamaConfig(
        vocab_size=shapes.VOCAB,
        hidden_size=shapes.DIM,
        intermediate_size=4 * shapes.DIM,
        num_hidden_layers=shapes.DEPTH,
        num_attention_heads=shapes.HEADS,
        num_key_value_heads=1,
        head_dim=shapes.HEAD_DIM,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **more,
    )


def language_model() -> LlamaForCausalLM:
    return LlamaForCausalLM(config())


def scalar_model() -> LlamaForSequenceClassification:
    return LlamaForSequenceClassification(config(num_labels=1))


def tokenizer() -> PreTrainedTokenizerFast:
    """The trainers ask for one; the data are tokens already."""
    words = ["<pad>", "<bos>", "<eos>"]
    words += [f"w{i}" for i in range(shapes.FIRST_WORD, shapes.VOCAB)]
    word_level = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}))
    word_level.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=word_level,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        padding_side="left",
    )


def settings(**more: Any) -> dict[str, Any]:
    return {
        "output_dir": tempfile.mkdtemp(prefix="bench-trl-"),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **more,
    }


class AfterEachStep(TrainerCallback):
    """Calls a function after every step (in PPO: after every update)."""

    def __init__(self, after: Step) -> None:
        self.after = after

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.after()


def side(loop: Loop, model: torch.nn.Module) -> Side:
    return Side(loop, sum(weight.numel() for weight in model.parameters()))


def sft_step(demonstrations: list[shapes.Example]) -> Side:
    """Padded to the longest of the batch; head and loss on responses only."""
    model = language_model()
    rows = [
        {
            "input_ids": prompt + response,
            "completion_mask": [0] * len(prompt) + [1] * len(response),
        }
        for prompt, response in demonstrations
    ]

    def loop(steps: int, after: Step) -> None:
        SFTTrainer(
            model=model,
            args=SFTConfig(
                **settings(
                    max_steps=steps,
                    per_device_train_batch_size=shapes.DEMONSTRATIONS,
                    train_sampling_strategy="sequential",
                )
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer(),
            callbacks=[AfterEachStep(after)],
        ).train()

    return side(loop, model)


def reward_model_step(comparisons: list[shapes.Pair]) -> Side:
    """Padded to the longest of the batch's chosen and rejected answers."""
    model = scalar_model()
    rows = [
        {
            "chosen_ids": pair.prompt + pair.chosen,
            "rejected_ids": pair.prompt + pair.rejected,
        }
        for pair in comparisons
    ]

    def loop(steps: int, after: Step) -> None:
        RewardTrainer(
            model=model,
            args=RewardConfig(
                **settings(
                    max_steps=steps,
                    per_device_train_batch_size=shapes.PAIRS,
                    train_sampling_strategy="sequential",
                )
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer(),
            callbacks=[AfterEachStep(after)],
        ).train()

    return side(loop, model)


def ppo() -> Side:
    """Sample, score, and 16 steps of policy and critic, which it steps together."""
    policy = language_model()
    prompts = shapes.token_rows(shapes.ROLLOUTS, shapes.PROMPT)

    def loop(steps: int, after: Step) -> None:
        PPOTrainer(
            args=PPOConfig(
                **settings(
                    total_episodes=steps * shapes.ROLLOUTS,
                    per_device_train_batch_size=shapes.ROLLOUTS,
                    num_mini_batches=shapes.MINIBATCHES,
                    num_ppo_epochs=shapes.EPOCHS,
                    response_length=shapes.RESPONSE,
                    num_sample_generations=0,
                )
            ),
            processing_class=tokenizer(),
            model=policy,
            ref_model=None,  # it copies the policy
            reward_model=scalar_model(),
            value_model=scalar_model(),
            train_dataset=Dataset.from_list(
                [{"input_ids": row} for row in prompts.tolist()]
            ),
            callbacks=[AfterEachStep(after)],
        ).train()

    return side(loop, policy)

"""Run by test_trl.py in .venv-bench: TRL's own losses and advantages, on given inputs.

    python trl_peer.py IN OUT

IN holds tensors by name, OUT gets TRL's losses and their gradients. The losses are
methods of trainers; here they are called on a stand-in for one, with a stand-in for a
model that has given logits (DPO) or log-probabilities (RLOO, GRPO). The advantages are
not methods: they come from trainers that really sample and score, in their first step.
"""

import contextlib
import importlib
import sys
import tempfile
from collections import defaultdict
from importlib.machinery import ModuleSpec
from types import SimpleNamespace
from unittest.mock import MagicMock

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# TRL imports requests without asking for it; it is for a server that we do not use.
for name in ("requests", "requests.adapters", "urllib3.util.retry"):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        sys.modules[name] = MagicMock(__spec__=ModuleSpec(name, None))

from trl import (  # noqa: E402
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    RLOOConfig,
    RLOOTrainer,
)


class Accelerator(SimpleNamespace):
    """One process: nothing is to be gathered."""

    device = torch.device("cpu")
    num_processes = 1

    def gather(self, x):
        return x

    gather_for_metrics = gather

    def reduce(self, x, reduction):
        return x


def stand_in(**settings):
    return SimpleNamespace(
        accelerator=Accelerator(),
        model=SimpleNamespace(training=True, is_gradient_checkpointing=False),
        aux_loss_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        current_gradient_accumulation_steps=1,
        **settings,
    )


def dpo(given, beta):
    """TRL's loss of pairs, and its gradient with respect to the logits."""
    logits = given["logits"].clone().requires_grad_()

    def model(**_):
        return SimpleNamespace(logits=logits)

    def ref_model(**_):
        return SimpleNamespace(logits=given["ref_logits"].clone())

    trainer = stand_in(
        beta=beta,
        ref_model=ref_model,
        precompute_ref_logps=False,
        ld_alpha=None,
        f_divergence_type="reverse_kl",
        loss_types=["sigmoid"],
        loss_weights=[1.0],
        use_weighting=False,
        label_smoothing=0.0,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        _total_train_tokens=0,
    )
    inputs = {
        "input_ids": given["ids"],
        "attention_mask": torch.ones_like(given["ids"]),
        "completion_mask": given["completion_mask"],
    }
    loss = DPOTrainer._compute_loss(trainer, model, inputs, False)
    loss.backward()
    return {"loss": loss.detach(), "grad": logits.grad}


def token_loss(cls, given, **settings):
    """RLOO's or GRPO's loss, and its gradient with respect to the log-probabilities."""
    logprobs = given["logprobs"].clone().requires_grad_()
    mask = given["mask"].long()
    trainer = stand_in(
        epsilon_low=0.2,
        epsilon_high=0.2,
        _get_per_token_logps_and_entropies=lambda *_, **__: (
            logprobs,
            torch.zeros_like(logprobs),
            None,
        ),
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        use_vllm=False,
        _entropy_bonus_enabled=False,
        args=SimpleNamespace(
            delta=None, use_bias_correction_kl=False, steps_per_generation=1
        ),
        **settings,
    )
    inputs = {
        "prompt_ids": torch.ones(len(mask), 1, dtype=torch.long),
        "prompt_mask": torch.ones(len(mask), 1, dtype=torch.long),
        "completion_ids": torch.zeros_like(mask),
        "completion_mask": mask,
        "advantages": given["advantages"],
        "old_per_token_logps": given["old_logprobs"],
        "old_logps": (given["old_logprobs"] * mask).sum(1),
        "ref_per_token_logps": given["ref_logprobs"],
    }
    loss = cls._compute_loss(trainer, None, inputs)
    loss.backward()
    return {"loss": loss.detach(), "grad": logprobs.grad}


def tokenizer():
    words = ["<pad>", "<bos>", "<eos>", *(f"w{i}" for i in range(3, 12))]
    word_level = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}))
    word_level.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=word_level,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        padding_side="left",
    )


class Seen(Exception):
    """Enough is known: the trainer need not go on."""


def first_step(cls, config_class, **settings):
    """What a real trainer makes of its first answers: rewards and advantages."""
    torch.manual_seed(0)
    policy = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=12,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    torch.nn.init.normal_(policy.lm_head.weight)
    rewards, seen = [], {}

    def reward(completion_ids, **_):
        scores = [float(sum(ids) % 7) for ids in completion_ids]
        rewards.extend(scores)
        return scores

    class Watched(cls):
        def _compute_loss(self, model, inputs):
            seen.update({k: v for k, v in inputs.items() if torch.is_tensor(v)})
            raise Seen

    trainer = Watched(
        model=policy,
        reward_funcs=reward,
        args=config_class(
            output_dir=tempfile.mkdtemp(prefix="trl-"),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            max_steps=1,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=1,
            num_generations=4,
            max_completion_length=5,
            shuffle_dataset=False,
            **settings,
        ),
        train_dataset=Dataset.from_list([{"prompt": f"w{i} w{i}"} for i in (3, 4, 5)]),
        processing_class=tokenizer(),
    )
    # The batch that is trained on is in another order than the one that was scored.
    shuffled = sys.modules[cls.__module__]
    shuffled.shuffle_sequence_dict = lambda batch: batch
    with contextlib.suppress(Seen):
        trainer.train()
    return {
        "rewards": torch.tensor(rewards),
        "advantages": seen["advantages"],
        **{
            name: seen[name]
            for name in ("old_logps", "ref_per_token_logps", "completion_mask")
            if name in seen
        },
    }


def main(source, target):
    given = load_file(source)
    found = {
        "dpo": dpo(given, 0.3),
        "dpo_swapped": dpo(swapped(given), 0.3),
        "rloo": token_loss(RLOOTrainer, given),
        "grpo": token_loss(GRPOTrainer, given, beta=0.1, loss_type="grpo"),
        "dr_grpo": token_loss(
            GRPOTrainer,
            given,
            beta=0.1,
            loss_type="dr_grpo",
            max_completion_length=7,
        ),
        "rloo_step": first_step(RLOOTrainer, RLOOConfig, beta=0.0),
        "grpo_step": first_step(GRPOTrainer, GRPOConfig, beta=0.0),
        "dr_grpo_step": first_step(
            GRPOTrainer, GRPOConfig, beta=0.0, scale_rewards="none"
        ),
    }
    save_file(
        {
            f"{name}/{key}": value.contiguous()
            for name, one in found.items()
            for key, value in one.items()
        },
        target,
    )


def swapped(given):
    """The worse answers first: what a wrong label costs."""
    half = len(given["ids"]) // 2
    names = ("ids", "logits", "ref_logits", "completion_mask")
    return {name: given[name].roll(half, 0) for name in names}


if __name__ == "__main__":
    main(*sys.argv[1:])

# %% [markdown]
# # 11 · PPO
#
# You improve the policy. It answers, the reward model scores, and answers
# better than expected become more likely: a little at a time, and not too far
# from where it began.

# %% tags=["parameters"]
scale = "toy"
seed = 0
out = "runs/toy"
prompts = "data/prompts.jsonl"

# %%
import copy
import os
from collections.abc import Callable
from dataclasses import asdict, fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from minipalm import plot
from minipalm.config import PPOConfig, get_preset
from minipalm.course import ROOT
from minipalm.data.batches import pad_left, prompt_ids
from minipalm.data.datasets import check_prompt_lengths, read_prompts
from minipalm.data.files import fingerprint
from minipalm.data.tokenizer import load_tokenizer
from minipalm.evaluate.judge import gold_of
from minipalm.model.palm import PaLM
from minipalm.plot.surrogate import clipped_surrogate
from minipalm.rlhf.answers import answer, answers_of
from minipalm.rlhf.critic import Critic, critic_from_reward_model
from minipalm.rlhf.kl import KLController, k1, k3
from minipalm.rlhf.logprobs import (
    entropy,
    masked_mean,
    response_logits,
    token_logprobs,
)
from minipalm.rlhf.ppo import PPOStats, Total, minibatches
from minipalm.rlhf.reward import RewardModel
from minipalm.rlhf.rollout import Reward, Rollout, collect
from minipalm.train.optim import adamw, lr_scale, set_lr
from minipalm.train.ppo import rollout_metrics
from minipalm.train.run import Run, progress, read_metrics
from minipalm.train.stage import (
    finish_stage,
    finished_stage,
    load_result,
    result_fingerprint,
)

# %%
os.chdir(ROOT)  # paths are from the repository's folder
preset = get_preset(scale)
tokenizer = load_tokenizer(finished_stage(out, "06_palm") / "tokenizer.json")
config = replace(preset.policy, vocab_size=tokenizer.vocab_size)
trunk_config = replace(preset.reward_trunk, vocab_size=tokenizer.vocab_size)
reference = load_result(PaLM(config), out, "07_sft", "policy", tokenizer)
reward_model = load_result(
    RewardModel(PaLM(trunk_config), preset.reward.pooling),
    out,
    "08_reward_model",
    "reward_model",
    tokenizer,
)
reference.requires_grad_(False)
reward_model.requires_grad_(False)

# %%
records = read_prompts(prompts)
check_prompt_lengths(records, tokenizer, preset.max_prompt)
asked = [record.prompt for record in records]
ids, mask = pad_left(
    [prompt_ids(tokenizer, p) for p in asked], preset.max_prompt
)

# %% [markdown]
# ## Four networks
#
# The **policy** answers. The **reference** is the policy as it was, frozen:
# the KL is measured from it. The **reward model**, frozen too, scores whole
# answers. The **critic** guesses at every token what the score will be; it
# starts from the reward model's weights.
#
# ## What is maximised
#
# $$r_t = -\beta\,(\log \pi(y_t) - \log \pi_\text{ref}(y_t)) +
# \mathbb{1}[t = T]\,\text{score}$$

# %% tags=["define"]
from minipalm.rlhf.rollout import shape_rewards

# %% [markdown]
# ## The two losses
#
# $$L_\pi = -\min(\rho A,\ \text{clip}(\rho, 1-\epsilon, 1+\epsilon) A),
# \qquad \rho = \pi / \pi_\text{old}$$

# %% tags=["define"]
from minipalm.rlhf.ppo import policy_loss

# %% tags=["define"]
from minipalm.rlhf.ppo import value_loss

# %%
clipped_surrogate(policy_loss, preset.ppo.clip)

# %% [markdown]
# ## The update and the loop
#
# One batch of answers is used for several epochs of minibatches. The ratio ρ
# is 1 in the first step, and the clip holds it near 1 in the later ones.

# %% tags=["define"]
from minipalm.rlhf.ppo import minibatch_gradients, ppo_update

# %% tags=["define"]
from minipalm.train.ppo import train_ppo

# %% [markdown]
# ## Train
#
# β is the price of a nat. Where several are given, each gets a run of its own
# from the same start; the first is the one that you keep. With β = 0 nothing
# holds the policy near the reference: predict what that does to the reward
# model's score, and to the quality that it stands for.


# %%
def gold_metric(rollout: Rollout) -> dict[str, float]:
    """The mean gold reward of an iteration's answers, where there is one."""
    gold = gold_of(answers_of(rollout.tokens, tokenizer))
    if gold is None:
        return {}
    return {"gold": sum(parts.total for parts in gold) / len(gold)}


# %%
policies = {}
for kl_coef in preset.ppo.kl_coefs:
    name = f"beta-{kl_coef:g}"
    policies[name] = copy.deepcopy(reference).requires_grad_(True)
    critic = critic_from_reward_model(reward_model).requires_grad_(True)
    run = Run(
        f"{out}/11_ppo/{name}",
        seed=seed,
        kl_coef=kl_coef,
        policy=asdict(config),
        critic=asdict(trunk_config),
        ppo=asdict(preset.ppo),
        tokenizer=tokenizer.fingerprint,
        prompts=fingerprint(prompts),
        sizes=[preset.max_prompt, preset.max_response],
        start=[
            result_fingerprint(out, s) for s in ("07_sft", "08_reward_model")
        ],
    )
    train_ppo(
        policies[name],
        reference,
        critic,
        reward_model,
        ids,
        mask,
        preset.ppo,
        run,
        seed,
        kl_coef=kl_coef,
        max_response=preset.max_response,
        eos_id=tokenizer.eos_id,
        checkpoint_every=max(preset.checkpoint_every // 10, 1),
        measure=gold_metric,
    )

# %%
kept = next(iter(policies))
plot.ppo_dashboard(read_metrics(f"{out}/11_ppo/{kept}"))

# %% [markdown]
# ## Use it
#
# The same prompts, before and after.

# %%
few = asked[: 6 * 7 : 7]
for model, name in ((reference, "SFT"), (policies[kept], "PPO")):
    told = answer(
        model,
        tokenizer,
        few,
        max_prompt=preset.max_prompt,
        max_response=preset.max_response,
        generator=torch.Generator().manual_seed(seed),
    )
    for prompt, text in zip(few, told.texts, strict=True):
        print(f"{name}  {prompt} → {text}")

# %% [markdown]
# ## What changed
#
# The policy has learnt what raises the score. Whether its answers are better
# is another question: the score is a proxy. The next lesson asks somebody who
# knows.

# %%
finish_stage(
    out,
    "11_ppo",
    policies,
    tokenizer,
    scale=scale,
    seed=seed,
    kl_coefs=list(preset.ppo.kl_coefs),
)

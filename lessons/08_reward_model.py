# %% [markdown]
# # 08 · The reward model
#
# You turn comparisons into a score. Somebody looks at two answers of your policy and
# says which is better; a small network learns to give the better one the higher
# score. It is a proxy: PPO will optimise this number, not what the labeller meant.

# %% tags=["parameters"]
scale = "toy"
seed = 0
out = "runs/toy"
prompts = "data/prompts.jsonl"
preferences = ""  # your own comparisons, a JSON-lines file; "" asks the labeller

# %%
import math
import os
from dataclasses import asdict, replace
from random import Random

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from minipalm import plot
from minipalm.config import RewardConfig, get_preset
from minipalm.course import ROOT
from minipalm.data.datasets import (
    check_prompt_lengths,
    check_window,
    read_preferences,
    read_prompts,
)
from minipalm.data.files import fingerprint
from minipalm.data.gold import bayes_accuracy, gold_reward, label_pair
from minipalm.data.tokenizer import load_tokenizer
from minipalm.evaluate.statistics import (
    accuracy,
    expected_calibration_error,
    length_auc,
    reliability,
)
from minipalm.model.palm import PaLM, count_parameters
from minipalm.rlhf.answers import answer
from minipalm.rlhf.pairs import Pairs, encode_pairs, pairs_of
from minipalm.rlhf.reward import score_pairs
from minipalm.train.optim import adamw, batch_rows, micro_batches, optimizer_step
from minipalm.train.run import Run, progress, read_metrics
from minipalm.train.stage import finish_stage, finished_stage, load_result

# %%
os.chdir(ROOT)  # paths are from the repository's folder
preset = get_preset(scale)
tokenizer = load_tokenizer(finished_stage(out, "06_palm") / "tokenizer.json")
config = replace(preset.policy, vocab_size=tokenizer.vocab_size)
trunk_config = replace(preset.reward_trunk, vocab_size=tokenizer.vocab_size)
policy = load_result(PaLM(config), out, "07_sft", "policy", tokenizer)
trunk = load_result(PaLM(trunk_config), out, "07_sft", "trunk", tokenizer)
asked = read_prompts(prompts)
check_prompt_lengths(asked, tokenizer, preset.max_prompt)
sizes = {"max_prompt": preset.max_prompt, "max_response": preset.max_response}

# %% [markdown]
# ## Comparisons
#
# Both answers come from the policy itself, so the labels say something about the
# texts that PPO will begin with. The labeller here is a program that knows the gold
# reward and errs as people do: it prefers a with probability
# $\sigma((\text{gold}_a - \text{gold}_b) / 0.8)$.

# %%
generator = torch.Generator().manual_seed(seed)
number = preset.reward.pairs + preset.reward.heldout_pairs


def compare() -> tuple[Pairs, float | None]:
    """Comparisons, from a file or from the labeller, and the Bayes accuracy."""
    if preferences:
        records = read_preferences(preferences)
        check_window(records, tokenizer, preset.max_prompt + preset.max_response)
        return encode_pairs(records, tokenizer, **sizes), None
    rows = torch.randint(len(asked), (number,), generator=generator)
    drawn = [asked[row].prompt for row in rows]
    one = answer(policy, tokenizer, drawn, generator=generator, **sizes)
    two = answer(policy, tokenizer, drawn, generator=generator, **sizes)
    gold = [
        [gold_reward(*told) for told in zip(drawn, a.texts, a.finished, strict=True)]
        for a in (one, two)
    ]
    rng = Random(seed)
    labels = [label_pair(a, b, rng) for a, b in zip(*gold, strict=True)]
    for n in range(3):
        better, worse = (one, two) if labels[n] else (two, one)
        print(f"{drawn[n]}\n  + {better.texts[n]}\n  - {worse.texts[n]}")
    return pairs_of(one, two, labels), bayes_accuracy(*gold)


pairs, bayes = compare()

# %%
heldout_pairs = min(preset.reward.heldout_pairs, len(pairs) // 5)
train_pairs, test_pairs = pairs[:-heldout_pairs], pairs[-heldout_pairs:]
print(f"{len(train_pairs)} pairs to train on, {len(test_pairs)} to test on")

# %% [markdown]
# ## The network
#
# The fine-tuned trunk reads prompt and answer; a linear head turns its state into a
# number. One number an answer: that of its last token, or the mean over its tokens.

# %% tags=["define"]
from minipalm.rlhf.reward import pool

# %% tags=["define"]
from minipalm.rlhf.reward import RewardModel

# %%
reward_model = RewardModel(trunk, preset.reward.pooling, generator)
share = count_parameters(trunk_config) / count_parameters(config)
print(f"the reward model has {share:.0%} of the policy's parameters")

# %% [markdown]
# ## The loss
#
# $$L = -\log \sigma(r_{\text{chosen}} - r_{\text{rejected}} - m)$$
#
# Only the difference counts. The scores have no zero and no unit yet.

# %% tags=["define"]
from minipalm.rlhf.reward import pairwise_loss

# %% tags=["define"]
from minipalm.train.reward_model import train_reward_model

# %%
run = Run(
    f"{out}/08_reward_model/training",
    seed=seed,
    model=asdict(trunk_config),
    reward=asdict(preset.reward),
    tokenizer=tokenizer.fingerprint,
    data=fingerprint(preferences or prompts),
)
train_reward_model(
    reward_model, train_pairs, preset.reward, run, seed, preset.checkpoint_every
)

# %%
plot.loss_curves(
    {"reward model": read_metrics(run.folder)},
    "nats a pair",
    levels={"a coin": math.log(2)},
)

# %% [markdown]
# ## How good is it?
#
# On comparisons that it has not seen. Nobody can be right more often than the labels
# are consistent: a judge who knew the gold reward would reach the Bayes accuracy.
# And if length alone did as well, the model might have learnt nothing but length.

# %%
with torch.no_grad():
    chosen, rejected = score_pairs(reward_model, test_pairs)
result = {
    "accuracy": accuracy(chosen, rejected),
    "bayes": bayes,
    "ece": expected_calibration_error(reliability(chosen, rejected)),
    "length_auc": length_auc(
        test_pairs.chosen_mask.sum(1), test_pairs.rejected_mask.sum(1)
    ),
}
for name, value in result.items():
    print(f"{name:10} {'-' if value is None else f'{value:.3f}'}")

# %%
plot.reward_histograms(chosen, rejected)

# %%
plot.reliability_diagram(reliability(chosen, rejected))

# %% [markdown]
# ## Give the score a zero and a unit
#
# Fresh answers of the policy get mean 0 and standard deviation 1. So β, the price of
# a nat of KL in the next lessons, means the same for every reward model.

# %%
rows = torch.randint(len(asked), (1024,), generator=generator)
drawn = [asked[row].prompt for row in rows]
fresh = answer(policy, tokenizer, drawn, generator=generator, **sizes)
with torch.no_grad():
    reward_model.fit_scale(reward_model(*fresh.tokens))
    scores = reward_model(*fresh.tokens)
plot.score_scale(scores)

# %% [markdown]
# ## What changed
#
# You have a number to optimise. It agrees with the labeller more often than a coin,
# and it is wrong often enough for lesson 12 to become interesting.

# %%
finish_stage(
    out,
    "08_reward_model",
    {"reward_model": reward_model},
    tokenizer,
    scale=scale,
    seed=seed,
    parameters=count_parameters(trunk_config) + trunk_config.dim + 1,
    policy_parameters=count_parameters(config),
    **result,
)

# %% [markdown]
# # 08 · The reward model
#
# You turn comparisons into a score. Somebody looks at two answers of your
# policy and says which is better; a small network learns to give the better
# one the higher score. It is a proxy: PPO will optimise this number, not what
# the labeller meant.

# %% tags=["parameters"]
scale = "toy"
seed = 0
out = "runs/toy"
prompts = "data/prompts.jsonl"
# your own comparisons, a JSON-lines file; "" asks the labeller
preferences = ""

# %%
import math
import os
from dataclasses import asdict, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from minipalm import plot
from minipalm.config import RewardConfig, get_preset
from minipalm.course import ROOT
from minipalm.data.datasets import (
    check_prompt_lengths,
    check_response_lengths,
    hold_out,
    read_preferences,
    read_prompts,
)
from minipalm.data.files import fingerprint
from minipalm.data.gold import bayes_accuracy
from minipalm.data.tokenizer import load_tokenizer
from minipalm.evaluate.statistics import (
    accuracy,
    expected_calibration_error,
    length_auc,
    reliability,
)
from minipalm.model.palm import PaLM, count_parameters
from minipalm.rlhf.answers import answer
from minipalm.rlhf.labeller import labelled_pairs
from minipalm.rlhf.pairs import Pairs, encode_pairs
from minipalm.rlhf.reward import check_pooling, scalar_head, score_pairs
from minipalm.train.optim import (
    adamw,
    batch_rows,
    micro_batches,
    optimizer_step,
)
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
policy = load_result(PaLM(config), out, "07_sft", "policy", tokenizer)
trunk = load_result(PaLM(trunk_config), out, "07_sft", "trunk", tokenizer)
asked = read_prompts(prompts)
check_prompt_lengths(asked, tokenizer, preset.max_prompt)
sizes = {"max_prompt": preset.max_prompt, "max_response": preset.max_response}

# %% [markdown]
# ## Comparisons
#
# Where you give none of your own, both answers come from the policy itself, so
# the labels are about the texts that PPO will begin with. The labeller is a
# program that knows the gold reward and errs as people do: it prefers a with
# probability $\sigma((\text{gold}_a - \text{gold}_b) / \tau)$.

# %%
number = preset.reward.pairs, preset.reward.heldout_pairs
bayes = None
if preferences:
    records = read_preferences(preferences)
    check_prompt_lengths(records, tokenizer, preset.max_prompt)
    check_response_lengths(records, tokenizer, preset.max_response)
    train, test = hold_out(records, 0.2, seed)
    train_pairs = encode_pairs(train, tokenizer, **sizes)
    test_pairs = encode_pairs(test[: number[1]], tokenizer, **sizes)
else:
    pairs, golds = labelled_pairs(
        policy, tokenizer, asked, sum(number), seed=seed, **sizes
    )
    train_pairs, test_pairs = pairs[: number[0]], pairs[number[0] :]
    bayes = bayes_accuracy(*zip(*golds[number[0] :], strict=True))
print(f"{len(train_pairs)} pairs to train on, {len(test_pairs)} to test on")

# %%
for n in range(min(3, len(train_pairs))):
    for mark, ids, kept in (
        ("", train_pairs.prompts, train_pairs.prompt_mask),
        ("  + ", train_pairs.chosen, train_pairs.chosen_mask),
        ("  - ", train_pairs.rejected, train_pairs.rejected_mask),
    ):
        print(f"{mark}{tokenizer.decode(ids[n][kept[n]].tolist())}")

# %% [markdown]
# ## The network
#
# The fine-tuned trunk reads prompt and answer; a linear head turns its state
# into a number. One number an answer: that of its last token, or the mean over
# its tokens.

# %% tags=["define"]
from minipalm.rlhf.reward import pool

# %% tags=["define"]
from minipalm.rlhf.reward import RewardModel

# %%
generator = torch.Generator().manual_seed(seed)
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
    sizes=sizes,
    start=result_fingerprint(out, "07_sft"),
)
train_reward_model(
    reward_model,
    train_pairs,
    preset.reward,
    run,
    seed,
    preset.checkpoint_every,
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
# On comparisons held out. The labels are noisy: even a judge who knew the gold
# reward would be right only as often as the Bayes accuracy says, on average.
# And if length alone did as well, the model might have learnt nothing but
# length.

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
# Fresh answers of the policy get mean 0 and standard deviation 1. So β, the
# price of a nat of KL in the next lessons, means the same for every reward
# model.


# %%
def fresh_scores() -> Tensor:
    """Scores of answers to prompts drawn at random."""
    rows = torch.randint(len(asked), (1024,), generator=generator)
    drawn = [asked[row].prompt for row in rows]
    fresh = answer(policy, tokenizer, drawn, generator=generator, **sizes)
    with torch.no_grad():
        parts = [reward_model(*some) for some in fresh.token_batches(256)]
    return torch.cat(parts)


reward_model.fit_scale(fresh_scores())
plot.score_scale(fresh_scores())

# %% [markdown]
# ## What changed
#
# You have a number to optimise. How often it agrees with the labeller is
# printed above; how it fails where it does not is the subject of lesson 12.

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

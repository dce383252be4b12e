# %% [markdown]
# # 09 · Rollouts and KL
#
# A policy that chases a score moves away from the model that you fine-tuned.
# How far has it moved, and who pays for it?
#
# You build the numbers that answer this: log-probabilities of answers, the KL
# and what one can know of it from samples, and the reward of every token. PPO
# is made of them.

# %% tags=["parameters"]
scale = "toy"
seed = 0
out = "runs/toy"
prompts = "data/prompts.jsonl"

# %%
import copy
import math
import os
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minipalm.config import get_preset
from minipalm.course import ROOT
from minipalm.data.datasets import read_prompts
from minipalm.model.palm import PaLM
from minipalm.plot.interactive import interactive
from minipalm.plot.kl import (
    entropy_by_place,
    estimator_clouds,
    expected_pushes,
    far_from_home,
    mean_and_sd,
    paid_by_token,
    pushes,
    steered,
    two_laws,
)
from minipalm.rlhf.answers import Answers, answer
from minipalm.rlhf.logprobs import masked_mean
from minipalm.train.networks import (
    load_policy,
    load_reward_model,
    tokenizer_of,
)
from minipalm.train.optim import adamw, optimizer_step

# %% tags=["classroom"]
from minipalm.course.check import check, progress
from minipalm.course.classroom import borrow

# %%
os.chdir(ROOT)  # paths are from the repository's folder

# %% tags=["classroom"]
borrow(out, ("06_palm", "07_sft", "08_reward_model"), scale)

# %% [markdown]
# You need what the last three lessons made: the tokenizer, the fine-tuned
# policy, and the reward model. The fine-tuned policy is the **reference** from
# now on: it is frozen, and distances are measured from it.

# %%
preset = get_preset(scale)
tokenizer = tokenizer_of(out)
reference = load_policy(out, "07_sft", preset, tokenizer)
reward_model = load_reward_model(out, preset, tokenizer)
reference.requires_grad_(False)
reward_model.requires_grad_(False)
asked = [record.prompt for record in read_prompts(prompts)]
sizes = {"max_prompt": preset.max_prompt, "max_response": preset.max_response}

# %% [markdown]
# ## A rollout
#
# To answer prompts and write down what happened is called a rollout. An answer
# is a row of tokens and a mask that is True up to its `<eos>`, or to the last
# place if there was no room for one.

# %%
generator = torch.Generator().manual_seed(seed)


def ask(policy: PaLM, times: int = 1, temperature: float = 1.0) -> Answers:
    """Answers of a policy, `times` for each prompt."""
    return answer(
        policy,
        tokenizer,
        asked * times,
        generator=generator,
        temperature=temperature,
        **sizes,
    )


fresh = ask(reference, 4)
for prompt, text in zip(fresh.prompts[:3], fresh.texts):
    print(f"{prompt}  {text}")

# %% [markdown]
# ## How likely is a token?
#
# The network gives a row of logits for each place. What is asked for is one
# number: the log-probability of the token that stands there. Ratios and
# distances are differences of such numbers, often small ones, so digits
# matter.

# %% tags=["exercise"]
from minipalm.rlhf.logprobs import token_logprobs

# %% [markdown]
# ## How open was the choice?
#
# The entropy is the mean surprise: 0 where the next token is certain, $\log V$
# where all of the vocabulary is equally likely.

# %% tags=["exercise"]
from minipalm.rlhf.logprobs import entropy

# %% [markdown]
# ## Which logits belong to which token?
#
# The logits at a place predict the token *after* it. The answer's first token
# is therefore predicted at the prompt's last place:
#
# ```
# read      <bos> sad  tale |  the  cat  wept
# predicts   sad  tale THE  |  CAT  WEPT <EOS>
# ```
#
# The words in capitals are the answer. Which columns do you need?

# %% tags=["exercise"]
from minipalm.rlhf.logprobs import response_logits

# %%
with torch.no_grad():
    logits = response_logits(reference, *fresh.tokens)
    logprobs = token_logprobs(logits, fresh.tokens[2])
mask = fresh.tokens[3]
per_answer = torch.where(mask, logprobs, 0.0).sum(1)
print(f"an answer has {mask.sum(1).float().mean():.1f} tokens on average,")
print(f"and a log-probability of {per_answer.mean():.1f} nats")

# %% [markdown]
# **Predict.** A story begins, goes on, and ends. Where in it does the policy
# have the most open choice, and where hardly any? Sketch the entropy against
# the place, then run the cell.

# %%
entropy_by_place(entropy(logits), mask, math.log(tokenizer.vocab_size))

# %% [markdown]
# ## A policy that has moved
#
# To measure a distance you need two policies. Here is the simplest way to move
# one towards a reward: answer each prompt several times, keep the answer with
# the best score, and fine-tune on those. Your functions compute its loss.


# %%
def best_of(policy: PaLM, tries: int) -> list[Tensor]:
    """Of `tries` answers to each prompt the one with the best score."""
    many = ask(policy, tries)
    scores = reward_model(*many.tokens).view(tries, len(asked))
    rows = scores.argmax(0) * len(asked) + torch.arange(len(asked))
    return [part[rows] for part in many.tokens]


def move(policy: PaLM, rounds: int, tries: int = 8) -> PaLM:
    """A copy that has learnt from its own best answers."""
    policy = copy.deepcopy(policy).requires_grad_(True)
    optim = replace(preset.sft, steps=8 * rounds, lr=preset.ppo.policy_lr)
    optimizer = adamw(policy)
    for step in range(1, optim.steps + 1):
        if step % 8 == 1:
            best = best_of(policy, tries)
        logits = response_logits(policy, *best)
        loss = -masked_mean(token_logprobs(logits, best[2]), best[3])
        loss.backward()
        optimizer_step(policy, optimizer, optim, step)
    return policy.requires_grad_(False)


policy = move(reference, rounds=3)

# %%
before, told = ask(reference, 4), ask(policy, 4)
for name, one in (("reference", before), ("policy", told)):
    print(f"{name:10} mean score {reward_model(*one.tokens).mean():+.2f}")

# %% [markdown]
# ## The distance
#
# $$\text{KL}(\pi \,\|\, \pi_\text{ref}) = \sum_y \pi(y)\,
# (\log \pi(y) - \log \pi_\text{ref}(y))$$
#
# The sum is over the vocabulary, the weights are the policy's: what counts is
# what the policy says, not what it has stopped saying.

# %% tags=["exercise"]
from minipalm.rlhf.kl import exact_kl

# %%
mask = told.tokens[3]
with torch.no_grad():
    logits = response_logits(policy, *told.tokens)
    ref_logits = response_logits(reference, *told.tokens)


def per_answer_of(x: Tensor) -> Tensor:
    """Sums over each answer's own tokens."""
    return torch.where(mask, x, 0.0).sum(1)


exact = per_answer_of(exact_kl(logits, ref_logits))
least, most = exact.min(), exact.max()
print(f"{exact.mean():.2f} nats an answer, {least:.2f} to {most:.2f}")

# %% [markdown]
# ## What a single token tells
#
# With a large vocabulary nobody keeps all logits. What is at hand is two
# numbers a token: $\log \pi(y)$ and $\log \pi_\text{ref}(y)$. Three estimates
# of the KL can be made of them. Two are given; the third is yours. Why does
# adding
# $r - 1$ leave the mean as it is?

# %% tags=["define"]
from minipalm.rlhf.kl import k1

# %% tags=["define"]
from minipalm.rlhf.kl import k2

# %% tags=["exercise"]
from minipalm.rlhf.kl import k3

# %%
logprobs = token_logprobs(logits, told.tokens[2])
ref_logprobs = token_logprobs(ref_logits, told.tokens[2])
estimators = {"k1": k1, "k2": k2, "k3": k3}
print(f"{'':6} mean    sd of an answer   (nats)")
print(f"exact  {exact.mean():.2f}    {exact.std():.2f}")
for name, estimator in estimators.items():
    x = per_answer_of(estimator(logprobs, ref_logprobs))
    print(f"{name:6} {x.mean():.2f}    {x.std():.2f}")

# %% [markdown]
# **Predict.** Below are two laws on five tokens, and what the estimators make
# of small batches drawn from the policy. Which of the three is never negative?
# Which has its middle beside the dashed line, once the policy has moved far?
# And is k3 always the steadier one? Move the sliders and look for a case where
# it is not.


# %%
def clouds(moved: float, sharper: float, tokens: int):
    """The estimators on two laws, for the sliders."""
    one, other = two_laws(moved, sharper)
    true = exact_kl(one, other).item()
    return estimator_clouds(estimators, one, other, true, tokens, seed)


interactive(
    clouds,
    moved=(0.0, 2.0, 0.1, 0.6),
    sharper=(0.5, 2.0, 0.1, 1.0),
    tokens=(8, 128, 8, 32),
)

# %% [markdown]
# ## An estimate is not a loss
#
# A good estimate of a number need not have the gradient of that number.
# **Predict**: somebody adds β times one of the three to a loss and calls
# backward. In which direction does it push, on average?

# %%
law, ref = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.25, 0.25, 0.5])
leaf = law.log().requires_grad_(True)
exact_kl(leaf, ref.log()).backward()
found = expected_pushes(estimators, law.log(), ref.log())
for name, slope in {"the KL": leaf.grad.tolist(), **found}.items():
    print(f"{name:7}", "  ".join(f"{one:+.4f}" for one in slope))

# %%
pushes(found, leaf.grad.tolist())

# %% [markdown]
# k1 pushes nowhere, on average; k3 follows the KL in the other direction. So
# this course keeps the KL out of the loss: it goes into the **reward**, as a
# number without a gradient, and PPO learns from it as from any other reward.

# %% [markdown]
# ## An answer that never ends
#
# A cut answer is no answer. It has a score all the same, perhaps a good one,
# so it has to cost something.

# %% tags=["exercise"]
from minipalm.rlhf.rollout import penalise_missing_eos

# %%
scores = reward_model(*told.tokens)
penalty = preset.ppo.missing_eos_penalty
paid = penalise_missing_eos(
    scores, told.tokens[2], mask, tokenizer.eos_id, penalty
)
print(f"{(paid < scores).sum()} of {len(paid)} answers pay {penalty:g}")

# %% [markdown]
# ## Who pays?
#
# Every token pays for its own move, and the answer's last token gets the
# score:
#
# $$r_t = -\beta\,(\log \pi(y_t) - \log \pi_\text{ref}(y_t)) +
# \mathbb{1}[t = \text{last}]\;\text{score}$$
#
# Which of a row's columns is the last one, and what is paid after it?

# %% tags=["exercise"]
from minipalm.rlhf.rollout import shape_rewards

# %% [markdown]
# Here is one answer of the policy that has moved. **Predict** which words it
# says more readily than the reference does; then move β. At which β is the
# answer no longer worth its score?

# %%
nats = per_answer_of(k1(logprobs, ref_logprobs))
row = int((paid.clamp(min=0) * nats.clamp(min=0)).argmax())  # good, and far
length = int(mask[row].sum())
parts = [x[row : row + 1] for x in (paid, logprobs, ref_logprobs, mask)]
ids = told.tokens[2][row, :length].tolist()
words = [tokenizer.decode([one]) or "<eos>" for one in ids]


def priced(beta: float):
    """The rewards of that answer, for the slider."""
    rewards = shape_rewards(*parts, beta)[0, :length]
    moves = k1(parts[1], parts[2])[0, :length]
    return paid_by_token(words, moves, rewards, paid[row].item(), beta)


interactive(priced, beta=(0.0, 1.0, 0.05, 0.15))

# %%
beta = preset.ppo.kl_coefs[0]
rewards = shape_rewards(paid, logprobs, ref_logprobs, mask, beta)
print(f"mean of Σ r_t             {rewards.sum(1).mean():.4f}")
print(f"mean score − β · mean KL  {paid.mean() - beta * nats.mean():.4f}")

# %% [markdown]
# ## Which β?
#
# Nobody knows the right price beforehand, but how far the policy may go is
# easier to say. A controller makes moving dearer when the KL is above its
# target, and cheaper when it is below, a little at a time.

# %% tags=["exercise"]
from minipalm.rlhf.kl import KLController

# %% [markdown]
# Try it on a made-up policy whose KL falls as the price rises, $1/\beta$, with
# a target of 4 nats. What would happen without the clip in its first steps?

# %%
controller = KLController(0.05, target=4.0, horizon=1000)
coefs, kls = [], []
for _ in range(200):
    coefs.append(controller.coef)
    kls.append(1 / controller.coef)
    controller.update(kls[-1], episodes=64)
steered(coefs, kls, 4.0)

# %% [markdown]
# ## Break it
#
# Three mistakes that have been made in public, each with its number.
#
# **A ratio upside down.** $e^{+k_1} - 1 - k_1$ looks like k3 and is never
# negative. Near the reference the two agree, so a test near the reference is
# content.


# %%
def upside_down(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """k3 with r = π / π_ref, where it should be π_ref / π."""
    return k3(ref_logprobs, logprobs)


distances = [n / 5 for n in range(26)]
laws = [two_laws(moved) for moved in distances]
means = {
    name: [mean_and_sd(one, *pair)[0] for pair in laws]
    for name, one in (("k3", k3), ("k3 upside down", upside_down))
}
far_from_home(distances, means, [exact_kl(*pair).item() for pair in laws])

# %% [markdown]
# **A temperature forgotten.** Sample at a temperature below 1, and divide the
# policy's logits by it, but not the reference's. The policy below *is* the
# reference: its KL must be 0.

# %%
cool = ask(reference, temperature=0.7)
kept = cool.tokens[3]
for name, of_reference in (("right", 0.7), ("forgotten", 1.0)):
    one, other = (
        token_logprobs(
            response_logits(reference, *cool.tokens, t), cool.tokens[2]
        )
        for t in (0.7, of_reference)
    )
    x = torch.where(kept, k1(one, other), 0.0).sum(1).mean()
    print(f"{name:10} KL of the reference from itself: {x:.2f} nats an answer")

# %% [markdown]
# **A filter on the sampler.** Only the two likeliest tokens may be drawn, but
# log-probabilities are those of the whole law. The tokens no longer follow the
# policy, and an estimate of something that cannot be negative is negative.

# %%
flat, steep = torch.tensor([0.35, 0.35, 0.3]), torch.tensor([0.48, 0.48, 0.04])
x = k1(flat.log(), steep.log())
top = flat * (flat >= flat.topk(2).values[-1])
print(f"exact KL               {exact_kl(flat.log(), steep.log()):+.3f} nats")
print(f"k1, tokens of the law  {(flat * x).sum():+.3f}")
print(f"k1, top two only       {(top / top.sum() * x).sum():+.3f}")

# %% [markdown]
# ## What changed
#
# You can say how far a policy has gone, in nats an answer, exactly and from
# samples; you know which estimate may be a reward and which a loss; and every
# token has a reward of its own. But a reward says what a token *got*, not
# whether that was more than one could expect. That is lesson 10.
#
# ## What real systems do differently
#
# - Answers come from an inference engine of its own. Its numbers differ from
#   the trainer's in the last digits, so log-probabilities are computed again,
#   or the difference is corrected for.
# - With a vocabulary of a hundred thousand, logits of all places do not fit:
#   log-probabilities are computed in slices.
# - Where only low-rank adapters are trained, the reference is the policy with
#   them switched off.
# - GRPO and its kin put k3 into the loss. What that pushes, you have seen.
#
# ## Left out on purpose
#
# - Other divergences, and the exact KL as a loss where logits are at hand.
# - Top-p and top-k as part of the policy's law: then the behaviour's law must
#   be the filtered one everywhere.
# - How far one *should* go: lessons 12 and 13.
#
# ## Further reading
#
# - J. Schulman 2020, *Approximating KL Divergence*,
#   [joschu.net/blog/kl-approx.html](http://joschu.net/blog/kl-approx.html):
#   k1, k2, k3.
# - Ziegler et al. 2019, *Fine-Tuning Language Models from Human Preferences*,
#   arXiv 1909.08593: section 2 for the penalty, 2.2 for the controller.
# - Ouyang et al. 2022, *Training language models to follow instructions with
#   human feedback*, arXiv 2203.02155, equation 2.
# - Stiennon et al. 2020, *Learning to summarize from human feedback*,
#   arXiv 2009.01325, section 3.4.

# %% tags=["classroom"]
progress()

# %% [markdown]
# # 00 · Start here
#
# In a few minutes of computing you take a network that knows nothing to a
# policy that people would prefer, with the packaged parts. Then you see what
# goes wrong if nothing holds it back. Each of the following lessons opens one
# of these parts, and you write it yourself.
#
# The last section shows how a check speaks: you write one line of code, wrong
# at first.

# %% tags=["parameters"]
scale = "toy"
seed = 0
# the folder of the whole run; later lessons borrow from it what you skip
whole = "runs/toy"

# %%
import os

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minipalm import plot
from minipalm.config import get_preset
from minipalm.course import ROOT, run
from minipalm.data.datasets import read_prompts
from minipalm.data.gold import gold_reward
from minipalm.data.lexicon import is_tinytales_prompt
from minipalm.plot.interactive import interactive
from minipalm.plot.start import Said, four_networks, proxy_and_gold, said
from minipalm.rlhf.answers import answer
from minipalm.rlhf.logprobs import response_logits, token_logprobs
from minipalm.train.networks import (
    load_policy,
    load_reward_model,
    tokenizer_of,
)
from minipalm.train.run import read_metrics
from minipalm.train.stage import stage_summary

# %% tags=["classroom"]
from minipalm.course.check import check, progress

# %%
os.chdir(ROOT)  # paths are from the repository's folder
preset = get_preset(scale)


def run_until(stage):
    """Run what is not there yet, up to this stage."""
    options = ["--scale", scale, "--seed", str(seed), "--out", whole]
    if run.main([*options, "--until", stage]):
        raise RuntimeError(f"{stage} failed, for the reason given above")


# %% [markdown]
# ## Stage 1: read
#
# A model first learns to continue text. Ours reads small tales about
# sixteen subjects in three moods, and learns which word tends to follow which.
# The cell below trains two networks, a policy and a smaller trunk that will
# become the judge.
#
# What is complete is skipped: run the cell twice and the second time it ends
# at once. Interrupt it, and it resumes at its last checkpoint.

# %%
run_until("06_palm")

# %% [markdown]
# It has learned which words follow which. Now ask it for something, as a user
# would.

# %%
tokenizer = tokenizer_of(whole)
asked = [record.prompt for record in read_prompts("data/prompts.jsonl")]
prompts = asked[::20][:6]


def say(policy, prompts):
    """One answer to each prompt; the same dice for every policy."""
    return answer(
        policy,
        tokenizer,
        prompts,
        max_prompt=preset.max_prompt,
        max_response=preset.max_response,
        generator=torch.Generator().manual_seed(seed),
    )


# %%
policies = {"pretrained": load_policy(whole, "06_palm", preset, tokenizer)}
told = {"pretrained": say(policies["pretrained"], prompts)}
for prompt, text in zip(prompts, told["pretrained"].texts):
    print(f"{prompt} → {text}")

# %% [markdown]
# **Predict.** It continues, it does not answer. What is missing: knowledge of
# words, or knowledge of what a prompt is for?
#
# ## Stage 2: imitate
#
# Supervised fine-tuning (SFT) shows it prompts with answers. They come from an
# author who is sloppy on purpose: who takes a wrong article, a wrong mood, a
# wrong hero now and then.

# %%
run_until("07_sft")

# %%
policies["SFT"] = load_policy(whole, "07_sft", preset, tokenizer)
told["SFT"] = say(policies["SFT"], prompts)
for prompt, text in zip(prompts, told["SFT"].texts):
    print(f"{prompt} → {text}")

# %%
plot.loss_curves(
    {
        "pretraining": read_metrics(f"{whole}/06_palm/policy"),
        "SFT": read_metrics(f"{whole}/07_sft/policy"),
    }
)

# %% [markdown]
# ## Stage 3: judge
#
# Imitation copies the author's slips, too. To become better than the author,
# the policy needs somebody who says which of two answers is better. A labeller
# compares pairs of its answers, and a small network learns to predict these
# choices: the reward model.

# %%
run_until("08_reward_model")

# %%
reward_model = load_reward_model(whole, preset, tokenizer)


def judge(answers):
    """Of each answer the proxy, in sd of SFT answers, and the gold reward."""
    with torch.no_grad():
        proxies = reward_model(*answers.tokens).tolist()
    golds = [
        gold_reward(*one) if is_tinytales_prompt(one[0]) else None
        for one in zip(answers.prompts, answers.texts, answers.finished)
    ]
    return list(zip(answers.prompts, answers.texts, proxies, golds))


# %% [markdown]
# Two answers to one prompt. Which one do you prefer?

# %%
pair = judge(say(policies["SFT"], [prompts[2], prompts[2]]))
print(prompts[2])
for letter, (_, text, _, _) in zip("ab", pair):
    print(f"  {letter}: {text}")

# %% [markdown]
# Decide before you run the next cell. *Proxy* is what the reward model says;
# *gold* is what a program says that knows the rules of this world. In real
# life there is no gold; here it lets you see who is right.

# %%
for letter, (_, _, proxy, gold) in zip("ab", pair):
    print(f"  {letter}: proxy {proxy:+.2f} sd, gold {gold:.1f} of 10")

# %% [markdown]
# ## Stage 4: improve
#
# Now the policy writes, the reward model scores, and PPO makes what scored
# well more likely. Four networks take part: the *reference* is a frozen copy
# of the SFT policy, and PPO pays a price for moving away from it. The *critic*
# says how good an answer is expected to become, so that each token is measured
# against what was expected.

# %%
policy_size, judge_size = (
    sum(weight.numel() for weight in model.parameters())
    for model in (policies["SFT"], reward_model)
)
four_networks(
    {
        "policy": policy_size,
        "reference": policy_size,
        "reward model": judge_size,
        "critic": judge_size,
    }
)

# %%
run_until("11_ppo")

# %%
coefs = stage_summary(whole, "11_ppo")["kl_coefs"]
penalised, free = (f"beta-{coef:g}" for coef in (coefs[0], coefs[-1]))
for who, name in (("PPO", penalised), ("no penalty", free)):
    policies[who] = load_policy(whole, "11_ppo", preset, tokenizer, name)
    told[who] = say(policies[who], prompts)
plot.ppo_dashboard(read_metrics(f"{whole}/11_ppo/{penalised}"))

# %% [markdown]
# The first panel is what PPO maximises. The second is the distance from the
# reference, which it pays for. You will build every one of these curves.
#
# ## Who says what?
#
# The same prompts, asked after each stage. Choose one and read down.

# %% tags=["classroom"]
table = {
    prompt: [Said(who, *judge(told[who])[n][1:]) for who in told]
    for n, prompt in enumerate(prompts)
}
interactive(lambda prompt: said(prompt, table[prompt]), prompt=prompts)

# %% [markdown]
# ## Break it
#
# PPO ran twice. In the second run, the last row of the table, nothing held the
# policy near the reference: the penalty β was 0. The reward model's score,
# the proxy, is all that counts.
#
# **Predict.** The figure shows the first quarter of that run. The proxy will
# rise to the end. What will gold do? Then move the slider.

# %% tags=["classroom"]
steps = read_metrics(f"{whole}/11_ppo/{free}")
interactive(
    lambda iteration: proxy_and_gold(steps, iteration),
    iteration=(1, len(steps), 1, max(1, len(steps) // 4)),
)

# %%
judged = {who: judge(say(policies[who], asked)) for who in list(policies)[1:]}
for who, rows in judged.items():
    proxy, gold = (sum(one[k] for one in rows) / len(rows) for k in (2, 3))
    print(f"{who:10} mean proxy {proxy:+.1f} sd, mean gold {gold:.1f} of 10")

# %%
fresh = judged["no penalty"]
for prompt, text, proxy, gold in sorted(fresh, key=lambda one: -one[2])[:5]:
    print(f"proxy {proxy:+.1f}, gold {gold:.1f}: {prompt} → {text}")

# %% [markdown]
# These are the answers that the reward model likes best. It never saw such
# texts while it learned, so it has no opinion of them that is worth having,
# but it has a number. This is what the penalty is for, and lesson 12 measures
# it.
#
# ## Stage 5: is it better?
#
# The last stage asks all policies many prompts, some about pairs of mood and
# subject that no stage has seen, and writes a report.

# %%
run_until("12_evaluation")

# %% [markdown]
# Open the report in a browser: its path stands in the last lines. `./course
# run` in a terminal does the same as the cells above.
#
# ## How a check speaks
#
# In the next lessons you write the parts yourself. Below each stub stands a
# check. It says one of three things, and never stops the notebook:
#
# - `todo`: nothing is written yet;
# - `not yet: ...`: something is wrong, and often it can say which mistake;
# - `ok`: from here on the notebook runs with *your* function.
#
# Until it says ok, the packaged one goes on below, so you are never stuck.

# %% [markdown]
# Meet all three:
#
# 1. Run the two cells below as they are.
# 2. Replace the last line of the stub by `return x.mean()`, and run both
#    again. Read which mistake it names.
# 3. Try `return x[mask].mean()`. Better, and still not right: why?
# 4. Write it as the text above the arguments asks. The hints unfold.

# %% tags=["exercise"]
from minipalm.rlhf.logprobs import masked_mean

# %% [markdown]
# Use it. How surprising are SFT's own answers to it, in nats a token? Answers
# have unequal lengths; the rows behind their ends are padding. Widen the rows,
# and nothing about the answers has changed:

# %%
asks, ask_mask, responses, mask = told["SFT"].tokens
with torch.no_grad():
    logits = response_logits(policies["SFT"], asks, ask_mask, responses, mask)
surprise = -token_logprobs(logits, responses)
for wider in (0, 20, 60):
    x = torch.nn.functional.pad(surprise, (0, wider))
    counts = torch.nn.functional.pad(mask, (0, wider))
    both = f"{x.mean():.3f}, masked mean {masked_mean(x, counts):.3f}"
    print(f"{x.shape[1]} columns: mean of all places {both}")

# %% [markdown]
# ## What changed
#
# You have seen the whole way once: reading, imitating, judging, improving, and
# asking whether it is better. The folder named in the parameters holds all of
# it, and later lessons borrow from there whatever you have not made yourself.

# %% [markdown]
# ## What real systems do differently
#
# - They are far larger and read far more. The stages and the four networks are
#   the same.
# - People, or models instructed by people, do the labeller's work. Nobody has
#   a gold reward; one watches the KL, reads samples, and holds out judges.
# - Many skip the critic or even the sampling: GRPO, RLOO, DPO. A later lesson
#   builds them beside PPO.

# %% [markdown]
# ## Left out on purpose
#
# How any of this works: that is the rest of the course. Also the engineering
# of many machines: [nanochat](https://github.com/karpathy/nanochat) shows a
# whole pipeline on one node in readable form, and
# [torchtitan](https://github.com/pytorch/torchtitan) shows many of them.

# %% [markdown]
# ## Further reading
#
# - Ouyang et al. 2022, *Training language models to follow instructions with
#   human feedback*, arXiv 2203.02155: the same stages, at full size; figure 2
#   is their picture of it.
# - Stiennon et al. 2020, *Learning to summarize from human feedback*, arXiv
#   2009.01325: where the recipe for language took its form.
# - Gao, Schulman and Hilton 2022, *Scaling laws for reward model
#   overoptimization*, arXiv 2210.10760: the curve that you broke, measured
#   with a gold reward as here.

# %% tags=["classroom"]
progress()

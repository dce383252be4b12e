# %% [markdown]
# # 15 · Offline, and without a critic
#
# PPO asks its policy anew at every step and needs four networks. What can be
# left out, and what does it cost?
#
# You leave out one thing after the other: the asking (a **log** of old
# answers), the reward model (**DPO**), the critic (**RLOO** and **GRPO**), and
# at last the training (**best of n**). Then you compare all of them, on one
# budget, with their spread.

# %% tags=["parameters"]
scale = "toy"
seed = 0
out = "runs/toy"
prompts = "data/prompts.jsonl"

# %%
import gc
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minipalm.config import GroupConfig, get_preset
from minipalm.course import ROOT
from minipalm.data.batches import pad_left, prompt_ids
from minipalm.data.datasets import check_prompt_lengths, read_prompts
from minipalm.data.files import fingerprint, write_text
from minipalm.evaluate.judge import gold_of, judge
from minipalm.model.palm import PaLM
from minipalm.model.place import fine_tuned, place
from minipalm.plot.costs import cost, costs_figure, costs_table
from minipalm.rlhf.answers import answer, answers_of, score_answers
from minipalm.rlhf.critic import critic_from_reward_model
from minipalm.rlhf.dpo import pairs_of_log
from minipalm.rlhf.kl import k3
from minipalm.rlhf.log import Log, log_answers, log_in_parts, read_log
from minipalm.rlhf.logprobs import response_logits, token_logprobs
from minipalm.rlhf.sampling import Sampler
from minipalm.train.dpo import train_dpo
from minipalm.train.group import train_group
from minipalm.train.networks import (
    load_policy,
    load_reward_model,
    tokenizer_of,
)
from minipalm.train.offline import train_offline
from minipalm.train.run import Run, read_metrics
from minipalm.train.stage import (
    finish_stage,
    result_fingerprint,
    stage_summary,
)

# %% tags=["classroom"]
import copy
import shutil
from dataclasses import replace

from minipalm.config import OptimConfig, few_updates
from minipalm.course.check import check, progress
from minipalm.course.classroom import borrow
from minipalm.plot.interactive import interactive
from minipalm.plot.methods import (
    against_ppo,
    aging,
    dpo_pair,
    methods_table,
    who_carries,
    who_pushes,
    without_guard,
    yardstick,
)
from minipalm.rlhf.offline import replay
from minipalm.rlhf.ppo import ppo_update
from minipalm.train.optim import adamw, batch_rows, optimizer_step, set_lr
from minipalm.train.ppo import train_ppo

# %%
os.chdir(ROOT)  # paths are from the repository's folder

# %% tags=["classroom"]
borrow(out, ("06_palm", "07_sft", "08_reward_model"), scale)

# %%
preset = get_preset(scale)
stage, methods = "15_offline", preset.methods
at_once = preset.ppo.batch_size
tokenizer = tokenizer_of(out)
left = out, "07_sft", preset, tokenizer
reference = place(load_policy(*left), preset.machine, trained=False)
scorer = load_reward_model(out, preset, tokenizer)
reward_model = place(scorer, preset.machine, trained=False)
records = read_prompts(prompts)
check_prompt_lengths(records, tokenizer, preset.max_prompt)
texts = [record.prompt for record in records]
ids = [prompt_ids(tokenizer, text) for text in texts]
asked, asked_mask = pad_left(ids, preset.max_prompt)

# %% [markdown]
# ## A log
#
# Somebody's policy has answered, and the answers were scored. What must have
# been written down, so that *another* policy can learn from it?


# %%
def ask(sample: Sampler, rows: Tensor, seed: int) -> Log:
    """Answers to prompts, with their scores and log-probabilities."""
    return log_answers(
        sample.policy,
        reward_model,
        asked[rows],
        asked_mask[rows],
        config=preset.ppo,
        max_response=preset.max_response,
        eos_id=tokenizer.eos_id,
        generator=torch.Generator().manual_seed(seed),
        sample=sample,
        batch_size=at_once,
    )


# %%
def run_of(name: str, **settings: object) -> Run:
    """The folder of a run, which remembers what the run was made from."""
    return Run(
        f"{out}/{stage}/{name}",
        seed=seed,
        **settings,
        policy=asdict(reference.config),
        critic=asdict(reward_model.trunk.config),
        tokenizer=tokenizer.fingerprint,
        prompts=fingerprint(prompts),
        sizes=[preset.max_prompt, preset.max_response],
        start=[
            result_fingerprint(out, s) for s in ("07_sft", "08_reward_model")
        ],
    )


# %% [markdown]
# The log is a file. A small one will do in class, and a few updates of each
# method: what they cost, you see after a few. They stand in a folder of their
# own, and are made anew each time.

# %% tags=["classroom"]
stage = "15_class"
shutil.rmtree(Path(out, stage), ignore_errors=True)
methods = few_updates(preset.methods, 8)
methods = replace(methods, answers=2048, best_of=16)
at_once = methods.answers

# %%
draw = torch.Generator().manual_seed(seed)
rows = torch.randint(len(texts), (methods.answers // 2,), generator=draw)
rows = rows.repeat_interleave(2)  # two answers to each
law = preset.ppo.temperature, preset.ppo.missing_eos_penalty
made_from = {"answers": methods.answers, "law": list(law)}
path = run_of("log", **made_from).folder / "log.jsonl"
if not path.exists():
    writer = fine_tuned(load_policy(*left), preset.machine, reference)
    sample = Sampler(writer)

    def one_part(numbers: range) -> Log:
        return ask(sample, rows[list(numbers)], seed + numbers.start)

    log_in_parts(path, len(rows), at_once, one_part)
    del writer, sample

# %% tags=["classroom"]
print(path.read_text("utf-8").splitlines()[0])

# %% [markdown]
# Tokens, not text: a text encoded again may be other tokens than those that
# the log-probabilities belong to. And the log-probabilities are those of the
# law that was sampled from, noted at that moment: later nobody can tell.

# %%
sizes = {
    "max_prompt": preset.max_prompt,
    "max_response": preset.max_response,
}
log = read_log(path, vocab_size=tokenizer.vocab_size, **sizes)
print(f"{len(log)} answers, mean score {log.scores.mean():+.3f}")

# %% [markdown]
# ## What is an old answer worth?
#
# The log was written by b, the behaviour policy. You want means over answers
# of π. An answer that π gives twice as often as b should count twice:
#
# $$\mathbb{E}_\pi f(y) = \mathbb{E}_b\, w(y) f(y), \qquad
#   w(y) = \frac{\pi(y \mid x)}{b(y \mid x)}$$
#
# What happens to the mean if one w is a thousand?

# %% tags=["exercise"]
from minipalm.rlhf.offline import importance_weights

# %% [markdown]
# Try it on a policy that you know: the same network at a lower temperature τ.
# The log was drawn at τ = 1. What would the policy at τ have scored?

# %% tags=["classroom"]
old = log[torch.arange(512)]
with torch.no_grad():
    logits = response_logits(reference, *old.tokens)


def weights_at(tau: float, limit: float) -> Tensor:
    """Your weights of the logged answers, for the network at temperature τ."""
    now = token_logprobs(logits / tau, old.responses)
    return importance_weights(now, old.logprobs, old.mask, limit)


for tau in (1.0, 0.9, 0.7):
    told = answer(
        reference,
        tokenizer,
        texts * 4,
        generator=draw,
        temperature=tau,
        **sizes,
    )
    w = weights_at(tau, 5.0)
    guess = (w * old.scores).sum() / w.sum()
    truth = reward_model(*told.tokens).mean()
    print(f"τ {tau}: the log says {guess:+.2f}, asked: {truth:+.2f}")

# %% [markdown]
# (Unfinished answers pay a penalty in the log only; they are few.)
#
# ## How many answers are left?
#
# If one answer has all the weight, you have learnt from one answer, however
# long the log is.

# %% tags=["exercise"]
from minipalm.rlhf.offline import effective_sample_size

# %% [markdown]
# **Predict.** At the lowest τ above each word is only a little likelier or
# rarer than it was. Of 512 answers, how many are left? Write a number down,
# then move τ, and the limit: it buys a larger number. With what does it pay?


# %% tags=["classroom"]
def carried(temperature: float, limit: int):
    """Who carries the weight, for the sliders."""
    w = weights_at(temperature, float(limit))
    return who_carries(w, effective_sample_size(w), f"τ = {temperature:.2f}")


interactive(carried, temperature=(0.5, 1.0, 0.05, 0.7), limit=(1, 100, 1, 5))

# %% [markdown]
# Small moves of many words multiply. The limit pays with a bias: the answers
# that π likes best count for less than they should.
#
# The weights look at answers. **Staleness** looks at the policies: how many
# nats has π left b?

# %% tags=["define"]
from minipalm.rlhf.offline import staleness

# %% tags=["classroom"]
print("τ     staleness, nats   effective share")
for tau in (1.0, 0.9, 0.8, 0.7, 0.6):
    now = token_logprobs(logits / tau, old.responses)
    share = effective_sample_size(weights_at(tau, 5.0)) / len(old)
    stale = staleness(now, old.logprobs, old.mask)
    print(f"{tau}   {stale:9.2f}   {share:17.2f}")

# %% [markdown]
# Now let PPO learn from a log: each batch's advantages are multiplied by w,
# and nobody is asked. **Predict** the curve of the effective sample size: a
# slow line, or a cliff? These are five seeds, run beforehand.

# %% tags=["classroom"]
results = json.loads(Path("data/results/methods.json").read_text("utf-8"))
aging(results)

# %% [markdown]
# Most is lost in the first updates, and this run is careful: a small learning
# rate, and a guard that skips a batch whose effective share is too small. You
# take the guard away below.

# %% [markdown]
# ## Without a reward model
#
# A log with two answers to each prompt is a log of comparisons. Must there be
# a reward model between comparisons and policy?
#
# Lesson 09 asked for a policy with a high reward, near to the reference:
#
# $$\max_\pi\; \mathbb{E}_\pi\, r(x, y) - \beta\,
#   \text{KL}(\pi \,\|\, \pi_\text{ref})$$
#
# For one prompt this can be solved. Write the objective as one sum, and put
# $e^{r/\beta}$ to the reference:
#
# $$-\beta \sum_y \pi(y) \log \frac{\pi(y)}{\pi_\text{ref}(y)\,
#   e^{r(y)/\beta}}$$

# %% [markdown]
# **Step 1.** Divide what stands below by its sum
# $Z(x) = \sum_y \pi_\text{ref}(y)\, e^{r(y)/\beta}$, and it is a law. The
# objective is then −β times a KL, plus β log Z, which π cannot change. A KL is
# least, 0, where both laws are equal:
#
# $$\pi^*(y \mid x) = \frac{1}{Z(x)}\, \pi_\text{ref}(y \mid x)\,
#   e^{r(x, y)/\beta}$$
#
# Why not simply use this policy? Because Z is a sum over all answers.

# %% [markdown]
# **Step 2.** Take the logarithm and solve for r:
#
# $$r(x, y) = \beta \log \frac{\pi^*(y \mid x)}{\pi_\text{ref}(y \mid x)}
#   + \beta \log Z(x)$$
#
# So every policy is the best one for some reward, its **implicit reward**.
#
# **Step 3.** Lesson 08 said how comparisons come about: Bradley and Terry,
# $P(y_w \succ y_l) = \sigma(r(x, y_w) - r(x, y_l))$. Both answers have the
# same prompt. Put step 2 in. What happens to Z?

# %% [markdown]
# It cancels:
#
# $$P(y_w \succ y_l) = \sigma\!\left(
#   \beta \log \frac{\pi(y_w \mid x)}{\pi_\text{ref}(y_w \mid x)} -
#   \beta \log \frac{\pi(y_l \mid x)}{\pi_\text{ref}(y_l \mid x)}\right)$$
#
# **Step 4.** Fit it by maximum likelihood, as you fitted the reward model:
# only that the parameters are the policy's own. That is DPO. It needs the
# probabilities of whole answers.

# %% tags=["exercise"]
from minipalm.rlhf.dpo import sequence_logprobs

# %% tags=["define"]
from minipalm.rlhf.dpo import implicit_rewards

# %% tags=["exercise"]
from minipalm.rlhf.dpo import dpo_loss

# %% [markdown]
# **Predict.** A pair is labelled the right way round, and the policy has got
# it right by 5 nats. Does a larger β make it push more, or less? And a pair
# that is wrong by 5 nats? Then move the sliders.


# %% tags=["classroom"]
def pushed(beta: float, margin: float):
    """Your loss and its slope, for the sliders."""
    return dpo_pair(dpo_loss, beta, margin)


interactive(
    pushed, beta=(0.05, 1.0, 0.05, 0.25), margin=(-10.0, 10.0, 0.5, -5.0)
)

# %% [markdown]
# Wrong by 5 nats: the larger β, the harder the push. Right by 5: a large β
# takes the pair for settled, a tiny one hardly pushes at all; in between it is
# hardest. β is a price: with a small one, many nats are needed for the same
# difference of rewards, and the pairs go on pushing.

# %% [markdown]
# Now run it: your two functions, and the log's answers as pairs. The reward
# model only labels them; people could.

# %% tags=["classroom"]
first, second = log.scores.view(-1, 2).unbind(1)
won = 2 * torch.arange(len(first)) + (second > first)
lost = 2 * torch.arange(len(first)) + (second <= first)
won, lost = won[first != second], lost[first != second]
chosen, rejected = log[won], log[lost]
print(f"{len(won)} pairs")


def both(policy: PaLM, some: Tensor) -> list[Tensor]:
    """log π(y | x) of some pairs: the better answers, the worse ones."""
    return [
        sequence_logprobs(policy, *side[some].tokens)
        for side in (chosen, rejected)
    ]


# %% [markdown]
# **Predict.** DPO raises the better answer *against* the worse one. Do the
# better answers become more probable than they were?


# %% tags=["classroom"]
def learn_by_dpo(beta: float, steps: int) -> PaLM:
    """A copy of the reference that has learnt from the pairs."""
    policy = copy.deepcopy(reference).requires_grad_(True)
    optim = OptimConfig(steps=steps, batch_size=64, lr=1e-3)
    optimizer = adamw(policy)
    for step in range(1, steps + 1):
        some = batch_rows(len(won), optim.batch_size, step, seed)
        with torch.no_grad():
            refs = both(reference, some)
        now = both(policy, some)
        loss = dpo_loss(*now, *refs, beta)
        loss.backward()
        optimizer_step(policy, optimizer, optim, step)
        if step % 8 == 0:
            gains = [(a - b).mean().item() for a, b in zip(now, refs)]
            print(
                f"step {step:2}  loss {loss.item():.3f}  nats gained: "
                f"chosen {gains[0]:+.2f}, rejected {gains[1]:+.2f}"
            )
    return policy.requires_grad_(False)


by_dpo = learn_by_dpo(beta=0.4, steps=32)


# %% tags=["classroom"]
def examine(policy: PaLM, answers: int = 128) -> dict[str, float]:
    """Ask it, and judge what it says."""
    told = answer(
        policy,
        tokenizer,
        (texts * answers)[:answers],
        generator=torch.Generator().manual_seed(seed),
        **sizes,
    )
    return judge(told, policy, reference, reward_model).row()


for name, policy in (("SFT", reference), ("DPO", by_dpo)):
    row = examine(policy)
    print(f"{name}: " + "  ".join(f"{k} {row[k]:.2f}" for k in ("gold", "kl")))

# %% [markdown]
# Both sides lose probability, the worse one more. Where does it go? To answers
# that stand in no pair. The loss does not see them: that is DPO's form of
# leaving the log, and β is the only thing that slows it.

# %% [markdown]
# ## Without a critic
#
# A critic says what could be expected of a prompt. Another way to know: ask
# the prompt several times. G answers to one prompt are a group, a row of
# rewards. What is the fair baseline for one of them?

# %% tags=["define"]
from minipalm.rlhf.group import check_group

# %% tags=["exercise"]
from minipalm.rlhf.group import rloo_advantages

# %% tags=["classroom"]
four = torch.arange(16).repeat_interleave(64)
groups = ask(Sampler(reference), four, seed + 1)
groups_scores = groups.scores.view(16, 64)  # 16 prompts, 64 answers
four = groups_scores[:, :4]
print("scores      ", " ".join(f"{x:+.2f}" for x in four[0].tolist()))
print("advantages  ", " ".join(f"{x:+.2f}" for x in rloo_advantages(four)[0]))
for name, x in (
    ("scores less the mean of all", four - groups_scores.mean()),
    ("advantages", rloo_advantages(four)),
):
    print(f"{name:28} mean square {x.square().mean():.2f}")

# %% [markdown]
# A baseline of three answers is noisy: it takes away what prompts differ by,
# and adds the noise of the others. Whether that pays depends on how much the
# prompts differ. What it never does is push in the wrong direction on average.
#
# GRPO goes on: it divides by the group's own spread.

# %% tags=["exercise"]
from minipalm.rlhf.group import grpo_advantages

# %% [markdown]
# **Predict.** Rewards are 1 for a right answer, else 0. Which prompts push the
# policy hardest: those solved half of the time, or those that are nearly never
# solved? Does the division change the order?

# %% tags=["classroom"]
ways = {"RLOO": rloo_advantages, "GRPO": grpo_advantages}
interactive(lambda G: who_pushes(ways, G), G=(2, 32, 2, 8))

# %% [markdown]
# The order stays, the edges are lifted: RLOO's push goes with the variance of
# the rewards, GRPO's with its root. So prompts that are almost never solved,
# or almost always, weigh more than their reward asks for. At both ends all
# answers are equal, and a group teaches nothing.

# %% [markdown]
# ## Without training
#
# Ask n times, and keep the answer that the reward model likes best. Nothing
# is trained, and the answers are no longer those of the policy. How far is
# that from it? Rank all answers from 0 to 1; the best of n is likely near 1.

# %% tags=["exercise"]
from minipalm.rlhf.best_of_n import best_of_n_kl

# %% [markdown]
# What does best of n *get*? You have 64 answers to a prompt. Taking the first
# n of them wastes the rest, and the best of all 64 is best of 64. In how many
# of all choices of n answers is the i-th best one kept?

# %% tags=["define"]
from minipalm.rlhf.best_of_n import log_choose

# %% tags=["exercise"]
from minipalm.rlhf.best_of_n import best_of_n_estimate

# %% tags=["classroom"]
golds = gold_of(answers_of(groups.tokens, tokenizer))
gold = torch.tensor([one.total for one in golds]).view(16, 64)
print(" n    KL   proxy    gold   gold, first n only")
for n in (1, 4, 16, 64):
    rows_of = list(zip(groups_scores, gold, strict=True))
    proxy = sum(best_of_n_estimate(s, s, n) for s, _ in rows_of) / 16
    true = sum(best_of_n_estimate(s, g, n) for s, g in rows_of) / 16
    first = sum(g[s[:n].argmax()] for s, g in rows_of) / 16
    line = f"{best_of_n_kl(n):5.2f}   {proxy:+.2f}   {true:6.2f}"
    print(f"{n:2} {line}   {first:6.2f}")

# %% [markdown]
# The last column is right on average, too, but it jumps about: it has thrown
# most answers away.

# %% [markdown]
# ## What each of them costs
#
# | | policy | reference | reward model | critic |
# |---|---|---|---|---|
# | best of n | answers n times | | reads | |
# | PPO | answers, learns | reads | reads | reads, learns |
# | RLOO, GRPO | answers, learns | reads | reads | |
# | offline PPO | reads, learns | reads | once, for the log | reads, learns |
# | DPO | learns | reads once | | |
#
# To read is to go through an answer that is there, all tokens at once.
#
# **Predict.** Who spends the least time on an answer that it learns from? What
# does leaving out the critic save: time, memory, or both? Each method begins
# at the reference, learns, is judged and kept.


# %%
def judged(policy: PaLM) -> dict[str, float | None]:
    """What answers to random prompts are worth: everybody's to the same."""
    generator = torch.Generator().manual_seed(seed + 2)  # not the log's
    n = preset.eval_samples
    rows = torch.randint(len(texts), (n,), generator=generator)
    told = answer(
        policy,
        tokenizer,
        [texts[row] for row in rows],
        generator=generator,
        **sizes,
    )
    size = preset.ppo.micro_batch or 256
    return judge(told, policy, reference, reward_model, size).row()


costs: dict[str, dict] = {"sft": {"updates": 0, **judged(reference)}}


# %%
def compare(
    name: str,
    config: object,
    size: int,
    train: Callable[[PaLM, Run], None],
    **read: str,
) -> None:
    """Train a policy, judge it, keep both, and make room for the next.

    size: answers of an update. read: what it learns from besides the prompts.
    """
    run = run_of(name, method=asdict(config), **read)
    part = f"{stage}/{name}"
    if not (run.folder / "done.json").exists():
        policy = fine_tuned(load_policy(*left), preset.machine, reference)
        resumed, begin = bool(run.checkpoints()), time.process_time()
        train(policy, run)
        gc.collect()  # a critic may refer to itself
        wall = None if resumed else time.process_time() - begin
        told = {**cost(run.metrics(), size, wall), **judged(policy)}
        kept = {"policy": policy}
        finish_stage(out, part, kept, tokenizer, start="07_sft", **told)
        run.forget()
        del policy, kept
    costs[name] = stage_summary(out, part)
    gc.collect()


# %% [markdown]
# A method is then a call: what it learns from, and which networks it needs.


# %%
def by_log(policy: PaLM, run: Run) -> None:
    """Offline PPO: the log, reference and critic."""
    train_offline(
        policy,
        reference,
        place(critic_from_reward_model(scorer), preset.machine),
        log,
        methods.offline,
        run,
        seed,
        kl_coef=methods.offline_kl_coef,
        checkpoint_every=preset.ppo_checkpoint_every,
    )


def by_pairs(policy: PaLM, run: Run) -> None:
    """DPO: the log's pairs, and what the reference says of them."""
    config, every = methods.dpo, preset.checkpoint_every
    seen = config.optim.steps * config.optim.batch_size
    pairs = pairs_of_log(log)[:seen]
    train_dpo(policy, reference, pairs, config, run, seed, every)


# %%
def by_groups(policy: PaLM, run: Run, config: GroupConfig) -> None:
    """RLOO or GRPO: fresh answers, their scores, and the reference."""
    train_group(
        policy,
        reference,
        reward_model,
        asked,
        asked_mask,
        config,
        run,
        seed,
        max_response=preset.max_response,
        eos_id=tokenizer.eos_id,
        checkpoint_every=preset.ppo_checkpoint_every,
    )


# %%
read = {"log": fingerprint(path)}
size = methods.offline.ppo.batch_size
compare("offline", methods.offline, size, by_log, **read)
size = 2 * methods.dpo.optim.batch_size
compare("dpo", methods.dpo, size, by_pairs, **read)
for config in (methods.rloo, methods.grpo):
    train = partial(by_groups, config=config)
    compare(config.method, config, config.batch_size, train)

# %% [markdown]
# PPO has a stage of its own, lesson 11. Here a few of its updates, to compare.


# %% tags=["classroom"]
def by_ppo(policy: PaLM, run: Run) -> None:
    """PPO: fresh answers, and all four networks."""
    train_ppo(
        policy,
        reference,
        place(critic_from_reward_model(scorer), preset.machine),
        reward_model,
        asked,
        asked_mask,
        few_ppo,
        run,
        seed,
        kl_coef=few_ppo.kl_coefs[0],
        max_response=preset.max_response,
        eos_id=tokenizer.eos_id,
    )


few_ppo = replace(preset.ppo, iterations=methods.rloo.iterations)
compare("ppo", few_ppo, few_ppo.batch_size, by_ppo)

# %%
# in batch, where stage 11 has run
before = Path(out, "11_ppo")
if "ppo" not in costs and (before / "done.json").exists():
    name = f"beta-{preset.ppo.kl_coefs[0]:g}"
    trained = load_policy(out, "11_ppo", preset, tokenizer, name)
    by_ppo = place(trained, preset.machine, trained=False)
    told = cost(read_metrics(before / name), preset.ppo.batch_size)
    costs["ppo"] = {**told, **judged(by_ppo)}
    del trained, by_ppo

# %% [markdown]
# Best of n learns nothing. It asks the reference n times, and pays the reward
# model's time for every answer.

# %%
n, questions = methods.best_of, 32
some = torch.randint(len(texts), (questions,), generator=draw)
told = answer(
    reference,
    tokenizer,
    [texts[row] for row in some.repeat_interleave(n)],
    generator=draw,
    **sizes,
)
size = preset.ppo.micro_batch or 256
scores = score_answers(reward_model, told, size).view(questions, n)


def of_the_best(values: Tensor) -> float:
    """Mean over the questions of what stands beside the best score."""
    pairs = zip(scores, values.view(questions, n), strict=True)
    best = [best_of_n_estimate(*both, n) for both in pairs]
    return torch.stack(best).mean().item()


# %%
row = {"n": n, "updates": 0, "kl": best_of_n_kl(n)}
row["proxy"] = of_the_best(scores)
if (golds := gold_of(told)) is not None:
    gold = torch.tensor([parts.total for parts in golds])
    row["gold"] = of_the_best(gold)
costs["best_of_n"] = row

# %%
print(costs_table(costs))
write_text(Path(out, stage, "methods.json"), json.dumps(costs, indent=1))
finish_stage(out, stage, {}, tokenizer, scale=scale, seed=seed)
costs_figure(costs)

# %% [markdown]
# One run of a few updates: a third more or less means nothing, and RLOO and
# GRPO do the same work. DPO needs the reference once for each pair, and nobody
# has to answer. Offline PPO has its answers and keeps the critic. RLOO and
# GRPO leave it out: it neither reads nor learns, and its gradients and Adam's
# memory of it need no room.
#
# The bars leave out how the log came about; they show one pass over it.

# %% [markdown]
# **Predict.** The same at full size: billions of weights in the policy, of
# which only thin adapters learn, and a fifth as many in the critic, which all
# learn. What takes longest? Who needs the most memory?

# %% tags=["classroom"]
full = json.loads(Path("data/results/full_methods.json").read_text("utf-8"))
for method, row in full["methods"].items():
    if row.get("memory"):
        print(f"{method:8} {row['memory']:.0f} GiB of a {full['gpu']}")
costs_figure(full["methods"])

# %% [markdown]
# Learning, in all of them: it goes through each answer forwards and back, and
# in PPO through two networks. *Policy reads* is new: the sampler computes in
# another order, which in 16 bits makes other numbers, so the policy is asked
# again (lesson 16).

# %% [markdown]
# Policy and reference share their weights there, which lie in memory once.
# What a critic adds is its own weights, their gradients and Adam's two numbers
# for each, since all of it learns: PPO and offline PPO need the most. (DPO
# could do with less: here the reward model stays, to judge it.) The networks
# had random weights, so this says nothing about quality: [how it was
# measured](../docs/full_size.md).

# %% [markdown]
# ## All of them
#
# Every method begins with the same SFT policy, is judged by the same reward
# model, and may sample the same number of answers. Five seeds, each with data,
# SFT and reward model of its own. `python -m minipalm.course.methods` makes
# the file again.
#
# **Predict.** At which n does choosing catch up with training? Look at gold,
# then at the proxy.

# %% tags=["classroom"]
print(f"{results['settings']['answers']} answers for every method")
interactive(
    lambda doublings, measure: yardstick(results, doublings, measure),
    doublings=(0, 6, 1, 4),
    measure=["gold", "proxy"],
)

# %% [markdown]
# The slider doubles n. On gold choosing passes GRPO and offline PPO; the
# others stay above it, by no more than their bars. On the proxy, which does
# the choosing, PPO and RLOO stay above it, too. Best of n gets much for few
# nats, and pays again for every question that anybody ever asks; training pays
# once.
#
# **Predict.** Whose mean is best? And would you bet on the order of the first
# three?

# %% tags=["classroom"]
print(methods_table(results))

# %% [markdown]
# Mean ± standard deviation over seeds; `cpu` is processor seconds of all that
# a method takes, its log included. The spread of a column is mostly that of
# the *worlds*: some reward models are better than others, for every method.
# The last column compares within a seed, and gives a 95-percent interval.

# %% tags=["classroom"]
against_ppo(results)

# %% [markdown]
# A dot is a seed. Look for bars that cross the dashed line: for those, five
# seeds cannot say who is better, and a table of means alone would have made
# an order out of nothing.

# %% [markdown]
# ## What you may not conclude
#
# - **That GRPO is worse.** It runs with the dials of PPO and RLOO; only its β
#   was set for it. Its bar ends near the line, and five bars were looked at.
# - **That equal KL was spent.** It was matched for PPO, RLOO, GRPO and DPO, on
#   other seeds, and not well on these: read the column. Offline PPO stops
#   nearer to SFT because its log demands it.
# - **That DPO does as well with people's labels.** Here the reward model gave
#   them, and it never contradicts itself.
# - **Anything about size.** One world, short answers, a gold reward of words.
# - That best of n costs little: its seconds come again with every question.

# %% [markdown]
# ## Break it
#
# **Take the guard away**, and let the policy learn as fast as online PPO does.
# **Predict** the KL that the log reports, once the policy gives answers that
# are not in the log.


# %% tags=["classroom"]
def learn_from_log(least_ess: float, updates: int = 24) -> list[dict]:
    """PPO from the log; every fourth update the policy is asked as well."""
    fast = replace(preset.ppo, policy_lr=1.4e-3)
    policy = copy.deepcopy(reference).requires_grad_(True)
    critic = critic_from_reward_model(reward_model).requires_grad_(True)
    optimizers = adamw(policy), adamw(critic)
    set_lr(optimizers[0], fast.policy_lr)
    set_lr(optimizers[1], fast.value_lr)
    order, found = torch.Generator().manual_seed(seed), []
    price = {"config": fast, "kl_coef": 0.15, "weight_limit": 5.0}
    for step in range(1, updates + 1):
        some = log[batch_rows(len(log), 128, step, seed)]
        rollout, seen = replay(policy, reference, critic, some, **price)
        if seen["ess"] >= least_ess:
            ppo_update(policy, critic, rollout, *optimizers, fast, order)
        if step % 4 == 0:
            row = examine(policy)
            real = {"asked_kl": row["kl"], "asked_gold": row["gold"]}
            found.append({"step": step, **seen, **real})
    return found


without_guard({"no guard": learn_from_log(0.0), "guard": learn_from_log(0.1)})

# %% [markdown]
# Without a guard the policy runs away, and the log, dotted, says that it is
# near. No weight speaks of answers that nobody gave; where all weights fall
# towards 0 the estimated KL may even be negative. The guard stops late, but it
# stops. Only the effective sample size told you in time.
#
# **Divide by nothing.** All answers of a group are right. Leave the small
# number out of GRPO's division:

# %% tags=["classroom"]
equal = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 1.0, 0.0, 1.0]])
centred = equal - equal.mean(1, keepdim=True)
print("without:", (centred / equal.std(1, keepdim=True))[0].tolist())
print("with:   ", grpo_advantages(equal)[0].tolist())
almost = torch.tensor([[1.0, 1.0, 1.0, 1.01]])
print(
    "almost equal:", [round(x, 2) for x in grpo_advantages(almost)[0].tolist()]
)
print(
    "RLOO:        ", [round(x, 2) for x in rloo_advantages(almost)[0].tolist()]
)

# %% [markdown]
# One group without a difference makes every weight of the network NaN. With
# the small number a difference of nearly nothing, which may be the reward
# model's noise, counts as much as a true one: that is the division itself.

# %% [markdown]
# ## What changed
#
# You know what each part of PPO buys, since you have left each one out: fresh
# answers buy sight, a critic buys less noise with one answer a prompt, a
# reward model buys labels for new answers. And you can read a table of
# methods: by its spread first.

# %% [markdown]
# ## What real systems do differently
#
# - Large runs are always somewhat offline: the sampler is some updates behind
#   the trainer. Staleness is bounded and watched, as here.
# - DPO is run again on fresh pairs, several times: that brings sight back.
# - GRPO and RLOO are mostly used with rewards that a program checks, such as
#   tests or the result of a sum. Groups that are all right or all wrong are
#   filtered out.
#
# ## Left out on purpose
#
# - V-trace and Retrace, which limit weights token by token. Hilton, Cobbe and
#   Schulman treat PPO's own way of being offline.
# - DPO's relatives (IPO, KTO, SimPO). TRL has them side by side.
# - Dr. GRPO's constant length: `grpo_loss` has it as an argument.

# %% [markdown]
# ## Further reading
#
# - Rafailov, Sharma, Mitchell, Ermon, Manning and Finn 2023, *Direct
#   preference optimization*, arXiv 2305.18290: section 4 and equation 7.
# - Ahmadian et al. 2024, *Back to basics*, arXiv 2402.14740: RLOO.
# - Shao et al. 2024, *DeepSeekMath*, arXiv 2402.03300, section 4.1: GRPO.
# - Liu et al. 2025, *Understanding R1-Zero-like training*, arXiv 2503.20783:
#   against the two divisions.
# - Gao, Schulman and Hilton 2022, *Scaling laws for reward model
#   overoptimization*, arXiv 2210.10760: best of n as a yardstick.
# - Hilton, Cobbe and Schulman 2021, *Batch size-invariance for policy
#   optimization*, arXiv 2110.00641.

# %% tags=["classroom"]
progress()

# %% [markdown]
# # 11 · PPO
#
# You improve the policy. It answers, the reward model scores, and what went
# better than expected becomes likelier: a little at a time, and not too far
# from where it began.
#
# Everything so far was for this hour. At its end your own loop has trained a
# policy, and a judge who never saw the reward model says whether its answers
# are better.

# %% tags=["parameters"]
scale = "toy"
seed = 0
out = "runs/toy"
prompts = "data/prompts.jsonl"

# %%
import copy
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from minipalm import plot
from minipalm.clock import Clock
from minipalm.config import PPOConfig, get_preset
from minipalm.course import ROOT
from minipalm.data.batches import pad_left, prompt_ids
from minipalm.data.datasets import check_prompt_lengths, read_prompts
from minipalm.data.files import fingerprint
from minipalm.evaluate.judge import gold_of
from minipalm.model.palm import PaLM
from minipalm.model.place import beside, fine_tuned, place
from minipalm.parallel import of_all, share, summed
from minipalm.rlhf.answers import answer, answers_of
from minipalm.rlhf.kl import KLController, k3
from minipalm.rlhf.logprobs import (
    entropy,
    masked_mean,
    response_logits,
    token_logprobs,
)
from minipalm.rlhf.ppo import PPOStats, Total, mean_stats
from minipalm.rlhf.reward import RewardModel, check_pooling, scalar_head
from minipalm.rlhf.rollout import Reward, Rollout, collect
from minipalm.rlhf.sampling import Sampler
from minipalm.train.networks import (
    load_policy,
    load_reward_model,
    tokenizer_of,
)
from minipalm.train.optim import adamw, lr_scale, set_lr
from minipalm.train.ppo import rollout_metrics
from minipalm.train.run import Run, read_metrics, steps_left
from minipalm.train.stage import finish_stage, result_fingerprint

# %% tags=["classroom"]
from minipalm.course.check import check, progress
from minipalm.course.classroom import start_afresh
from minipalm.evaluate.judge import judge
from minipalm.evaluate.report import MEASURES
from minipalm.evaluate.statistics import win_rate
from minipalm.plot.interactive import interactive
from minipalm.plot.story import story
from minipalm.plot.surrogate import broken_runs, clipped_token

# %%
os.chdir(ROOT)  # paths are from the repository's folder

# %% tags=["classroom"]
start_afresh(out, "11_ppo", scale)

# %%
preset = get_preset(scale)
tokenizer = tokenizer_of(out)
left = out, "07_sft", preset, tokenizer
reference = place(load_policy(*left), preset.machine, trained=False)
scorer = load_reward_model(out, preset, tokenizer)
reward_model = place(scorer, preset.machine, trained=False)

# %%
records = read_prompts(prompts)
check_prompt_lengths(records, tokenizer, preset.max_prompt)
asked = [record.prompt for record in records]
ids, mask = pad_left(
    [prompt_ids(tokenizer, p) for p in asked], preset.max_prompt
)

# %% [markdown]
# ## What is maximised
#
# $$r_t = -\beta\,(\log \pi(y_t) - \log \pi_\text{ref}(y_t)) +
# \mathbb{1}[t = T]\,\text{score}$$
#
# The score comes at the end; at every token a price β is paid for each nat
# that the policy $\pi$ has moved away from the **reference**: the fine-tuned
# policy, frozen. Lesson 10 turns these rewards into advantages $A_t$: which
# tokens went better than expected.

# %% [markdown]
# ## One token
#
# A token with $A > 0$ should become likelier. How much likelier? The answers
# were sampled by $\pi_\text{old}$, the policy before this update. The further
# we move, the less they say about the policy that we have then.
#
# So PPO watches the ratio $\rho = \pi(y_t) / \pi_\text{old}(y_t)$, and stops
# pushing a token that has gone far enough:
#
# $$L_\pi = -\min(\rho A,\ \text{clip}(\rho, 1-\epsilon, 1+\epsilon) A)$$
#
# **Predict**, before you write it: which of these four tokens are still told
# something?
#
# | | ρ far above 1 | ρ far below 1 |
# |---|---|---|
# | A > 0 | ? | ? |
# | A < 0 | ? | ? |

# %% tags=["exercise"]
from minipalm.rlhf.ppo import policy_loss

# %% [markdown]
# Move the token. Watch the arrow: the way gradient descent pushes it.


# %% tags=["classroom"]
def one_token(ratio: float, advantage: float, clip: float):
    """Where a token stands on the curve of your loss."""
    return clipped_token(policy_loss, ratio, advantage, clip)


interactive(
    one_token,
    ratio=(0.4, 1.6, 0.05, 1.35),
    advantage=(-2.0, 2.0, 0.25, 1.0),
    clip=(0.05, 0.5, 0.05, 0.2),
)

# %% [markdown]
# The curve is flat on one side only. A token that has moved the *wrong* way,
# however far, is always called back: that is what the minimum is for. And
# the clip is no wall: it ends the pushing, other tokens may still carry this
# one on.
#
# ## The critic's loss
#
# $$L_V = \tfrac12 \max\big((V - R)^2,\ (V_\text{clip} - R)^2\big),\quad
# V_\text{clip} = V_\text{old} + \text{clip}(V - V_\text{old}, -\epsilon,
# \epsilon)$$

# %% tags=["exercise"]
from minipalm.rlhf.ppo import value_loss

# %% [markdown]
# ## Four networks
#
# - The **policy** answers. It learns.
# - The **reference** is the policy as it was. Frozen.
# - The **reward model** scores whole answers. Frozen.
# - The **critic** guesses at every token what the score will be. It learns.
#
# The critic judges token $t$ from what stands *before* it. If it had seen the
# token, it would know already how good it was, and nothing would be left to
# praise.

# %% tags=["exercise"]
from minipalm.rlhf.critic import Critic

# %% [markdown]
# A critic that knows nothing deals credit at random, and the first updates do
# what it says. So it starts as a copy of the reward model, whose units it has
# to speak.

# %% tags=["exercise"]
from minipalm.rlhf.critic import critic_from_reward_model

# %% tags=["classroom"]
critic = critic_from_reward_model(reward_model).requires_grad_(True)
rollout = collect(
    reference,
    reference,
    critic,
    reward_model,
    ids[: preset.ppo.batch_size],
    mask[: preset.ppo.batch_size],
    config=preset.ppo,
    max_response=preset.max_response,
    eos_id=tokenizer.eos_id,
    kl_coef=preset.ppo.kl_coefs[0],
    generator=torch.Generator().manual_seed(seed),
)
last = rollout.mask.sum(1) - 1
guesses = rollout.values[torch.arange(len(rollout)), last]
for score, guess in list(zip(rollout.scores, guesses, strict=True))[:4]:
    print(f"score {score:+.2f}   V before the last token {guess:+.2f}")

# %% [markdown]
# ## One rollout, several steps
#
# Sampling is dear, so each batch of answers is used for several epochs of
# minibatches.

# %% tags=["exercise"]
from minipalm.rlhf.ppo import minibatches

# %% [markdown]
# For a minibatch, two backward passes add up gradients. This part is given.
# Read it: whose gradient goes where, and what is `total` for?

# %% tags=["define"]
from minipalm.rlhf.ppo import minibatch_gradients

# %% [markdown]
# Your turn: the steps. Nothing here is hard, and nothing gives an error when
# it is wrong. Count steps, and think of what one minibatch may leave behind
# for the next.

# %% tags=["exercise"]
from minipalm.rlhf.ppo import ppo_update

# %% [markdown]
# **Predict.** What is the mean ratio in the very first step of an update? How
# many tokens are clipped there? And when the same answers are used again and
# again?

# %% tags=["classroom"]
for epochs in (1, 2, 4, 8):
    policy = copy.deepcopy(reference).requires_grad_(True)
    learner = critic_from_reward_model(reward_model).requires_grad_(True)
    optimizers = adamw(policy, eps=1e-5), adamw(learner, eps=1e-5)
    for optimizer in optimizers:
        set_lr(optimizer, preset.ppo.policy_lr)
    whole = replace(preset.ppo, epochs=epochs, minibatch_size=len(rollout))
    generator = torch.Generator().manual_seed(seed)
    stats = ppo_update(policy, learner, rollout, *optimizers, whole, generator)
    print(
        f"{stats.steps} steps: ratio {stats.ratio:.4f}, "
        f"clipped {stats.clip_fraction:.1%}, KL {stats.approx_kl:.4f} nats"
    )

# %% [markdown]
# One step: the policy is still the one that sampled, so every ratio is 1. If
# yours is not, sampling and training disagree about a temperature, a mask or
# a position: the first thing to look at in any PPO, and the cheapest.
#
# ## The loop
#
# Answer, score, improve, again.

# %% tags=["define"]
from minipalm.train.ppo import train_ppo

# %% [markdown]
# ## Train
#
# β is the price of a nat. Where several are given, each gets a run of its own
# from the same start; the first is the one that you keep.
#
# **Predict.** With β = 0 nothing holds the policy near the reference. What
# happens to the reward model's score? And to the quality that the score
# stands for?


# %%
def gold_metric(rollout: Rollout) -> dict[str, float]:
    """The mean gold reward of an iteration's answers, where there is one."""
    gold = gold_of(answers_of(rollout.tokens, tokenizer))
    if gold is None:
        return {}
    return {"gold": sum(parts.total for parts in gold) / len(gold)}


def run_of(name: str, kl_coef: float) -> Run:
    """The folder of a run, which remembers what the run was made from."""
    return Run(
        f"{out}/11_ppo/{name}",
        seed=seed,
        kl_coef=kl_coef,
        policy=asdict(reference.config),
        critic=asdict(reward_model.trunk.config),
        ppo=asdict(preset.ppo),
        tokenizer=tokenizer.fingerprint,
        prompts=fingerprint(prompts),
        sizes=[preset.max_prompt, preset.max_response],
        start=[
            result_fingerprint(out, s) for s in ("07_sft", "08_reward_model")
        ],
    )


# %% [markdown]
# The gold reward is only looked at; nobody learns from it. While we are
# looking: keep a copy of the weights now and then, to read later what the
# policy said on the way.

# %% tags=["classroom"]
snapshots: dict[str, dict[int, dict[str, Tensor]]] = {}
every = max(preset.ppo.iterations // 8, 1)
only_gold, calls = gold_metric, {}


def gold_metric(rollout: Rollout) -> dict[str, float]:
    """The same, and a copy of the weights at every few iterations."""
    name, policy = list(policies.items())[-1]
    calls[name] = calls.get(name, 0) + 1
    if calls[name] % every == 0:
        weights = {k: x.clone() for k, x in policy.state_dict().items()}
        snapshots.setdefault(name, {})[calls[name]] = weights
    return only_gold(rollout)


# %% [markdown]
# Two runs, one after the other, a minute or two in all; the bars show loss,
# reward and KL. Meanwhile, write down what you expect of β = 0.

# %%
policies = {}
for kl_coef in preset.ppo.kl_coefs:
    name = f"beta-{kl_coef:g}"
    start = load_policy(*left)
    policies[name] = fine_tuned(start, preset.machine, reference)
    del start
    critic = place(critic_from_reward_model(scorer), preset.machine)
    train_ppo(
        policies[name],
        reference,
        critic,
        reward_model,
        ids,
        mask,
        preset.ppo,
        run_of(name, kl_coef),
        seed,
        kl_coef=kl_coef,
        max_response=preset.max_response,
        eos_id=tokenizer.eos_id,
        checkpoint_every=preset.ppo_checkpoint_every,
        measure=gold_metric,
    )

# %%
finish_stage(
    out,
    "11_ppo",
    policies,
    tokenizer,
    start="07_sft",
    scale=scale,
    seed=seed,
    kl_coefs=list(preset.ppo.kl_coefs),
)

# %%
kept = next(iter(policies))
metrics = {
    name.removeprefix("beta-"): read_metrics(f"{out}/11_ppo/{name}")
    for name in policies
}
plot.ppo_dashboard(metrics)

# %% [markdown]
# Read it as a doctor would. The reward should rise and flatten, the KL settle
# where β holds it, entropy sink slowly, few tokens be clipped, and the critic
# explain more than it did. A curve that runs off tells you where to look.
#
# Now the question of the prediction. Orange is β = 0.

# %% tags=["classroom"]
figure = None
if all("gold" in row for rows in metrics.values() for row in rows):
    named = {
        f"β = {beta}" if float(beta) else "unpenalised": rows
        for beta, rows in metrics.items()
    }
    figure = plot.loss_curves(named, unit="points of 10", key="gold")
figure

# %% [markdown]
# ## Read the story
#
# The same prompts, asked of the policy at every stage. Green words are of the
# mood that was asked for, struck-out ones of another; the small number is the
# answer's reward. Move the slider slowly, and change β.

# %% tags=["classroom"]
reader = copy.deepcopy(reference)
few = asked[:: len(asked) // 6 + 1]


def tell(name: str, iteration: int):
    """Answers, and their rewards, of a policy at an iteration."""
    kept = {0: reference.state_dict(), **snapshots.get(name, {})}
    reader.load_state_dict(kept[max(k for k in kept if k <= iteration)])
    told = answer(
        reader,
        tokenizer,
        few,
        max_prompt=preset.max_prompt,
        max_response=preset.max_response,
        generator=torch.Generator().manual_seed(seed),
    )
    gold = gold_of(told)
    if gold is None:
        return told.texts, reward_model(*told.tokens).tolist()
    return told.texts, [parts.total for parts in gold]


# %% tags=["classroom"]
def page(iteration: int, run: str) -> str:
    then = f"iteration {iteration}", *tell(run, iteration)
    return story(few, [("before PPO", *tell(run, 0)), then])


steps = len(snapshots.get(kept, {})) * every
interactive(page, iteration=(0, steps, every, steps), run=list(policies))

# %% [markdown]
# ## Is it better?
#
# Many answers of each policy, judged from every side. The win rate compares
# answers to the same prompt; its interval says how sure we are.


# %% tags=["classroom"]
def judged(policy: PaLM):
    """What a policy's answers to the same random prompts are worth."""
    generator = torch.Generator().manual_seed(seed)
    n = preset.eval_samples
    rows = torch.randint(len(asked), (n,), generator=generator)
    told = answer(
        policy,
        tokenizer,
        [asked[row] for row in rows],
        max_prompt=preset.max_prompt,
        max_response=preset.max_response,
        generator=generator,
    )
    return judge(told, policy, reference, reward_model)


every_one = {"SFT": judged(reference)}
every_one |= {name: judged(one) for name, one in policies.items()}

# %% tags=["classroom"]
rows = {name: one.row() for name, one in every_one.items()}
print(" " * 20 + "".join(f"{name:>12}" for name in rows))
for key, (label, form) in MEASURES.items():
    values = [row[key] for row in rows.values()]
    if None not in values:
        shown = "".join(f"{form.format(value):>12}" for value in values)
        print(f"{label:20}{shown}")
if every_one["SFT"].gold is not None:
    sft = every_one.pop("SFT").gold_totals()
    for name, one in every_one.items():
        rate, low, high, _ = win_rate(one.gold_totals(), sft)
        interval = f"{low:.1%} to {high:.1%}"
        print(f"{name} wins against SFT: {rate:.1%} ({interval})")

# %% [markdown]
# The first column of PPO is yours: your losses, your critic, your loop. The
# second has the higher proxy reward. Compare its gold, and read its answers
# in the story: it has learnt what the *reward model* likes.
#
# ## Break it
#
# **Take the clip away**, and use each batch more often. **Turn the sign** of
# the loss. A short run of each; the loop is the same, only the loss differs.


# %% tags=["classroom"]
def short_run(loss, iterations: int, epochs: int):
    """PPO with another loss of (logits, minibatch); score, KL, entropy."""
    dials = replace(preset.ppo, epochs=epochs)
    policy = copy.deepcopy(reference).requires_grad_(True)
    critic = critic_from_reward_model(reward_model).requires_grad_(True)
    optimizers = adamw(policy, eps=1e-5), adamw(critic, eps=1e-5)
    set_lr(optimizers[0], dials.policy_lr)
    set_lr(optimizers[1], dials.value_lr)
    generator, told = torch.Generator().manual_seed(seed), []
    for step in range(1, iterations + 1):
        rollout = sample(policy, critic, dials, generator)
        told.append(
            {"step": step, **rollout_metrics(rollout, tokenizer.eos_id)}
        )
        for some in minibatches(rollout, dials, generator):
            loss(response_logits(policy, *some.tokens), some).backward()
            error = critic(*some.tokens), some.values, some.returns
            value_loss(*error, some.mask, dials.value_clip).backward()
            for model, optimizer in zip((policy, critic), optimizers):
                clip_grad_norm_(model.parameters(), dials.grad_clip)
                optimizer.step()
                optimizer.zero_grad()
    return told


# %% tags=["classroom"]
def sample(policy, critic, dials, generator):
    rows = torch.randint(len(asked), (dials.batch_size,), generator=generator)
    return collect(
        policy,
        reference,
        critic,
        reward_model,
        ids[rows],
        mask[rows],
        config=dials,
        max_response=preset.max_response,
        eos_id=tokenizer.eos_id,
        kl_coef=dials.kl_coefs[0],
        generator=generator,
    )


def right(logits: Tensor, some: Rollout) -> Tensor:
    logprobs = token_logprobs(logits, some.responses)
    return policy_loss(logprobs, some.logprobs, some.advantages, some.mask)


def not_clipped(logits: Tensor, some: Rollout) -> Tensor:
    ratio = (token_logprobs(logits, some.responses) - some.logprobs).exp()
    return masked_mean(-ratio * some.advantages, some.mask)


# %% tags=["classroom"]
runs = {
    "as it is": short_run(right, 10, epochs=8),
    "no clip": short_run(not_clipped, 10, epochs=8),
    "sign turned": short_run(lambda *two: -right(*two), 10, epochs=2),
}
broken_runs(runs, {"score": "reward, sd", "kl": "KL, nats/answer"})

# %% [markdown]
# Without the clip the reward lurches and the KL runs ahead: the policy pays
# for moves that these answers could not justify. With the sign turned,
# nothing complains: no error, a smooth loss, and a policy that becomes worse
# with great care.
#
# **Turn the sign of the entropy.** A well-known library had this for about
# 32 months: a bonus for keeping one's options open, added where it should be
# taken off. **Predict**: what would you have seen in the reward?


# %% tags=["classroom"]
def with_entropy(sign: int):
    """The right loss, and sign · entropy taken off."""

    def loss(logits: Tensor, some: Rollout) -> Tensor:
        bonus = masked_mean(entropy(logits), some.mask)
        return right(logits, some) - sign * 0.1 * bonus

    return loss


runs = {
    "bonus": short_run(with_entropy(+1), 14, epochs=2),
    "sign turned": short_run(with_entropy(-1), 14, epochs=2),
}
broken_runs(runs, {"score": "reward, sd", "entropy": "entropy, nats/token"})

# %% [markdown]
# The broken run's reward looks *better*. Only the other curve shows it: the
# policy says the same things ever more surely. A reward that rises proves
# little; a test on a uniform law, whose entropy is $\log V$, proves the sign.

# %% [markdown]
# ## What changed
#
# The policy has learnt what raises the score, near enough to where it began
# that the score still means something. Lesson 12 asks how sure we may be, and
# lesson 13 what happens when the reward is wrong.

# %% [markdown]
# ## What real systems do differently
#
# - The sampler is another program (vLLM, SGLang), whose log-probabilities
#   differ from the trainer's. They are computed anew, or the ratio corrected.
# - Often one epoch an iteration, as for InstructGPT; sometimes an adaptive β
#   (`kl_target`).
# - InstructGPT mixes in pretraining gradients, so that nothing is forgotten.
# - The four networks are sharded or share a trunk through adapters:
#   lesson 16.
#
# ## Left out on purpose
#
# - A value head on the policy's own trunk: cheaper, and the critic's errors
#   then move the policy. CleanRL's `ppo_atari.py` shows trunk, heads and the
#   sum of both losses.
# - Reward clipping and running reward statistics: the reward model has a unit.

# %% [markdown]
# ## Further reading
#
# - Schulman, Wolski, Dhariwal, Radford and Klimov 2017, *Proximal policy
#   optimization algorithms*, arXiv 1707.06347: equation 7 is your loss.
# - Ziegler et al. 2019, *Fine-tuning language models from human preferences*,
#   arXiv 1909.08593, equation 2: the reward with its KL penalty.
# - Ouyang et al. 2022, InstructGPT, arXiv 2203.02155, section 3.5 and
#   appendix C.4.
# - Engstrom et al. 2020, *Implementation matters in deep policy gradients*,
#   arXiv 2005.12729: what the clipped value loss and its like really do.

# %% tags=["classroom"]
progress()

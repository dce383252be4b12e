# %% [markdown]
# # 14 · Debugging RLHF
#
# A wrong line in RLHF rarely crashes. The loss is smooth, the reward may even
# rise. You are a detective today: eight broken runs, their dashboards, and a
# list of suspects.
#
# And you write the tests that would have caught them: short functions that
# refuse what is wrong and let pass what is right. Every bug here has really
# happened, in code that many people used.

# %% tags=["parameters"]
scale = "toy"
seed = 0
out = "runs/toy"
prompts = "data/prompts.jsonl"

# %%
import json
import os
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from minipalm.course import ROOT
from minipalm.course.bugs import (
    BUGS,
    BY_NAME,
    CASES,
    RESULTS,
    Bug,
    cost,
    planted,
    run,
    world_from,
)
from minipalm.plot.detective import METRICS, dashboard, suspect, who_tells
from minipalm.plot.interactive import interactive
from minipalm.rlhf import kl, logprobs, rollout
from minipalm.rlhf.critic import critic_from_reward_model
from minipalm.rlhf.invariants import InvariantError, switched_off
from minipalm.rlhf.logprobs import masked_mean, token_logprobs
from minipalm.rlhf.ppo import policy_loss

# %% tags=["classroom"]
from minipalm.course.bugs import diagnose as who
from minipalm.course.check import check, progress
from minipalm.course.classroom import borrow

os.chdir(ROOT)  # paths are from the repository's folder
borrow(out, ("06_palm", "07_sft", "08_reward_model"), scale)

# %% [markdown]
# ## A bug is one line
#
# A bug here is data: a function of the package, what stands in it, and what
# stood in its place somewhere else.

# %%
for bug in (BY_NAME["kl_sign"], BY_NAME["entropy_sign"]):
    print(f"{bug.name}: {bug.what}\n    {bug.seen}")
    print(
        f"    - {' '.join(bug.old.split())}\n    + {' '.join(bug.new.split())}"
    )

# %% [markdown]
# `planted(bug)` puts it into the package for a while. PPO of lesson 11 was
# run with each, on three seeds; the grey band is six runs without a bug.
#
# ## The dashboards
#
# **Predict**, before you move anything: which curves of a run *must* have a
# certain value in the very first iteration, when nothing has been learnt?
# Write down two.

# %%
results = json.loads(RESULTS.read_text("utf-8"))
GOLD = ("score", "gold")


def overview(case: str):
    """Six numbers of one case."""
    return dashboard(results, case, who)


interactive(overview, case=list(CASES))

# %% [markdown]
# Two that must: the KL is 0, since the policy still *is* the reference. And so
# is the score, up to luck, since its zero is the mean over the reference's
# answers (lesson 08). Look at one number more closely, the band behind it:


# %%
def closely(case: str, metric: str):
    """One number of one case, large."""
    return suspect(results, case, metric, who)


interactive(closely, case=list(CASES), metric=list(METRICS))

# %% [markdown]
# Note a name for each case; the suspects stand in this lesson's last
# exercise. Ask in this order:
#
# 1. What is off in the first iteration? Sampler, trainer and report disagree.
# 2. Is a count wrong? Steps, tokens, rows.
# 3. What drifts later, and who would be *paid* for that drift?
#
# You give your verdict when you have written the tests.

# %% [markdown]
# ## Tests that would have told
#
# Curves come too late: a run must be paid for first. A test asks the same
# question in milliseconds. Two ways to write a bad one: it lets a bug pass,
# or it cries at a right run and is soon switched off. Your checks are tried
# on both kinds of world.

# %% [markdown]
# ### Same weights, same law
#
# Before the first step $\rho = \pi / \pi_\text{old} = 1$ at **every** token;
# before the first update $\pi = \pi_\text{ref}$.

# %% tags=["exercise"]
from minipalm.rlhf.invariants import check_same_law

# %% [markdown]
# Try yours on real answers. `sample` draws some with a bug in the package, and
# the training pass reads them again.

# %%
world = world_from(out, scale, prompts)


def sample(bug: Bug | None):
    """A few answers of the policy, with a bug in the package."""
    critic = critic_from_reward_model(world.reward_model)
    with planted(bug), switched_off():
        return rollout.collect(
            world.policy,
            world.policy,
            critic,
            world.reward_model,
            world.prompts[:16],
            world.prompt_mask[:16],
            config=world.config,
            max_response=world.max_response,
            eos_id=world.tokenizer.eos_id,
            kl_coef=world.config.kl_coefs[0],
            generator=torch.Generator().manual_seed(seed),
        )


def verdict(test: Callable, *args) -> str:
    """What a test says to a world."""
    try:
        test(*args)
    except AssertionError:
        return "refused"
    return "accepted"


# %% [markdown]
# **Predict.** Which of these four does it refuse? One of them draws tokens
# from the likeliest few only.

# %%
for name in (None, "temperature", "off_by_one", "padding_seen", "top_k"):
    bug = BY_NAME.get(name)
    told = sample(bug)
    with planted(bug), torch.no_grad():
        logits = logprobs.response_logits(world.policy, *told.tokens)
        again = token_logprobs(logits, told.responses)
    said = verdict(check_same_law, again, told.logprobs, told.mask)
    print(f"{name or 'no bug':14} {said}")

# %% [markdown]
# `top_k` gets through. Sampler and trainer agree on the probabilities; both
# are wrong about what was drawn. Remember it.
#
# ### Which tokens count?

# %% tags=["exercise"]
from minipalm.rlhf.invariants import check_mask

# %%
told, eos = sample(None), world.tokenizer.eos_id
for name, mask in (
    ("as sampled", told.mask),
    ("ids != pad, with pad = eos", told.mask & (told.responses != eos)),
    ("all places", torch.ones_like(told.mask)),
):
    print(f"{name:27} {verdict(check_mask, told.responses, mask, eos)}")

# %% [markdown]
# The second has cost many people a model that never stops.
#
# ### Who holds whom?

# %% tags=["exercise"]
from minipalm.rlhf.invariants import check_separate

# %% [markdown]
# ### Nothing lost, nothing paid twice
#
# However rewards are shaped, an answer earns its score less the price of its
# KL: $\sum_t r_t = \text{score} - \beta \sum_t (\log \pi - \log
# \pi_\text{ref})$. A law of conservation: it needs no second implementation.

# %% tags=["exercise"]
from minipalm.rlhf.invariants import check_reward_sum

# %% [markdown]
# **Predict.** The KL's sign is turned. Is it seen in the first iteration? And
# after the policy has moved a little?

# %%
beta = 0.1
for moved in (0.0, 0.3):
    law = told.scores, told.logprobs, told.ref_logprobs - moved * told.mask
    for name in (None, "kl_sign", "score_on_padding"):
        with planted(BY_NAME.get(name)):
            rewards = rollout.shape_rewards(*law, told.mask, beta)
        said = verdict(check_reward_sum, rewards, *law, told.mask, beta)
        print(f"moved by {moved}: {name or 'no bug':16} {said}")

# %% [markdown]
# A sign times zero is zero. A test needs a world in which the bug can show:
# that is the art of choosing cases.
#
# ### Right on average
#
# An estimator of the KL is random. With three tokens in the vocabulary you
# can ask all of them, and weight by $\pi$: no samples, no luck.

# %% tags=["exercise"]
from minipalm.rlhf.invariants import check_kl_estimate

# %%
for name, estimate in (
    ("k1", kl.k1),
    ("k2", kl.k2),
    ("k3", kl.k3),
    ("k3, arguments swapped", lambda p, q: kl.k3(q, p)),
):
    print(f"{name:22} {verdict(check_kl_estimate, estimate)}")

# %% [markdown]
# k2 is refused as an *estimate*. As a loss it is the right one of the three:
# lesson 09.
#
# ### What must not matter
#
# What is the right value of a loss on a random batch? Nobody knows. But
# nobody needs to: call it twice, with something changed that must not matter.
# This helper is given.

# %% tags=["define"]
from minipalm.rlhf.invariants import value_and_gradient

# %% tags=["exercise"]
from minipalm.rlhf.invariants import check_blind_to_padding

# %%
for name, loss in (
    ("policy_loss", policy_loss),
    ("a mean over all places", lambda x, old, a, m: -((x - old) * a).mean()),
    ("a masked mean", lambda x, old, a, m: -masked_mean((x - old) * a, m)),
):
    print(f"{name:24} {verdict(check_blind_to_padding, loss)}")

# %% [markdown]
# ## On by default
#
# minipalm asks such questions in every run, of every rollout: the mask, finite
# numbers, the reward's sum, a reference of its own, and for a few answers
# whether the trainer finds the sampler's probabilities. Two iterations with
# each bug:

# %% tags=["classroom"]
caught = {}
for bug in (None, *BUGS):
    name = bug.name if bug else "no bug"
    try:
        run(world, bug, seed, 2)
        print(f"{name:20} –")
    except InvariantError as error:
        caught[name] = str(error)
        print(f"{name:20} {caught[name][:58]}…")
print(f"{len(caught)} of {len(BUGS)} caught")

# %% [markdown]
# An error explains itself: what was expected, and where to look first. And the
# price of asking, for one rollout:

# %% tags=["classroom"]
for name in ("temperature", "reference_is_policy"):
    print(f"{name}: {caught.get(name, 'not caught')}\n")
print(f"{cost(world, seed):+.1%} CPU time with the invariants on")

# %% [markdown]
# ## What no invariant sees
#
# The others keep every law of a single rollout. Some learn from the wrong
# thing, some only look better than they are. Do curves tell? For each bug and
# number, the first iteration that gives it away:

# %% tags=["classroom"]
who_tells(results)

# %% [markdown]
# The score is seldom the first to tell, and of some bugs it never tells. And
# which way does it move? The gold reward, which nobody has at work, beside it:

# %% tags=["classroom"]
ends = {
    name: [sum(one[key][-1] for one in told) / len(told) for key in GOLD]
    for name, told in results.items()
}
for name, (score, gold) in sorted(ends.items(), key=lambda pair: pair[1]):
    print(f"{name:20} score {score:+.2f}   gold {gold:.1f}")

# %% [markdown]
# The highest scores are at the bottom: a policy that nobody holds is praised
# most, and its answers are among the worst. Three bugs above it have a better
# gold than healthy runs: they make the sampler surer, and here the likeliest
# words are mostly right ones. Nobody looks for a bug that looks like progress.

# %% [markdown]
# In the map, rows with few marks are the dangerous ones. For these there are
# tests of single functions: an entropy whose sign is proved on a uniform law,
# a critic whose value must not change with the token that it judges, a
# sampler whose frequencies are counted.

# %% [markdown]
# ## Your verdict
#
# Go back to the dashboards, and name the eight.

# %% tags=["exercise"]
from minipalm.course.bugs import diagnose

# %% [markdown]
# ## Break it
#
# Now you are the culprit. Plant one yourself. What does a run say with the
# invariants on, and what when they are off?

# %% tags=["classroom"]
mine = Bug(
    name="mine",
    where="minipalm.rlhf.logprobs:response_logits",
    old="policy.logits(hidden).float() / temperature",
    new="policy.logits(hidden).float() * 0.5",
    what="",
    seen="",
)
try:
    run(world, mine, seed, 1)
except InvariantError as error:
    print(error, "\n")
with switched_off():
    row = run(world, mine, seed, 1)[0]
print({key: round(row[key], 3) for key in ("score", "kl", "clip_fraction")})

# %% [markdown]
# Change `old` and `new`, or take another function: `gamma * lam` in
# `minipalm.rlhf.gae:gae`, say. If nothing stops the run, you have found a bug
# that needs a test of its own. Write it.
#
# ## The table to keep
#
# | symptom | measure first | test |
# |---|---|---|
# | clipped in the first step | both passes' logprobs, by token | `14.1` |
# | KL not 0 before update 1 | the same, policy and reference | `14.1` |
# | KL huge, all else well | the sum over padding | `check_rollout` |
# | KL 0 for ever | memory of policy and reference | `14.3` |
# | KL negative on average | is the law drawn the one scored | frequencies |
# | KL runs away, answers grow | sign of β·KL in the reward | `14.4` |
# | score flat | where the score lands | `14.4` |
# | score rises too slowly | spread of A between answers | lesson 10 |
# | never stops | is the end in mask and loss | `14.2` |
# | batch shape matters | the loss with more padding; steps | `14.6` |
# | value loss low, little learnt | change a token: does V move | lesson 11 |
# | explained variance stays low | mean of R against the score | lesson 10 |
# | entropy off, score rises | the bonus on a uniform law | lesson 09 |
# | NaN | the first tensor that has one | `check_rollout` |
#
# Top to bottom: the cheapest questions come first.

# %% [markdown]
# ## What changed
#
# You read a dashboard from its first iteration on, and you can turn a symptom
# into a measurement, and a measurement into a test: by a law that must hold,
# by an exact small world, or by a change that must not matter.

# %% [markdown]
# ## What real systems do differently
#
# - Sampler and trainer are different programs in bfloat16, so ratios are
#   never exactly 1: they watch the *distribution* of the difference, and
#   correct for it.
# - Checks run on every rank, and ranks compare checksums of weights.
# - A fixed tiny run is repeated at every commit, its curves compared.
#
# ## Left out on purpose
#
# - Numerical bugs of kernels: tests of gradients in double precision, as in
#   PyTorch's own suite.
# - Bugs of data, such as a leak between training and held-out prompts: lesson
#   12.

# %% [markdown]
# ## Further reading
#
# - Schulman 2020, *Approximating KL divergence*, a blog post: k1, k2, k3.
# - Engstrom et al. 2020, *Implementation matters in deep policy gradients*,
#   arXiv 2005.12729: how much hides in details.
# - Ouyang et al. 2022, InstructGPT, arXiv 2203.02155, appendix C: what a
#   healthy run used.
# - The issues named in `minipalm/course/bugs.py`: read the threads, and how
#   long it took to find each.

# %% tags=["classroom"]
progress()

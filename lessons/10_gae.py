# %% [markdown]
# # 10 · GAE
#
# A score comes at the end of an answer. Which of its words deserve it? You
# build *generalized advantage estimation* (GAE), which says so: first how
# much each word surprised the critic, then how far back a surprise is felt.
# One dial, λ, leads from trusting the critic to trusting the score.
#
# PPO, in the next lesson, does nothing but make praised words likelier. What
# is praised is decided here.

# %% tags=["parameters"]
scale = "toy"
seed = 0
out = "runs/toy"
prompts = "data/prompts.jsonl"

# %%
import copy
import os

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from minipalm.config import get_preset
from minipalm.course import ROOT
from minipalm.data.datasets import read_prompts
from minipalm.plot.credit import (
    bias_and_variance,
    blind_values,
    credit,
    praise_by_score,
    walks,
)
from minipalm.plot.interactive import interactive
from minipalm.rlhf.answers import answer
from minipalm.rlhf.critic import Critic, critic_from_reward_model
from minipalm.train.networks import (
    load_policy,
    load_reward_model,
    tokenizer_of,
)

# %% tags=["classroom"]
from minipalm.course.check import check, progress
from minipalm.course.classroom import borrow

os.chdir(ROOT)  # paths are from the repository's folder
borrow(out, ("06_palm", "07_sft", "08_reward_model"), scale)

# %%
preset = get_preset(scale)
tokenizer = tokenizer_of(out)
policy = load_policy(out, "07_sft", preset, tokenizer)
reward_model = load_reward_model(out, preset, tokenizer)

# %% [markdown]
# ## An answer and its score
#
# The policy of lesson 07 answers; the reward model of lesson 08 scores whole
# answers, in standard deviations of such answers: 0 is the usual one.

# %%
asked = [record.prompt for record in read_prompts(prompts)]


@torch.no_grad()
def ask(n: int, seed: int):
    """n answers, their scores, and as rewards the score at the end."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(asked), (n,), generator=generator)
    told = answer(
        policy,
        tokenizer,
        [asked[row] for row in rows],
        max_prompt=preset.max_prompt,
        max_response=preset.max_response,
        generator=generator,
    )
    # told.tokens: prompts, prompt_mask, responses, mask
    scores, mask = reward_model(*told.tokens), told.tokens[3]
    last = mask.sum(1, keepdim=True) - 1
    rewards = torch.zeros(mask.shape).scatter(1, last, scores[:, None])
    return told, scores, rewards, mask


told, scores, rewards, mask = ask(256, seed)
for n in range(6):
    print(f"{scores[n]:+.2f}  {told.prompts[n]} → {told.texts[n]}")

# %% [markdown]
# One number for a dozen words. If all words of a good answer are praised
# alike, the full stop is praised with the word that earned it; over many
# answers that evens out, slowly. (A *token* here is a word, a full stop or
# the end, `<eos>`.)

# %% [markdown]
# ## The critic
#
# Faster is to ask somebody at every word: *what will the score be?* This is
# the critic, $V_t$: its guess before word $t$ stands there. Ours starts as a
# copy of the reward model that reads unfinished answers; lesson 11 builds it.

# %%
critic = critic_from_reward_model(reward_model)
with torch.no_grad():
    values = critic(*told.tokens)
print("answers and tokens:", tuple(values.shape))
print("before the first word:", values[:3, 0])

# %% [markdown]
# ## A word's surprise
#
# The guess jumps at some words. If the critic is right on average, the jump
# is what the word was worth:
#
# $$\delta_t = r_t + \gamma V_{t+1} - V_t$$
#
# - $r_t$: the reward of word $t$; here 0 but for the last one.
# - $V_{t+1}$: the guess once the word is there. After the last word nothing
#   is to come: 0.
# - $\gamma$: 1 in RLHF, since answers are short.
#
# An answer may also be cut off by a time limit. Then something would have
# followed, and `bootstrap` is the guess of what: $V_{t+1}$ of its last token.
# In RLHF it is `None`.

# %% tags=["exercise"]
from minipalm.rlhf.gae import deltas

# %% [markdown]
# Add up the surprises of an answer. What cancels?

# %%
delta = deltas(rewards, values, mask)
for n in range(3):
    total, first = delta[n].sum(), values[n, 0]
    print(f"sum of δ {total:+.3f}   score − V_0 {scores[n] - first:+.3f}")

# %% [markdown]
# The sum is the score less the first guess, however wild the guesses between:
# each stands in one δ with a plus and in the next with a minus. Such a sum
# *telescopes*. A critic cannot change how much credit there is: it only deals
# it out.

# %% [markdown]
# ## How far back is a surprise felt?
#
# A wrong critic deals wrongly. So let later surprises count for a word, too,
# each step back a little less. The sum is the word's **advantage** $A_t$: how
# much better things went from there on than the critic expected.
#
# $$A_t = \sum_{l \ge 0} (\gamma\lambda)^l\, \delta_{t+l}
#   = \delta_t + \gamma\lambda\, A_{t+1}$$
#
# λ = 0 keeps a word's own surprise. With λ = 1 the sum telescopes again: the
# score less $V_t$.

# %% tags=["exercise"]
from minipalm.rlhf.gae import gae

# %% [markdown]
# **Predict.** λ = 0, and the score comes at the end. Which words get credit
#
# 1. from a critic that says 0 everywhere?
# 2. from ours?
#
# Then turn the dial to 1. Which words change, and which one never does?

# %%
critics = {"from the reward model": values, "says 0": torch.zeros_like(values)}
pieces = [
    [tokenizer.decode([i]) or "<eos>" for i in row[kept].tolist()]
    for row, kept in zip(told.tokens[2], mask, strict=True)  # responses
]


def deal(lam: float, row: int, critic: str):
    """The credit of one answer's words, dealt by your gae."""
    words, score = pieces[row], scores[row].item()
    return credit(gae, words, critics[critic][row, : len(words)], score, lam)


interactive(
    deal, lam=(0.0, 1.0, 0.05, 0.0), row=(0, 11, 1, 2), critic=list(critics)
)

# %% [markdown]
# A critic that says 0 sees one surprise, at the end: with λ = 0 only the last
# token gets credit. Ours has read the answer so far and moves at every word.
# At λ = 1 a word gets all that came after it, its own doing or not. The last
# token has its δ at every λ.

# %% [markdown]
# ## What λ costs
#
# To see who is right we need a world where the truth is known. A walk: each
# token is +1 or −1 by the toss of a coin, the score is their sum. So the true
# advantage of a token is the token itself.

# %%
steps = walks(4000, 12, torch.Generator().manual_seed(seed))
print("a walk:             ", steps[0, :6].int().tolist())
print("V before each token:", blind_values(steps, 0.0)[0, :6].int().tolist())
print("V, half blind:      ", blind_values(steps, 0.5)[0, :6].tolist())

# %% [markdown]
# A half-blind critic sees half of the sum. Your `gae` estimates the
# first token's advantage on every walk. Two ways to be wrong: on average
# (**bias**), and from walk to walk (**variance**). An update averages over N
# answers, which divides the variance by N, and leaves the bias.
#
# **Predict.** You average over N = 64 answers. Which λ is best for a perfect
# critic? For a blind one? And when N grows?


# %%
def costs(blindness: float, answers: int):
    return bias_and_variance(gae, steps, blindness, answers)


interactive(costs, blindness=(0.0, 1.0, 0.1, 0.5), answers=(1, 256, 1, 64))

# %% [markdown]
# The dots are your function, the lines the exact formula. Trust costs bias,
# doubt costs variance. A good critic and few answers ask for a small λ, a
# poor critic and many answers for one near 1. That is why RLHF, with hundreds
# of answers an update and a critic that is still learning, sets λ close to 1.

# %% [markdown]
# ## One unit for all
#
# PPO multiplies these numbers by a step size. Their unit should not matter,
# nor whether this batch was lucky as a whole.

# %% tags=["exercise"]
from minipalm.rlhf.gae import whiten

# %%
advantages, returns = gae(rewards, values, mask)
white = whiten(advantages, mask)
for name, x in (("advantages", advantages), ("whitened", white)):
    print(f"{name:10} mean {x[mask].mean():+.3f}  sd {x[mask].std():.3f}")

# %% [markdown]
# ## Can the critic be trusted?
#
# $R_t = A_t + V_t$ is what the critic should have said. How much of it did it
# foresee?

# %% tags=["exercise"]
from minipalm.rlhf.gae import explained_variance

# %% [markdown]
# Judge it by what really came: returns with λ = 1, the score. (With λ < 1 the
# critic's own guesses are in the returns, and flatter it.)

# %%
_, outcome = gae(rewards, values, mask, lam=1.0)
print(f"as it starts: {explained_variance(values, outcome, mask):.2f}")

# %% [markdown]
# It scores *unfinished* answers as if they were whole, and that is another
# question than where they will end. Let it learn from other answers, for a
# few seconds.


# %%
def learn(critic: Critic, n: int, steps: int, lr: float = 2e-3) -> Critic:
    """A copy of the critic that has learnt from the scores of n answers."""
    more, _, earned, kept = ask(n, seed + 1)
    targets = gae(earned, torch.zeros_like(earned), kept, lam=1.0)[1]
    learner = copy.deepcopy(critic)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=lr)
    for step in range(steps):
        rows = torch.arange(128 * step, 128 * (step + 1)) % n
        some = [x[rows] for x in more.tokens]
        error = (learner(*some) - targets[rows])[kept[rows]]
        error.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return learner


learnt = learn(critic, 1024, 96)
with torch.no_grad():
    critics["has learnt"] = learnt(*told.tokens)
foreseen = explained_variance(critics["has learnt"], outcome, mask)
print(f"after a while, on answers it has not seen: {foreseen:.2f}")

# %% tags=["classroom"]
interactive(
    deal,
    critic=["has learnt", *list(critics)[:2]],
    row=(0, 11, 1, 2),
    lam=(0.0, 1.0, 0.05, 0.0),
)

# %% [markdown]
# The same answer, dealt by a critic that has learnt: at λ = 0 the jumps are
# now at words that change what may still come of the answer.
#
# ## Break it
#
# **Forget the mask.** Right of a short answer stands padding, and the critic
# says something about padding, too. What does the last token of an answer get?

# %% tags=["classroom"]
everywhere = torch.ones_like(mask)
wrong, _ = gae(rewards, values, everywhere)
right, _ = gae(rewards, values, mask)
last = mask.sum(1) - 1
for n in mask.sum(1).argsort()[:4].tolist():
    told_off = (
        f"{right[n, last[n]]:+.2f}, without a mask {wrong[n, last[n]]:+.2f}"
    )
    print(f"{int(last[n]) + 1:2} tokens: the last one gets {told_off}")

# %% [markdown]
# Each is paid, or blamed, for what the critic guesses about padding. A policy
# learns from that when to stop talking, and nobody has asked for it.
#
# **Whiten row by row.** It looks tidier: every answer has mean 0. **Predict**
# what a better answer is then worth.

# %% tags=["classroom"]
dealt, _ = gae(rewards, critics["has learnt"], mask)
rows = zip(dealt, mask, strict=True)
by_row = torch.stack([whiten(a[None], kept[None])[0] for a, kept in rows])
ways = {"all rows": whiten(dealt, mask), "row by row": by_row}
praise_by_score(scores, ways, mask)

# %% [markdown]
# Row by row, a good answer is praised no more than a bad one: the comparison
# between answers, the only thing that the score has to say, is gone. A batch
# of one answer is the same mistake.
#
# **Make returns of whitened advantages.** The critic's target is in the unit
# of the reward:

# %% tags=["classroom"]
for name, x in (
    ("V", values),
    ("R = A + V", returns),
    ("R from whitened A", white + values),
):
    print(f"{name:18} mean {x[mask].mean():+.2f}")
print(f"{'score':18} mean {scores.mean():+.2f}")

# %% [markdown]
# Whitened advantages have mean 0, so these returns have the mean of V: they
# tell the critic that it is right on average, whatever it says. So `returns`
# are taken before anything is whitened.

# %% [markdown]
# ## What changed
#
# You can deal out a score among words, and say what the dealing costs: bias
# where the critic is wrong, variance where the score is all you trust. PPO
# needs nothing else to know what to praise.

# %% [markdown]
# ## What real systems do differently
#
# - The reward has a second part, the KL penalty, at every token of lesson 09.
#   Your `gae` takes it as it is: `rewards` need not be 0 anywhere.
# - Over several machines, mean and sd of whitening are those of all of them.
# - Group methods (GRPO, RLOO) drop the critic and give every token of an
#   answer the same credit: its score against its siblings'. Lesson 15.
#
# ## Left out on purpose
#
# - `bootstrap` for answers cut off by a time limit: here a cut answer counts
#   as ended and pays a penalty. In control tasks it matters. CleanRL's
#   `ppo.py` shows in few lines a value behind the end of a rollout, though it
#   takes a time limit for an end.
# - Off-policy corrections (V-trace, Retrace), for answers that are older than
#   the policy.

# %% [markdown]
# ## Further reading
#
# - Schulman, Moritz, Levine, Jordan and Abbeel 2015, *High-dimensional
#   continuous control using generalized advantage estimation*, arXiv
#   1506.02438: section 3 is this lesson.
# - Ouyang et al. 2022, *Training language models to follow instructions with
#   human feedback*, arXiv 2203.02155, appendix C.4: the values they use.

# %% tags=["classroom"]
progress()

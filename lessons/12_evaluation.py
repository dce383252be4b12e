# %% [markdown]
# # 12 · Is it better?
#
# PPO raised the reward model's score. Is the policy better for it? You build
# the measures that answer, each with its doubt: who wins and by how much, how
# many prompts a claim needs, what length has to do with it, and what was lost
# on the way.
#
# More wrong claims about language models come from here than from any loss:
# nothing crashes, and the number looks like a result.

# %% tags=["parameters"]
scale = "toy"
seed = 0
out = "runs/toy"
prompts = "data/prompts.jsonl"
heldout = "data/prompts_heldout.jsonl"

# %%
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minipalm import plot
from minipalm.config import get_preset
from minipalm.course import ROOT
from minipalm.data.datasets import check_prompt_lengths, read_prompts
from minipalm.data.files import write_text
from minipalm.evaluate.judge import judge
from minipalm.evaluate.statistics import (
    Interval,
    gain_in_sd,
    mean_interval,
    over_optimisation,
)
from minipalm.model.palm import PaLM
from minipalm.model.place import place
from minipalm.rlhf.answers import answer
from minipalm.train.networks import (
    load_policy,
    load_reward_model,
    tokenizer_of,
)
from minipalm.train.run import read_metrics
from minipalm.train.stage import finish_stage, stage_summary

# %% tags=["classroom"]
from random import Random

from minipalm.course.check import check, progress
from minipalm.course.classroom import start_afresh
from minipalm.data.batches import pad_left, pad_right, prompt_ids, response_ids
from minipalm.data.datasets import read_demonstrations
from minipalm.data.gold import bayes_accuracy, label_pair
from minipalm.evaluate.judge import rows_by_prompt, same_prompt_pairs
from minipalm.evaluate.statistics import (
    expected_calibration_error,
    reliability,
)
from minipalm.plot.interactive import interactive
from minipalm.plot.judging import (
    by_length,
    coins,
    frontier,
    judge_abroad,
    peeking,
    power,
    tries,
)
from minipalm.rlhf.logprobs import response_logits, token_logprobs

# %%
os.chdir(ROOT)  # paths are from the repository's folder

# %% tags=["classroom"]
start_afresh(out, "12_evaluation", scale)

# %%
preset = get_preset(scale)
tokenizer = tokenizer_of(out)
reward_model = load_reward_model(out, preset, tokenizer)
reward_model = place(reward_model, preset.machine, trained=False)
names = [
    f"beta-{kl_coef:g}" for kl_coef in stage_summary(out, "11_ppo")["kl_coefs"]
]
places = {"sft": ("07_sft", "policy")} | {n: ("11_ppo", n) for n in names}
policies = {}
for key, (stage, name) in places.items():
    saved = load_policy(out, stage, preset, tokenizer, name)
    policies[key] = place(saved, preset.machine, trained=False)
    del saved

# %% [markdown]
# ## Ask everybody the same
#
# Each policy answers the same prompts, and that makes every comparison one
# of pairs. TinyTales' held-out prompts ask for pairs of mood and subject that
# no demonstration, comparison or PPO prompt asks for: who has learnt by heart
# is found out there.
#
# The judge is the gold reward, which no policy has seen. Outside a toy it
# would be people.

# %%
splits = {}
for split, path in {"seen": prompts, "heldout": heldout}.items():
    records = read_prompts(path)
    check_prompt_lengths(records, tokenizer, preset.max_prompt)
    splits[split] = [record.prompt for record in records]

judged = {}
at_a_time = preset.ppo.micro_batch or 256
for split, texts in splits.items():
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(
        len(texts), (preset.eval_samples,), generator=generator
    )
    for name, policy in policies.items():
        answers = answer(
            policy,
            tokenizer,
            [texts[row] for row in rows],
            max_prompt=preset.max_prompt,
            max_response=preset.max_response,
            generator=generator,
        )
        judged[split, name] = judge(
            answers, policy, policies["sft"], reward_model, at_a_time
        )

# %% [markdown]
# ## Who wins?
#
# Say an answer of PPO beats SFT's on eight of ten prompts. Ten others could
# have said seven, or nine. Which *true* shares $p$ go with $\hat p$, what was
# measured? Those from which it is not too far, in standard errors **of $p$**:
#
# $$|\hat p - p| \le z \sqrt{p(1-p)/n}$$
#
# Solve it for $p$: the two ends are Wilson's interval. With $z$ of the normal
# law it holds the true share at the level that you choose.

# %% tags=["exercise"]
from minipalm.evaluate.statistics import wilson

# %% [markdown]
# **Predict.** Twenty policies, all exactly as good as SFT, are compared with
# it. Their wins are tosses of a coin. How many will look significantly better
# or worse? And if you ask ten times as many prompts?

# %% tags=["classroom"]
interactive(
    lambda pairs, luck: coins(wilson, pairs, luck),
    pairs=(10, 1000, 10, 100),
    luck=(0, 30, 1, 0),
)

# %% [markdown]
# About one in twenty, *whatever* the number of pairs: that is what the level
# says. More pairs make the intervals narrow, not the alarms rare. So whoever
# tries twenty useless ideas will most likely find one that “works”.
#
# The right curve falls with the root of $n$: half the width costs four times
# as many pairs.
#
# ## What about ties?
#
# Some pairs are equally good. Who drops them, or calls them losses, gets
# another number.

# %% tags=["exercise"]
from minipalm.evaluate.statistics import win_rate

# %%
compared = {}
for split in splits:
    sft, ppo = judged[split, "sft"], judged[split, names[0]]
    compared[split] = {
        "sft": sft.row(),
        "ppo": ppo.row(),
        "win_rate": None,
        "gain_sd": None,
    }
    if sft.gold is not None:
        before, after = sft.gold_totals(), ppo.gold_totals()
        compared[split]["win_rate"] = win_rate(after, before)._asdict()
        compared[split]["gain_sd"] = gain_in_sd(before, after)

# %%
plot.win_rate_bar(
    {
        f"{split} prompts": both["win_rate"]
        for split, both in compared.items()
        if both["win_rate"]
    }
)

# %% tags=["classroom"]
for split in splits:
    a, b = (judged[split, name].gold_totals() for name in (names[0], "sft"))
    won, tied, lost = (a > b).sum(), (a == b).sum(), (a < b).sum()
    print(
        f"{split:8} {won} wins, {tied} ties, {lost} losses: "
        f"{win_rate(a, b).rate:.3f} with ties as halves, "
        f"{won / len(a):.3f} as losses, {won / (won + lost):.3f} without"
    )

# %% [markdown]
# Any convention will do that is written beside the number. Halves have the
# merit that the two policies' rates add up to one.
#
# On the held-out prompts PPO wins less often, and the two intervals do not
# overlap: a part of what it learnt belongs to the pairs of mood and subject
# that it was trained on.

# %% [markdown]
# ## By how much?
#
# A win may be a hair's breadth. The gain is the mean difference in gold, and
# its interval needs no formula: draw other prompts from those that you have.
# Below your function stands each policy alone, its mean ± half an interval.

# %% tags=["exercise"]
from minipalm.evaluate.comparison import paired_bootstrap

# %%
if sft.gold is not None:
    for (split, name), one in judged.items():
        mean, half = mean_interval(one.gold_totals())
        print(f"{split:8} {name:10} gold {mean:.2f} ± {half:.2f}")

# %% [markdown]
# What is it that varies? You asked each held-out prompt many times. Other
# *answers* would have differed; so would other *prompts*. Take the mean of
# each prompt first, then bootstrap these means.

# %% tags=["classroom"]
draw = torch.Generator().manual_seed(seed)
for split in splits:
    a, b = (judged[split, name].gold_totals() for name in (names[0], "sft"))
    rows = rows_by_prompt(judged[split, "sft"].answers.prompts).values()
    own = [torch.stack([x[some].mean() for some in rows]) for x in (a, b)]
    for what, (x, y) in {"answers": (a, b), "prompts": own}.items():
        gain, low, high = paired_bootstrap(x, y, draw)
        print(
            f"{split:8} {len(x):3} {what}: gain {gain:.2f}, "
            f"from {low:.2f} to {high:.2f}"
        )

# %% [markdown]
# The second line is about prompts like these, the first about these very
# prompts. With few prompts the second interval is the wider one, and it is
# the one that a claim about new prompts needs.
#
# ## How many prompts does a claim need?
#
# Ask before you look. The measured gain scatters around the true one with a
# standard error of $sd/\sqrt N$. To find it in most experiments, it must lie
# $z_\text{level} + z_\text{power}$ standard errors from zero.

# %% tags=["exercise"]
from minipalm.evaluate.comparison import samples_needed

# %% tags=["classroom"]
a, b = (judged["heldout", name].gold_totals() for name in (names[0], "sft"))
sd = (a - b).std().item()
print(f"sd of a difference in gold: {sd:.2f} points")
for gain in (2.0, 1.0, 0.5, 0.2, 0.1):
    print(f"  a gain of {gain:.1f} needs {samples_needed(gain, sd):5} pairs")

# %% [markdown]
# **Predict.** Some prompts are easy for everybody, some are hard. One team
# asks both policies the same prompts; the other lets each answer prompts of
# its own. Who needs more? What if all prompts are equally hard?

# %% tags=["classroom"]
interactive(
    lambda gain, difficulty: power(samples_needed, gain, difficulty),
    gain=(0.1, 1.0, 0.1, 0.3),
    difficulty=(0.0, 3.0, 0.5, 1.0),
)

# %% [markdown]
# The curves are simulated, the dots are your function. What both policies owe
# to a prompt cancels in a pair. How much is that here?

# %% tags=["classroom"]
for split in splits:
    both = [judged[split, name].gold_totals() for name in (names[0], "sft")]
    shared = torch.corrcoef(torch.stack(both))[0, 1]
    print(f"{split:8} correlation {shared:+.2f}")

# %% [markdown]
# Hardly anything: TinyTales' prompts are about equally hard, and the rest is
# the luck of sampling. Where questions differ as widely as in most benchmarks,
# pairs save much of the cost.
#
# ## What got better?
#
# A total hides its parts. Before you look: which part of gold would PPO
# neglect?

# %%
for split, both in compared.items():
    print(f"{split} prompts   SFT      PPO")
    for measure, value in both["sft"].items():
        if value is not None:
            print(f"  {measure:12} {value:8.3f} {both['ppo'][measure]:8.3f}")

# %%
shown = ["sft", names[0], *(name for name in names[1:] if name == "beta-0")]
figure = None
if judged["seen", "sft"].gold is not None:
    figure = plot.gold_parts(*(judged["seen", name].row() for name in shown))
figure

# %% [markdown]
# Not everything rose. Words are said again: where the reward model does not
# mind, nothing holds the policy back.
#
# ## Does it only talk longer?
#
# Judges like long answers. Suppose that the chance to win depends on the
# difference $d$ of the lengths, besides merit:
#
# $$p = \sigma(\alpha + \gamma \tanh(d / s))$$
#
# Here $s$ is the spread of the differences. Fit α and γ to the pairs: at
# $d = 0$ only α, the merit, is left. First the fit, a logistic regression:

# %% tags=["define"]
from minipalm.evaluate.comparison import logistic_fit

# %% tags=["exercise"]
from minipalm.evaluate.comparison import length_controlled

# %% [markdown]
# We make a judge who likes length: gold, and a bonus for each token. It
# compares SFT's answers with those of PPO, without a penalty or with one.
# **Predict** what either win rate does as the bonus grows.


# %% tags=["classroom"]
def lengthy(name: str, bonus: float):
    """A policy against SFT, before a judge who pays for tokens."""
    a, b = judged["seen", name], judged["seen", "sft"]
    x, y = (one.answers.tokens[3].sum(1) for one in (a, b))
    lead = a.gold_totals() - b.gold_totals() + bonus * (x - y)
    won = (lead > 0).double() + 0.5 * (lead == 0).double()
    return by_length(length_controlled, won, x - y)


interactive(lengthy, bonus=(-0.5, 0.5, 0.1, 0.4), name=names[::-1])

# %% [markdown]
# Without a bonus the plain rate is the truth: how far from it does either one
# go? The plain rate follows the judge's taste, the controlled one much less.
# Grey dots are what was seen; where they leave the curve, the assumption
# fails.
#
# And it is an assumption: that length acts by this curve, alike on every
# prompt, and that it is a *bias*. Where a better answer must be longer, its
# merit is taken off, too.

# %% [markdown]
# ## The proxy and the truth
#
# Follow both rewards along the way from the reference. The proxy is what PPO
# climbs. Where β is 0, look at gold.

# %%
penalty = preset.ppo.missing_eos_penalty
curves = {
    name.removeprefix("beta-"): [
        {
            "step": step["step"],
            "kl": step["kl"],
            "gold": step.get("gold"),
            "score": step["score"]
            + penalty * step["unfinished"],  # the proxy alone
            "unfinished": step["unfinished"],
        }
        for step in read_metrics(f"{out}/11_ppo/{name}")
    ]
    for name in names
}
plot.over_optimisation(curves, compared["seen"]["sft"]["gold"])

# %% [markdown]
# Each iteration is a point: so much KL spent, so much reward got. The upper
# left edge is the **frontier**. A price for a nat picks the point on it that
# a line of that slope touches. Choose a price by the left picture alone, then
# look at the right one: would you choose it again?

# %% tags=["classroom"]
interactive(
    lambda price: frontier(curves, price), price=(0.0, 0.3, 0.01, 0.05)
)

# %% [markdown]
# The left curve never turns round. Nobody who sees the proxy alone can tell
# from it where to stop.
#
# ## Is the reward model still right?
#
# Lesson 08 measured its accuracy on pairs of the kind that it was trained on.
# Now it is asked about answers of policies that have climbed its score. Label
# pairs of each policy's answers as the labeller would, and ask again.

# %% tags=["classroom"]
called = {"SFT": "sft", "PPO": names[0], "β = 0": "beta-0"}
called = {name: key for name, key in called.items() if key in policies}


def label(key: str) -> tuple[Tensor, Tensor, float]:
    """Scores of what the labeller prefers and rejects; the best accuracy."""
    scores, golds = [], []
    for split in splits:
        one = judged[split, key]
        pairs = same_prompt_pairs(one.answers.prompts)
        scores.append(one.proxy[pairs] * reward_model.std)  # as trained
        golds.append(one.gold_totals()[pairs])
    scores, golds, rng = torch.cat(scores), torch.cat(golds), Random(seed)
    prefers = [label_pair(a, b, rng) for a, b in golds.tolist()]
    first = torch.tensor(prefers)[:, None]
    chosen, rejected = torch.where(first, scores, scores.flip(1)).unbind(1)
    return chosen, rejected, bayes_accuracy(*golds.T.tolist())


# %% tags=["classroom"]
shares, bins = {}, {}
for name, key in called.items():
    chosen, rejected, best = label(key)
    shares[name] = (win_rate(chosen, rejected), best)
    bins[name] = reliability(chosen, rejected, bins=5)
    error = expected_calibration_error(bins[name])
    rate = shares[name][0].rate
    print(f"{name:6} right {rate:.3f} of {best:.3f}, ece {error:.3f}")
judge_abroad(shares, bins)

# %% [markdown]
# The accuracy is a win rate, chosen against rejected. It falls where the
# policy went, and at β = 0 it is a coin: there PPO climbs noise. Its
# calibration error is small even so, since it is hardly ever sure: a coin that
# says “one half” is calibrated.
#
# A reward model's accuracy is a number *about some answers*. Measure it where
# you use it.

# %% [markdown]
# ## What was lost?
#
# Reward is not all. How well does a policy still know the language that it
# was taught? Perplexity is the number of equally likely tokens that would
# surprise it as much.

# %% tags=["exercise"]
from minipalm.evaluate.texts import perplexity


# %% tags=["classroom"]
@torch.no_grad()
def read(reader: PaLM, texts: tuple[Tensor, ...]) -> float:
    """The perplexity of answers, prompts given, to a policy."""
    logprobs = token_logprobs(response_logits(reader, *texts), texts[2])
    return perplexity(logprobs, texts[3])


shown_texts = read_demonstrations("data/demonstrations.jsonl")[:512]
before = [prompt_ids(tokenizer, one.prompt) for one in shown_texts]
after = [response_ids(tokenizer, one.response) for one in shown_texts]
written = {
    "demonstrations": (
        *pad_left(before, max(map(len, before))),
        *pad_right(after, max(map(len, after))),
    )
}
for name, key in called.items():
    written[f"answers of {name}"] = judged["seen", key].answers.tokens
print(" " * 18 + "".join(f"{'to ' + name:>12}" for name in called))
for what, these in written.items():
    row = [read(policies[key], these) for key in called.values()]
    print(f"{what:18}" + "".join(f"{one:12.2f}" for one in row))

# %% [markdown]
# Read the first line from left to right: what PPO has forgotten. Then the
# diagonal, each policy on its own answers: how many ways it still sees to go
# on. The last one is nearly certain of every token.
#
# The same from outside: how many different runs of words are there?

# %% tags=["exercise"]
from minipalm.evaluate.texts import distinct_n

# %% tags=["classroom"]
for name, key in called.items():
    told = judged["seen", key].answers.texts
    row = "  ".join(f"{n}: {distinct_n(told, n):.3f}" for n in (1, 2, 3))
    print(f"{name:6} runs of {row}   {len(set(told))} of {len(told)} texts")

# %% [markdown]
# ## Read them
#
# Numbers first, then texts: a policy can only be trusted once somebody has
# read it.

# %%
samples = []
for split, n in [("seen", 0), ("seen", 1), ("heldout", 0), ("heldout", 1)]:
    sample = {
        "prompt": judged[split, "sft"].answers.prompts[n],
        "split": split,
    }
    keys = {"sft": "sft", "beta-0": "unpenalised", names[0]: "ppo"}
    for name in policies:
        one = judged[split, name]
        if name in keys:
            gold = one.gold[n].total if one.gold is not None else None
            sample[keys[name]] = {"text": one.answers.texts[n], "gold": gold}
    samples.append(sample)

# %%
for sample in samples:
    print(sample["prompt"])
    for name in ("sft", "ppo", "unpenalised"):
        if name in sample:
            print(f"  {name:12} {sample[name]['text']}")

# %% [markdown]
# ## Try k times
#
# Where an answer can be tested, one right answer among $k$ may do: a program
# that passes its tests, say. Of $n$ answers $c$ are right. Do not sample
# again: count in how many choices of $k$ there is a right one.

# %% tags=["exercise"]
from minipalm.evaluate.isolated import pass_at_k

# %% [markdown]
# A story is no program, but it may clear a bar: so many points of gold. PPO
# is better at the first try. **Predict:** are the curves nearer to each other
# after many tries, or do they cross?


# %% tags=["classroom"]
def cleared(bar: float):
    """Tries and successes on each held-out prompt, for every policy."""
    rows = rows_by_prompt(judged["heldout", "sft"].answers.prompts).values()
    counts = {}
    for name, key in called.items():
        clear = judged["heldout", key].gold_totals() >= bar
        counts[name] = [(len(some), int(clear[some].sum())) for some in rows]
    return tries(pass_at_k, counts, bar)


interactive(cleared, bar=(5.0, 10.0, 0.5, 8.0))

# %% [markdown]
# Move the bar. Where SFT clears it now and then, tries make up for skill;
# where it never does, none do. The policy at β = 0 says the same thing each
# time, so trying again is of no use to it.

# %% [markdown]
# ## Break it: stop when it is significant
#
# It seems thrifty: compare a few pairs, look, go on only if nothing is clear
# yet. **Predict:** two *equal* policies, a look after every few pairs. How
# often does some look say that they differ?

# %% tags=["classroom"]
peeking(wilson)

# %% [markdown]
# The lower curve is one look: honest at every number. The upper one has as
# many chances to err as it has looks, and stops at the first. Fix the number
# of pairs before you start; `samples_needed` tells it. Trying many seeds,
# metrics or judges and keeping the best is the same mistake in other clothes.

# %% [markdown]
# ## Real benchmarks
#
# MMLU, HellaSwag and HumanEval mean what they mean elsewhere only with the
# same prompts and the same counting. So they come from EleutherAI's
# lm-evaluation-harness, and `minipalm/evaluate/harness.py` answers it: one
# command for a trained stage.
#
# ```
# python -m minipalm.evaluate.benchmarks --run RUN --stage 11_ppo \
#     --tasks hellaswag,mmlu,humaneval --allow-code
# ```
#
# Each number comes with its standard error. HumanEval runs what the model
# writes, shut in, and counts as your `pass_at_k` does. Such questions hold any
# text, which TinyTales' tokenizer cannot spell; for a larger run see
# [benchmarks.md](../docs/benchmarks.md).

# %% [markdown]
# ## What changed
#
# You know by how much the policy is better, how sure that is, on which
# prompts, and what it cost. You can also tell when a question cannot be
# answered with the prompts that you have.

# %%
fall = None
if "0" in curves and all(step["gold"] is not None for step in curves["0"]):
    fall = over_optimisation(curves["0"])._asdict()
losses = {
    "pretrain": ("06_palm/policy", "loss"),
    "sft": ("07_sft/policy", "loss"),
    "reward_model": ("08_reward_model/training", "loss"),
    "ppo": (f"11_ppo/{names[0]}", "score"),
}

# %%
evaluation = {
    "scale": scale,
    "seed": seed,
    "beta": stage_summary(out, "11_ppo")["kl_coefs"][0],
    "prompts": compared,
    "reward_model": stage_summary(out, "08_reward_model"),
    "curves": curves,
    "over_optimisation": fall,
    "samples": samples,
    "losses": {
        name: [
            [step["step"], step[key]]
            for step in read_metrics(f"{out}/{folder}")
        ]
        for name, (folder, key) in losses.items()
    },
}
write_text(
    Path(out, "12_evaluation", "evaluation.json"),
    json.dumps(evaluation, indent=1),
)
finish_stage(out, "12_evaluation", {}, tokenizer, scale=scale, seed=seed)

# %% [markdown]
# ## What real systems do differently
#
# - There is no gold reward. People judge, or a strong model that is itself
#   checked against people, with both orders of the two answers.
# - Many policies are compared at once: Bradley–Terry scores, as in lesson 08,
#   turn who beat whom into one scale.
# - Questions come in groups (one text, many questions), so intervals are made
#   over groups, as you did over prompts.
# - Safety, refusals and abilities are measured beside the win rate.
#
# ## Left out on purpose
#
# - Tests that allow looking at any time: Johari et al. below.
# - Corrections for many comparisons, such as Holm's; statsmodels'
#   `multipletests` has them.
# - Contamination: whether a benchmark's questions were in the training text.
#
# ## Further reading
#
# - Wilson 1927, *Probable inference, the law of succession, and statistical
#   inference*: three pages.
# - Miller 2024, *Adding Error Bars to Evals*, arXiv 2411.00640: pairs,
#   groups, power.
# - Dubois, Galambosi, Liang and Hashimoto 2024, *Length-Controlled
#   AlpacaEval*, arXiv 2404.04475.
# - Gao, Schulman and Hilton 2022, *Scaling Laws for Reward Model
#   Overoptimization*, arXiv 2210.10760.
# - Chen et al. 2021, *Evaluating Large Language Models Trained on Code*, arXiv
#   2107.03374, section 2.1: pass@k.
# - Yue et al. 2025, *Does Reinforcement Learning Really Incentivize Reasoning
#   Capacity in LLMs Beyond the Base Model?*, arXiv 2504.13837: curves that
#   cross.
# - Johari, Pekelis and Walsh 2015, *Always Valid Inference*, arXiv 1512.04922.

# %% tags=["classroom"]
progress()

# %% [markdown]
# # 13 · When the reward is wrong
#
# You train against a reward model until it lies to you, watch where that
# begins, and repair what can be repaired.
#
# You build what one needs for it: the laws that say how far a reward can be
# trusted, a rule that stops in time, two ensembles, and a test for the
# commonest thing that is wrong with a reward, length. Every curve here is a
# training run.

# %% tags=["parameters"]
scale = "toy"
seed = 0
out = "runs/toy"
prompts = "data/prompts.jsonl"

# %%
import copy
import json
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from minipalm.config import get_preset
from minipalm.course import ROOT
from minipalm.course.watch import Watch, curve_of
from minipalm.course.wrong_rewards import (
    Recipe,
    World,
    gold_totals,
    lengths_of,
    reward_model,
    scores_of,
)
from minipalm.data.batches import pad_left, prompt_ids
from minipalm.data.datasets import read_prompts
from minipalm.evaluate.laws import LawFit, Peak
from minipalm.evaluate.length import LengthEffect
from minipalm.evaluate.stopping import Stop
from minipalm.rlhf.critic import critic_from_reward_model
from minipalm.rlhf.ensemble import all_scores
from minipalm.train.ppo import train_ppo
from minipalm.train.run import Run
from minipalm.train.networks import (
    load_policy,
    load_reward_model,
    load_trunk,
    tokenizer_of,
)

# %%
from minipalm.plot.interactive import interactive
from minipalm.plot.overoptimisation import (
    by_quality,
    choosing,
    compared,
    ends,
    law_of_a_run,
    length_rests,
    peaks,
    rise_and_fall,
    spoken,
    stopped,
)

# %% tags=["classroom"]
from minipalm.course.check import check, progress
from minipalm.course.classroom import borrow

# %%
os.chdir(ROOT)  # paths are from the repository's folder

# %% tags=["classroom"]
borrow(out, ("06_palm", "07_sft", "08_reward_model"), scale)

# %%
preset = get_preset(scale)
tokenizer = tokenizer_of(out)
reference = load_policy(out, "07_sft", preset, tokenizer)
trunk = load_trunk(out, "07_sft", preset, tokenizer)
paid_by = load_reward_model(out, preset, tokenizer)
for model in (reference, trunk, paid_by):
    model.requires_grad_(False)
texts = [record.prompt for record in read_prompts(prompts)]
ids = [prompt_ids(tokenizer, text) for text in texts]
asked, asked_mask = pad_left(ids, preset.max_prompt)

# %%
folder = Path(out, "13_wrong_reward", "runs")
shutil.rmtree(folder, ignore_errors=True)  # begin anew
world = World(
    seed,
    preset,
    tokenizer,
    reference,
    {trunk.config.dim: trunk},
    texts,
    asked,
    asked_mask,
    ppo=replace(preset.ppo, policy_lr=7e-4),
    comparisons=preset.reward.pairs,
    least_steps=min(60, preset.reward.optim.steps),
    folder=folder,
)

# %% [markdown]
# ## Train until it breaks
#
# The **gold** reward is what you want; only this toy can compute it. The
# **proxy** is the reward model of lesson 08, and PPO sees nothing else. There
# is no price on the KL: β = 0.
#
# Two more things are looked at, and paid by neither: another reward model,
# trained on comparisons of its own (`judge`), and a labeller who compares
# each answer with one of SFT's (`preferred`).

# %%
judge = reward_model(world, Recipe(half=1))
policy = copy.deepcopy(reference).requires_grad_(True)
dials = world.ppo
watch = Watch(world, policy, [paid_by], judge, dials.missing_eos_penalty)
run = Run(folder / "live", seed=seed)

# %% [markdown]
# **Predict.** Draw two curves over the iterations: the proxy, and gold. Where
# do they part?

# %%
train_ppo(
    policy,
    reference,
    critic_from_reward_model(paid_by).requires_grad_(True),
    paid_by,
    asked,
    asked_mask,
    dials,
    run,
    seed,
    kl_coef=0.0,
    max_response=preset.max_response,
    eos_id=tokenizer.eos_id,
    checkpoint_every=dials.iterations,
    measure=watch,
)
mine = {**curve_of(run.metrics()), "told": watch.told}

# %% [markdown]
# The distance from SFT is told as √KL: in these units a gain begins as a
# straight line.

# %%
rise_and_fall({"yours": {"0": mine}}, ["yours"])

# %% [markdown]
# Up, and down again, while the number that is optimised only rises. Read what
# it says on the way: green words are of the mood that was asked for, … means
# that the answer never ended.

# %%
some = texts[:: len(texts) // 3][:3]
interactive(
    lambda root_kl: spoken(mine, some, root_kl),
    root_kl=(0.0, 9.0, 0.25, 6.5),
)

# %% [markdown]
# Nobody wrote this trick. Answers of SFT hardly ever repeat a word, so no
# comparison ever said that repeating is bad.
#
# ## More runs than a lesson has time for
#
# The rest was run beforehand, on several seeds, each with data, SFT and reward
# models of its own. `plain` is the reward model with the most comparisons, and
# with nothing else wrong. `./course results overoptimisation` makes it again.

# %%
path = Path("data/results/overoptimisation.json")
results = json.loads(path.read_text("utf-8"))
runs = results["runs"]
seeds = list(runs["plain"])
print(f"{len(runs)} experiments, {len(seeds)} seeds")
print("iterations:", results["settings"]["ppo"]["iterations"])

# %% [markdown]
# **Predict.** Three reward models learn from many comparisons, a fifth of
# them, and a twentieth.
# Which policy peaks highest? Which falls deepest?

# %%
rise_and_fall(runs, ["plain", "pairs 800", "pairs 200"])

# %% [markdown]
# Thin lines are seeds; all lines are smoothed. The poorest peaks lowest. At
# the end it is highest, but look how near to SFT its line stops: at equal
# distance it is the lowest there, too. All proxies rise alike: from the
# training curve you could not tell a good reward model from a bad one. Now
# give them as many pairs each, and make something else wrong:

# %%
families = {
    "label noise": {
        "plain": "labels as meant",
        "flipped 0.15": "15 % turned round",
        "flipped 0.3": "30 % turned round",
    },
    "size": {"width 48": "width 48", "plain": "32", "width 16": "16"},
}
interactive(
    lambda what: rise_and_fall(runs, families[what]), what=list(families)
)

# %%
named = {"plain": "plain", "pairs 800": "pairs800", "pairs 200": "pairs200"}
named |= {f"flipped {x}": f"flipped{x}" for x in (0.15, 0.3)}
named |= {f"width {x}": f"width{x}" for x in (16, 48)}
by_quality(results, named)

# %% [markdown]
# A reward model that is right more often tends to peak higher. About how deep
# its policy falls in the end, being right on SFT's answers says nothing: out
# there no comparison has ever been.
#
# ## Two laws
#
# With d = √KL, Gao, Schulman and Hilton found for the gain in gold:
#
# $$R_\text{best of n}(d) = d\,(\alpha - \beta d), \qquad
#   R_\text{RL}(d) = d\,(\alpha - \beta \log d)$$
#
# Both are sums of two columns, one times α and one times β. So they can be
# fitted as any straight line can.

# %% tags=["exercise"]
from minipalm.evaluate.laws import ppo_columns

# %% [markdown]
# $$(\alpha, \beta) = (X^\top X)^{-1} X^\top y, \qquad
#   \text{Var} = s^2 (X^\top X)^{-1}, \qquad s^2 = \frac{\sum e^2}{N - 2}$$
#
# X has the columns, y the gains, e is what the law leaves over.

# %% tags=["exercise"]
from minipalm.evaluate.laws import fit_law

# %% [markdown]
# Where does the law turn?

# %% tags=["exercise"]
from minipalm.evaluate.laws import ppo_peak

# %%
print("                 α             β          scatter   peak at √KL")
for name in ("plain", "pairs 800", "pairs 200"):
    for one in seeds:
        curve = runs[name][one]
        d = torch.tensor(curve["kl"]).clamp(min=0).sqrt()
        gains = torch.tensor(curve["gold"]) - curve["gold"][0]
        law = fit_law(ppo_columns(d), gains)
        line = f"{law.alpha:5.2f} ± {law.alpha_error:.2f}"
        line += f"  {law.beta:5.2f} ± {law.beta_error:.2f}"
        top = ppo_peak(law.alpha, law.beta)
        print(f"{name:10} {one}  {line}  {law.scatter:6.2f}   {top.d:6.1f}")

# %% [markdown]
# Two numbers describe forty points, give or take the scatter. A law would be
# worth more if it warned you. **Predict.** Fit it to the climb only. Will it
# know how deep the fall goes? Move `until`.

# %%
interactive(
    lambda until, who: law_of_a_run(
        runs["plain"][who], until, ppo_columns, fit_law
    ),
    until=(1.5, 9.0, 0.25, 3.0),
    who=seeds,
)

# %% [markdown]
# Before the turn, what lies beyond is guessed too high, by far more than the
# errors of α and β allow. They tell of noise around a law, not of places where
# the law has never been tried. And the iterations of one run are no
# independent points: even for noise they are too small.

# %% [markdown]
# Choosing among n answers optimises, too. Its KL is known exactly,
# log n − (n − 1)/n. Lesson 15 shows how one batch tells what every n gains:

# %%
choosing(results["best_of_n"], ["plain", "pairs 800", "pairs 200"], fit_law)

# %% [markdown]
# The worst reward model has the highest proxy, and its gold has stopped
# rising. Now compare with the peaks above. By the best of the three, choosing
# gains as much as PPO at a fraction of the KL; by the other two it never gets
# there. So KL does not say how hard you have optimised, unless you compare
# within one method.

# %% [markdown]
# ## Stop in time, or pay for the way
#
# Two ways to stay near: stop a run at β = 0, or charge β for every nat. Gao et
# al. found both on one curve, so that it would not matter which. **Predict**:
# do the runs with a price end on the orange line?

# %%
betas = {"plain": "β = 0"}
betas |= {f"beta {b}": f"β = {b}" for b in ("0.03", "0.075", "0.15", "0.4")}
compared(runs, betas, ("gold", "proxy"), "distance")

# %% [markdown]
# Not here. At equal distance, all but the cheapest are above the run that does
# not pay, in gold and in proxy: they stay, and find better answers in the same
# neighbourhood. At β = 0 the policy spends its nats in passing. Gao et al. saw
# no such gain, and add that it may depend on the dials.
#
# When would you have stopped? You cannot see gold. Write the rule.

# %% tags=["exercise"]
from minipalm.evaluate.stopping import stop_at

# %% [markdown]
# Three signals: the labeller's (`preferred`), the other reward model's
# (`judge`), the proxy itself. **Predict** which one stops when.


# %%
def stops_of(curve, patience: int, window: int) -> dict[str, Stop]:
    """What each signal decides, by your rule."""
    return {
        name: stop_at(curve[name], patience, window)
        for name in ("preferred", "judge", "proxy")
    }


kinds = ["pairs 200", "pairs 800", "plain"]
interactive(
    lambda patience, window, rewards, who: stopped(
        runs[rewards][who], stops_of(runs[rewards][who], patience, window)
    ),
    patience=(1, 12, 1, 5),
    window=(1, 7, 1, 3),
    rewards=kinds,
    who=seeds,
)

# %%
print("gold that is kept, mean over seeds   best  preferred  judge  proxy")
for name in kinds:
    kept = {"best": [], "preferred": [], "judge": [], "proxy": []}
    for curve in runs[name].values():
        kept["best"].append(max(curve["gold"]))
        for signal, stop in stops_of(curve, patience=5, window=3).items():
            kept[signal].append(curve["gold"][stop.kept])
    means = [sum(x) / len(x) for x in kept.values()]
    print(f"{name:34}" + "".join(f"{x:8.2f}" for x in means))

# %% [markdown]
# Fresh labels work: a few comparisons with SFT at each iteration. The other
# reward model, held out from training, comes too late. It has seen other
# comparisons, but of the same SFT answers, and so it is blind where the proxy
# is blind. Held out is not enough: a signal has to see what the policy does
# *now*.

# %% [markdown]
# ## Ask several
#
# Five reward models, each from its own fifth of the same comparisons. Where
# data were, they agree; elsewhere, each errs in its own way. Let all of them
# pay. The mean is given; write the other two.

# %% tags=["define"]
from minipalm.rlhf.ensemble import ensemble_mean

# %% tags=["exercise"]
from minipalm.rlhf.ensemble import worst_case

# %% tags=["exercise"]
from minipalm.rlhf.ensemble import uncertainty_weighted

# %%
few = Recipe(pairs=preset.reward.pairs // 10)
members = [reward_model(world, replace(few, member=k)) for k in range(5)]
drawn = world.draw(256, seed)
said = {"SFT": world.ask(reference, drawn, 8), "yours": None}
said["yours"] = world.ask(policy.requires_grad_(False), drawn, 8)
print("          gold   mean  worst  weighted   models apart")
for name, answers in said.items():
    scores = torch.cat(
        [all_scores(members, *part) for part in answers.token_batches(128)], 1
    )
    ways = (ensemble_mean, worst_case, uncertainty_weighted)
    line = "".join(f"{way(scores).mean():7.2f}" for way in ways)
    gold = gold_totals(answers).mean()
    print(f"{name:8} {gold:5.2f}{line}   {scores.std(0).mean():12.2f}")
print("each model, of yours:", [round(x, 1) for x in scores.mean(1).tolist()])

# %% [markdown]
# Your policy has never been paid by these five. What do they think of its
# tricks? None gives less than for SFT's answers, whose mean is 0. They differ
# more than about SFT, but in how *much* they like it: disagreement is a
# signal, and a weak one.
#
# Now policies are paid by them, or answers chosen. **Predict**: which falls
# least? The first line is a single model of a fifth of the comparisons, the
# last one model of all.

# %%
five = {
    "pairs 800": "one of 800",
    "mean of 5": "mean of 5",
    "worst of 5": "worst of 5",
    "uncertainty": "weighted",
    "plain": "one of 4000",
}


def paid(by: str):
    """PPO against them, or the best of n by them."""
    if by == "best of n":
        return choosing(results["best_of_n"], five, fit_law)
    return compared(runs, five, ("gold", "proxy"), "distance")


interactive(paid, by=["PPO", "best of n"])

# %%
print("gold              at its peak        at the end")
for name, called in five.items():
    cells = []
    for x in map(torch.tensor, (peaks(runs[name]), ends(runs[name]))):
        cells.append(f"{x.mean():6.2f} ± {x.std():.2f}")
    print(f"{called:14}" + "     ".join(cells))

# %% [markdown]
# The same comparisons, split over five models, fall less deep than in one, and
# least of all where the most severe model speaks. In part that is because they
# stay nearer to SFT, and in part they are better at equal distance.
#
# An ensemble repairs what its members do not share: their noise. What they
# share stays. All five have read SFT's answers, none has seen a repetition,
# and all policies fall in the end.

# %% [markdown]
# ## Length
#
# Let us plant an error. This labeller likes length: he adds points for every
# token, unknowingly. A reward model learns from him; how would you notice?
#
# Score and length correlate, you say. But good answers may be longer. Compare
# answers that are *equally good*.

# %% tags=["define"]
from minipalm.evaluate.length import residuals

# %% tags=["exercise"]
from minipalm.evaluate.length import length_effect

# %%
likes = Recipe(pairs=preset.reward.pairs // 2, per_token=0.4)
biased = reward_model(world, likes)
gold, lengths = gold_totals(world.usual), lengths_of(world.usual)
scores = scores_of(biased, world.usual)
effect = length_effect(scores, lengths, gold)
length_rests(scores, lengths, gold, effect)

# %% [markdown]
# Here gold changes little: SFT's good answers are hardly longer. You will
# meet a case where it changes all.
#
# Do the reward models of the prepared runs care for length? `per_token` has
# the same thing planted, and `within1` learned from its pairs of nearly equal
# length. Nobody has planted anything in the others.

# %%
print("                  slope at equal gold, by seed")
for name, row in results["rewards"].items():
    slopes = "".join(f"{row[one]['slope']:+9.3f}" for one in row)
    print(f"{name:28}{slopes}")

# %% [markdown]
# The planted one stands out. But honest labels leave a slope as well, and the
# smallest model and the noisiest labels leave the most: length is easy to
# learn, and in SFT's answers not quite useless.
#
# What was found can be taken off.

# %% tags=["exercise"]
from minipalm.evaluate.length import without_length

# %%
usual = lengths.float().mean().item()
repaired = without_length(scores, lengths, effect.slope, usual)
print("before:", length_effect(scores, lengths, gold))
print("after: ", length_effect(repaired, lengths, gold))

# %% [markdown]
# That was on SFT's answers. **Predict.** Does it hold when a policy is paid by
# the repaired score? A second repair needs no gold: learn only from pairs of
# nearly equal length. It has far fewer pairs.

# %%
cures = {
    "long": "likes length",
    "long, corrected": "slope taken off",
    "long, balanced": "equal lengths",
    "beta 0.075": "honest",
}
compared(runs, cures, ("gold", "tokens"), "iteration")

# %% [markdown]
# The last line is an honest labeller at the same β. Taking the slope off gives
# back the length, and most of the gold. Equal lengths take the bias away, too,
# and gold is no better for it: so few pairs are left that this reward model is
# honest and ignorant.

# %% [markdown]
# ## A rule closes one hole
#
# At the end of a run the policy no longer ends its sentences: text without an
# end was never compared either. Since lesson 09 such answers pay a penalty.
# **Predict.** Take it away: what changes in the answers, and in gold?
# (*Freshness* is the part of gold that a repeated word costs.)

# %%
rules = {"no penalty": "no penalty", "plain": "a penalty of 1"}
compared(runs, rules, ("unfinished", "fresh"), "iteration")

# %% [markdown]
# The rule delays one trick, as long as the trick pays less than the rule
# costs. Freshness falls just the same: about repetition the rule says nothing.
# In gold, in the title, the seeds differ by more than the rule brings.
# Rules are cheap, and worth having. They repair no reward model.
#
# Listen to some of the policies of this lesson, each on its own way. Which
# trick has each one found?

# %%
voices = ["no penalty", "plain", "long", "width 16", "beta 0.15"]
interactive(
    lambda root_kl, run, who: spoken(runs[run][who], some, root_kl),
    root_kl=(0.0, 11.0, 0.25, 8.0),
    run=voices,
    who=seeds,
)

# %% [markdown]
# ## Break it
#
# **Stop by the proxy.** It is what every dashboard shows first. Your rule,
# patient as ever, listens to what the policy is paid by:

# %% tags=["classroom"]
worst = min(seeds, key=lambda one: runs["pairs 800"][one]["gold"][-1])
curve = runs["pairs 800"][worst]
stopped(curve, {"proxy": stop_at(curve["proxy"], 5, 3)})

# %% [markdown]
# It never stops, or far too late: the policy is trained to raise this number.
#
# **Forget the units.** One of the five speaks in raw scores, ten times as loud
# as the others. Whom does the ensemble follow?

# %% tags=["classroom"]
scores = torch.cat(
    [all_scores(members, *p) for p in world.usual.token_batches(256)], 1
)
loud = scores * torch.tensor([10.0, 1, 1, 1, 1])[:, None]
for name, way in (("mean", ensemble_mean), ("worst case", worst_case)):
    for volume, these in (("as it is", scores), ("loud", loud)):
        r = torch.corrcoef(torch.stack([way(these), scores[0]]))[0, 1]
        print(f"{name:10} {volume:9} correlation with model 0: {r:.2f}")

# %% [markdown]
# Five models were trained, and one decides. No error, no odd curve. That is
# why each has a mean of 0 and a deviation of 1 on SFT's answers.
#
# **Correct by the plain slope**, without holding gold equal. Here an honest
# score, gold itself, where good answers happen to be longer:

# %% tags=["classroom"]
longer = lengths + 3 * (gold - gold.mean())
plain = torch.cov(torch.stack([gold, longer]))
slope = (plain[0, 1] / plain[1, 1]).item()
at_equal = length_effect(gold, longer, gold).slope
for name, one in (("plain", slope), ("at equal gold", at_equal)):
    fixed = without_length(gold, longer, one, longer.mean().item())
    r = torch.corrcoef(torch.stack([fixed, gold]))[0, 1]
    print(f"{name:14} slope {one:+.3f}: correlation with gold {r:.2f}")

# %% [markdown]
# The plain slope "repairs" what was right: it takes quality off because
# quality is long.

# %% [markdown]
# ## What changed
#
# You can say three things about a reward that you could not say before: how
# far it carries, what tells you in time, and which of its faults an ensemble,
# a correction or a rule can reach. What none of them reached is what no
# comparison has ever shown. Lesson 14 looks at rewards that are right, and
# code that is wrong.

# %% [markdown]
# ## What you may not conclude
#
# - **That the penalty always beats stopping.** One learning rate, one world;
#   Gao et al. saw no difference.
# - **That held-out reward models are useless.** This one shares the blind spot
#   by construction: its comparisons are of the same policy.
# - **That ensembles are weak.** These share their pretraining, and Eisenstein
#   et al. name that as the limit. Coste et al. found more with a small price
#   on the KL besides.
# - **That a few seeds give an order.** Look at the thin lines.

# %% [markdown]
# ## What real systems do differently
#
# - They collect new comparisons of the present policy and train the reward
#   model again, in rounds: the only repair here that reaches a blind spot.
# - People rate checkpoints: `preferred`, with a budget.
# - They watch proxies of misbehaviour that cost nothing: length, repetition,
#   share of unfinished answers, KL by prompt.
# - Where a program can check the answer, there is no proxy to fool, only the
#   program.
#
# ## Left out on purpose
#
# - Reward models whose weights are averaged, and those with a head for length
#   that is thrown away (Chen et al. below).
# - Theory: which kinds of Goodhart's law there are. Gao et al. discuss it.

# %% [markdown]
# ## Further reading
#
# - Gao, Schulman and Hilton 2022, *Scaling laws for reward model
#   overoptimization*, arXiv 2210.10760.
# - Stiennon et al. 2020, *Learning to summarize from human feedback*,
#   arXiv 2009.01325: the first such curve for language.
# - Coste, Anwar, Kirk and Krueger 2023, *Reward model ensembles help mitigate
#   overoptimization*, arXiv 2310.02743.
# - Eisenstein et al. 2023, *Helping or herding? Reward model ensembles
#   mitigate but do not eliminate reward hacking*, arXiv 2312.09244.
# - Singhal et al. 2023, *A long way to go: investigating length correlations
#   in RLHF*, arXiv 2310.03716.
# - Chen et al. 2024, *ODIN: disentangled reward mitigates hacking in RLHF*,
#   arXiv 2402.07319.
# - Huang et al. 2024, *Post-hoc reward calibration: a case study on length
#   bias*, arXiv 2409.17407.

# %% tags=["classroom"]
progress()

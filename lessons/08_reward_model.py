# %% [markdown]
# # 08 · The reward model
#
# You turn comparisons into a score. Somebody looks at two answers of your
# policy and says which is better; a small network learns to give the better
# one the higher score.
#
# It is a proxy: PPO will optimise this number, not what the labeller meant.
# So you build two things: the model, and the numbers that say how far to trust
# it.

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
from minipalm.clock import Clock
from minipalm.config import RewardConfig, get_preset
from minipalm.course import ROOT
from minipalm.data.corpus import stored_pairs
from minipalm.data.datasets import (
    check_prompt_lengths,
    fitting,
    hold_out,
    read_preferences,
    read_prompts,
)
from minipalm.data.files import fingerprint
from minipalm.data.gold import bayes_accuracy
from minipalm.evaluate.statistics import (
    Bin,
    expected_calibration_error,
    length_auc,
)
from minipalm.model.palm import PaLM, count_parameters
from minipalm.model.place import beside, place
from minipalm.parallel import summed
from minipalm.rlhf.answers import answer, score_answers
from minipalm.rlhf.labeller import labelled_pairs
from minipalm.rlhf.pairs import Pairs, encode_pairs
from minipalm.rlhf.reward import check_pooling, score_all, score_pairs
from minipalm.train.networks import load_policy, load_trunk, tokenizer_of
from minipalm.train.optim import (
    adamw,
    batch_rows,
    micro_batches,
    optimizer_step,
)
from minipalm.train.run import Run, read_metrics, steps_left
from minipalm.train.stage import finish_stage, result_fingerprint

# %% tags=["classroom"]
from minipalm.course.check import check, progress
from minipalm.course.classroom import start_afresh
from minipalm.plot.interactive import interactive
from minipalm.plot.preferences import (
    learnt_by_heart,
    length_bias,
    preference_pair,
    where_it_reads,
)

# %%
os.chdir(ROOT)  # paths are from the repository's folder

# %% tags=["classroom"]
start_afresh(out, "08_reward_model", scale)

# %%
preset = get_preset(scale)
tokenizer = tokenizer_of(out)
left = out, "07_sft", preset, tokenizer
policy = place(load_policy(*left), preset.machine, trained=False)
trunk = load_trunk(*left)
asked = read_prompts(prompts)
check_prompt_lengths(asked, tokenizer, preset.max_prompt)
sizes = {"max_prompt": preset.max_prompt, "max_response": preset.max_response}

# %% [markdown]
# ## Comparisons
#
# How good is a story, from 0 to 10, and would you say the same next week?
# Which of two is better is the easier question, so that is what people are
# asked.
#
# Where you give no comparisons of your own, both answers come from the policy
# itself: texts like those that PPO will begin with.

# %% [markdown]
# The labeller is a program. It knows the *gold reward*, how good a tale really
# is by the rules of this world, which no model ever sees. And it errs as
# people do: it prefers a with probability
# $\sigma((\text{gold}_a - \text{gold}_b) / \tau)$.
#
# - $\sigma(x) = 1 / (1 + e^{-x})$ makes a probability of any number.
# - $\tau$ says how often it errs: the larger, the more it tosses a coin.

# %%
number = preset.reward.pairs, preset.reward.heldout_pairs
bayes = None
if preferences:
    records = fitting(read_preferences(preferences), tokenizer, **sizes)
    train, test = hold_out(records, 0.2, seed)
    train_pairs = stored_pairs(
        train, tokenizer, **sizes, folder=f"{out}/08_reward_model/pairs"
    )
    test_pairs = encode_pairs(test[: number[1]], tokenizer, **sizes)
else:
    pairs, golds = labelled_pairs(
        policy, tokenizer, asked, sum(number), seed=seed, **sizes
    )
    train_pairs, test_pairs = pairs[: number[0]], pairs[number[0] :]
    bayes = bayes_accuracy(*zip(*golds[number[0] :], strict=True))
print(f"{len(train_pairs)} pairs to train on, {len(test_pairs)} to test on")

# %% [markdown]
# The first line of each group is the prompt. Cover the marks + and − with a
# hand: which answer would you have chosen?

# %%
for n in range(min(3, len(train_pairs))):
    for mark, ids, kept in (
        ("", train_pairs.prompts, train_pairs.prompt_mask),
        ("  + ", train_pairs.chosen, train_pairs.chosen_mask),
        ("  - ", train_pairs.rejected, train_pairs.rejected_mask),
    ):
        print(f"{mark}{tokenizer.decode(ids[n][kept[n]].tolist())}")

# %% [markdown]
# ## One answer, one number
#
# The network reads prompt and answer as one text and has a state at every
# token. How do you get from many states to one number?
#
# - **last**: the state of the answer's last token, which has seen all of it;
# - **mean**: the mean of the states of the answer's tokens.
#
# Prompts are padded on the left and answers on the right, so that all answers
# begin in the same column, and end in different ones:
#
# ```
# .  .  tell me | happy cat ran <eos> .
# a  story of a | dog <eos> .    .    .
# ```

# %% tags=["exercise"]
from minipalm.rlhf.reward import pool

# %% [markdown]
# ## A head on a trunk
#
# The trunk is the fine-tuned language model, smaller than the policy: it can
# read already. Its head over the vocabulary is not used; a new one turns a
# state into a number.

# %% tags=["exercise"]
from minipalm.rlhf.reward import scalar_head

# %% [markdown]
# ## The whole model
#
# Now put trunk, pool and head together. The last two attributes, `mean` and
# `std`, turn the raw score into one with a zero and a unit; until you set
# them, near the end of this lesson, they are 0 and 1. (`fit_scale` does that;
# it calls `new_scale`, which you write there.)

# %% tags=["exercise"]
from minipalm.rlhf.reward import RewardModel

# %%
generator = torch.Generator().manual_seed(seed)
reward_model = RewardModel(trunk, preset.reward.pooling, generator)
reward_model = place(reward_model, preset.machine)
share = count_parameters(trunk.config) / count_parameters(policy.config)
print(f"the reward model has {share:.0%} of the policy's parameters")
print("pooling:", reward_model.pooling)

# %% [markdown]
# ## The loss
#
# Bradley and Terry's model of comparisons gives each answer a score $r$, and
# says: one wins over another with probability
# $\sigma(r_\text{chosen} - r_\text{rejected})$. The loss is how surprised that
# model is by the label, minus the logarithm of what it gave it (in *nats*, the
# unit of natural logarithms). A margin $m$ asks for a clearer win:
#
# $$L = -\log \sigma(r_{\text{chosen}} - r_{\text{rejected}} - m)$$

# %% tags=["exercise"]
from minipalm.rlhf.reward import pairwise_loss

# %% [markdown]
# Move the two scores. Where is the push strongest, and what becomes of it when
# the pair is won by far? What does the margin change?

# %% tags=["classroom"]
interactive(
    lambda chosen, rejected, margin: preference_pair(
        pairwise_loss, chosen, rejected, margin
    ),
    chosen=(-3.0, 3.0, 0.25, -0.5),
    rejected=(-3.0, 3.0, 0.25, 1.0),
    margin=(0.0, 2.0, 0.25, 0.0),
)

# %% [markdown]
# ## Train
#
# Each step takes a batch of pairs, scores both answers of each, and makes the
# labels a little likelier. Two passes over the data at most: you see below
# what more of them do.

# %% tags=["define"]
from minipalm.train.reward_model import train_reward_model

# %%
run = Run(
    f"{out}/08_reward_model/training",
    seed=seed,
    model=asdict(trunk.config),
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
# ## How often is it right?
#
# Count on comparisons that it has not seen. What should a model get that gives
# all answers the same score?

# %% tags=["exercise"]
from minipalm.evaluate.statistics import accuracy

# %% [markdown]
# ## How sure is it, and does it come true?
#
# PPO will follow large scores, so it matters whether a large difference means
# more than a small one. Of the pairs in which the model is about as sure as
# this, how many does it get right?

# %% tags=["exercise"]
from minipalm.evaluate.statistics import reliability

# %% [markdown]
# Now all of it together. The labels are noisy: even a judge who knew the gold
# reward would be right only as often as the line `bayes` says. `ece` is the
# calibration error, the mean distance between sure and right. `length_auc` is
# the accuracy of a judge who knows nothing but the two lengths.

# %%
parts = preset.reward.optim.micro_batch
chosen, rejected = score_all(reward_model, test_pairs, parts)
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

# %% [markdown]
# **Predict.** Somebody adds 100 to every score. What happens to the accuracy,
# to the loss, to the calibration error, and to the picture above? Write it
# down, then run the next two cells.

# %% tags=["classroom"]
for name, shift in (("as they are", 0), ("with 100 added", 100)):
    one, two = chosen + shift, rejected + shift
    error = expected_calibration_error(reliability(one, two))
    loss = pairwise_loss(one, two).item()
    print(
        f"{name:15} accuracy {accuracy(one, two):.3f}   loss {loss:.4f}   "
        f"ece {error:.3f}"
    )

# %% tags=["classroom"]
plot.reward_histograms(chosen + 100, rejected + 100)

# %% [markdown]
# Only differences count: neither the loss nor any of the numbers can see the
# shift, so training leaves the zero of the scores to chance.
#
# Now the picture of how sure the model is. Where are the dots if it is surer
# than it should be: above the dashed line, or below?

# %%
plot.reliability_diagram(reliability(chosen, rejected))

# %% [markdown]
# Below: it is right less often than it says. Look at the bars before you
# blame it: where a bar crosses the line, chance would do.
#
# **Predict.** Now somebody *multiplies* all scores by ten. What happens to
# the accuracy, to the loss, and to the dots?

# %% tags=["classroom"]
for times in (0.1, 1, 10):
    one, two = times * chosen, times * rejected
    error = expected_calibration_error(reliability(one, two))
    loss = pairwise_loss(one, two).item()
    print(
        f"{times:4} times: accuracy {accuracy(one, two):.3f}   "
        f"loss {loss:.4f}   ece {error:.3f}"
    )

# %% tags=["classroom"]
interactive(
    lambda times: plot.reliability_diagram(
        reliability(times * chosen, times * rejected)
    ),
    times=(0.5, 10.0, 0.25, 10.0),
)

# %% [markdown]
# The order stays, and so does the accuracy. But the model now says that it is
# nearly certain, and is right no more often: its mistakes become dear. Move
# the slider to where the calibration error is least.

# %% [markdown]
# ## Has it learnt to count words?
#
# If longer answers win more often, a model can be right often and have learnt
# only that; a policy would find out. Look at the pairs in which the better
# answer is the *shorter* one: there, a counter is always wrong.

# %% tags=["classroom"]
lengths = [
    mask.sum(1) for mask in (test_pairs.chosen_mask, test_pairs.rejected_mask)
]
length_bias(chosen, rejected, *lengths)

# %% [markdown]
# Add a bonus for length to the trained model's scores. How large may it become
# before the accuracy over all pairs (in the title) warns you, and what do the
# groups say by then?

# %% tags=["classroom"]
interactive(
    lambda bonus: length_bias(
        chosen + bonus * lengths[0], rejected + bonus * lengths[1], *lengths
    ),
    bonus=(-0.5, 0.5, 0.05, 0.1),
)

# %% [markdown]
# ## Give the score a zero and a unit
#
# Fresh answers of the policy get mean 0 and standard deviation 1. The next
# lessons charge for how far a policy moves from its start, the KL: β is the
# price of a nat of it. With a unit for the score, β means the same for every
# reward model.
#
# Scores that come in may have a scale: fitting twice must be as good as once.

# %% tags=["exercise"]
from minipalm.rlhf.reward import new_scale


# %%
def fresh_scores() -> Tensor:
    """Scores of answers to prompts drawn at random."""
    rows = torch.randint(len(asked), (1024,), generator=generator)
    drawn = [asked[row].prompt for row in rows]
    fresh = answer(policy, tokenizer, drawn, generator=generator, **sizes)
    return score_answers(reward_model, fresh)


reward_model.fit_scale(fresh_scores())
plot.score_scale(fresh_scores())

# %% [markdown]
# ## Break it: read the last column
#
# A batch is padded to one width. What if the score is read in the last column,
# as some do by `scores[:, -1]`? Below are one answer's scores, column by
# column, from the model that you have trained.

# %% tags=["classroom"]
with torch.no_grad():
    ids = torch.cat([test_pairs.prompts, test_pairs.chosen], dim=1)
    seen = torch.cat([test_pairs.prompt_mask, test_pairs.chosen_mask], dim=1)
    states = reward_model.trunk.hidden(
        ids, seen.long(), last=preset.max_response
    )
    columns = reward_model.head(states)[..., 0]
row = int((test_pairs.chosen_mask.sum(1) - 13).abs().argmin())
names = tokenizer.decode(test_pairs.chosen[row].tolist()).split()
kept = test_pairs.chosen_mask[row]
words = [*names, "<eos>"][: int(kept.sum()) - 1] + ["<eos>"]
where_it_reads(words, columns[row], kept)

# %% tags=["classroom"]
with torch.no_grad():
    ids = torch.cat([test_pairs.prompts, test_pairs.rejected], dim=1)
    seen = torch.cat([test_pairs.prompt_mask, test_pairs.rejected_mask], dim=1)
    states = reward_model.trunk.hidden(
        ids, seen.long(), last=preset.max_response
    )
    others = reward_model.head(states)[..., 0]
tokens = test_pairs.chosen_mask, test_pairs.rejected_mask
ways = {"last column": [x[:, -1] for x in (columns, others)]}
for way in ("last", "mean"):
    ways[way] = [
        pool(x[..., None], mask, way)[:, 0]
        for x, mask in zip((columns, others), tokens)
    ]
for way, (one, two) in ways.items():
    equal = ((one - two).abs() < 1e-3).double().mean().item()
    mark = "  <- trained so" if way == reward_model.pooling else ""
    print(f"{way:12} accuracy {accuracy(one, two):.3f}", end="")
    print(f", ties {equal:.0%}{mark}")

# %% [markdown]
# A pad sees nothing but pads, so all pads say the same, up to rounding: most
# pairs are ties, and the accuracy is a coin's. Only answers that fill their
# row have a token there. If ties counted as right, this model would look
# perfect. No error was raised.
#
# `last` against `mean` is no contest of methods here: the head has been
# trained with one of them, and the other asks it what it has not learnt.

# %% [markdown]
# ## Break it: learn the labels by heart
#
# The labeller errs, so some labels are wrong. **Predict** four curves:
# accuracy and loss on the few pairs that a model is trained on for many
# epochs, and the same on others.


# %% tags=["classroom"]
def train_long(few: Pairs, steps: int, every: int) -> list[list[float]]:
    """Epochs; accuracy and loss on these pairs, and on the held-out ones."""
    own = torch.Generator().manual_seed(seed)
    model = RewardModel(load_trunk(*left), preset.reward.pooling, own)
    model = place(model, preset.machine)
    optim = replace(preset.reward.optim, steps=steps)
    optimizer, rows = adamw(model, 0.0, optim.betas), []
    for step in range(1, steps + 1):
        batch = few[batch_rows(len(few), 64, step, seed)]
        pairwise_loss(*score_pairs(model, batch)).backward()
        optimizer_step(model, optimizer, optim, step)
        if step % every == 0:
            rows.append([step * 64 / len(few)])
            for some in (few, test_pairs):
                with torch.no_grad():
                    x = score_pairs(model, some)
                rows[-1] += [accuracy(*x), pairwise_loss(*x).item()]
    return rows


# %% tags=["classroom"]
rows = train_long(
    train_pairs[:1024],
    preset.reward.optim.steps,
    every=min(10, preset.checkpoint_every),
)
epochs, right, loss, right_else, loss_else = zip(*rows)
learnt_by_heart(
    epochs,
    {"seen": right, "held out": right_else},
    {"seen": loss, "held out": loss_else},
    bayes,
)

# %% [markdown]
# The curve of the seen pairs climbs past the line of a judge who knows the
# gold reward, where nobody can be by right: from there on the model learns
# the labeller's slips. On other pairs it gets no
# better, and its loss climbs past a coin's: wrong, and ever more sure of
# itself. That is why one or two epochs are the custom.

# %% [markdown]
# ## What changed
#
# You have a number to optimise, and you know four things about it: how often
# it agrees with the labeller, how sure it is, what length has to do with it,
# and what a unit of it means. Lesson 09 measures how far a policy moves for
# it.

# %%
finish_stage(
    out,
    "08_reward_model",
    {"reward_model": reward_model},
    tokenizer,
    scale=scale,
    seed=seed,
    parameters=count_parameters(trunk.config) + trunk.config.dim + 1,
    policy_parameters=count_parameters(policy.config),
    **result,
)

# %% [markdown]
# ## What real systems do differently
#
# - Labels come from people (or from another model), several for a prompt; all
#   pairs of a prompt stay in one batch, since they are not independent.
# - The model is often as large as the policy (Llama 2), but need not be:
#   InstructGPT had one of 6B for a policy of 175B. One epoch is usual.
# - Where labellers say *how much* better, the margin depends on it.
# - Lengths are balanced or charged for, and accuracy is reported by subject,
#   since an average hides where a model is blind.
#
# ## Left out on purpose
#
# - Ensembles of reward models, and what happens when a policy finds their
#   gaps: lesson 13.
# - Scores for steps rather than whole answers (process rewards): Lightman et
#   al. below.
# - Rewards by written rules or by programs: lesson 18.
#
# ## Further reading
#
# - Stiennon et al. 2020, *Learning to summarize from human feedback*,
#   arXiv 2009.01325, section 3.4: head and loss.
# - Ouyang et al. 2022, *Training language models to follow instructions with
#   human feedback*, arXiv 2203.02155, equation 1.
# - Touvron et al. 2023, *Llama 2*, arXiv 2307.09288, equation 2: the margin.
# - Guo et al. 2017, *On Calibration of Modern Neural Networks*,
#   arXiv 1706.04599.
# - Singhal et al. 2023, *A Long Way to Go: Investigating Length Correlations
#   in RLHF*, arXiv 2310.03716.
# - Lightman et al. 2023, *Let's Verify Step by Step*, arXiv 2305.20050.

# %% tags=["classroom"]
progress()

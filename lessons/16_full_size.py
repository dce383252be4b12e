# %% [markdown]
# # 16 · Full size
#
# The notebooks that you have run on a laptop also train a policy a hundred
# thousand times as large. Nothing in them changes. What changes is whether it
# fits, how long it takes, and who pays.
#
# You build the arithmetic behind these three: operations, bytes, the wire, the
# floor of sampling, what rounding does to small steps, and the bill. It is the
# planner of this package, and it is held to measurement.

# %% tags=["parameters"]
scale = "toy"
planned = "full"
seed = 0
out = "runs/toy"

# %%
import copy
import json
import math
import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from IPython.display import Markdown
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minipalm.config import PaLMConfig, get_preset
from minipalm.course import ROOT
from minipalm.model.compiled import Forward, replace_forward
from minipalm.model.lora import adapter_parameters, with_adapters
from minipalm.model.palm import PaLM, count_parameters
from minipalm.plot.interactive import interactive
from minipalm.plot.scale import (
    attention_curve,
    bill,
    decode_curve,
    memory_bars,
    plan_and_truth,
    survival_curve,
    training_curves,
    wire_curve,
)
from minipalm.plot.training import ppo_dashboard
from minipalm.scale.flops import adapter_parameters as adapter_numbers
from minipalm.scale.gpu import GIB, GPUS
from minipalm.scale.measured import comparison, read_results
from minipalm.scale.memory import total, training_peak
from minipalm.scale.plan import plan
from minipalm.scale.report import budget, memory_table, stage_table
from minipalm.scale.stages import networks
from minipalm.train.language_model import next_token_loss
from minipalm.train.optim import adamw, set_lr
from minipalm.train.stage import finished_stage

# %% tags=["classroom"]
from minipalm.config import MachineConfig
from minipalm.course.check import check, progress
from minipalm.course.classroom import borrow
from minipalm.data.batches import pad_left, prompt_ids
from minipalm.data.datasets import read_prompts
from minipalm.model.place import place
from minipalm.plot.scale import ratio_spread
from minipalm.rlhf.logprobs import response_logits, token_logprobs
from minipalm.rlhf.sampling import Sampler
from minipalm.train.networks import load_policy, tokenizer_of
from minipalm.train.stage import stage_summary

# %%
os.chdir(ROOT)  # paths are from the repository's folder

# %% tags=["classroom"]
borrow(out, ("06_palm", "11_ppo"), scale)

# %%
preset = get_preset(planned)
policy, trunk = networks(preset)
mine = replace(get_preset(scale).policy, vocab_size=144)
print(f"your policy      {count_parameters(mine):>13,} weights")
print(f"the planned one  {count_parameters(policy):>13,}")
print(f"its critic       {count_parameters(trunk):>13,}")

# %% [markdown]
# ## Operations
#
# A GPU sells operations a second. How many does one token of training need?
# Each weight meets each token on the way forward, and twice on the way back.
# Attention comes besides: it has no weights, but it looks at all the tokens
# before.

# %% tags=["exercise"]
from minipalm.scale.flops import training_flops

# %%
per_token = training_flops(policy, preset.window)
weights = count_parameters(policy)
print(
    f"{per_token:.3g} operations a token, {per_token / weights:.2f} a weight"
)

# %% [markdown]
# That is the famous rule of six operations a weight and token.
#
# **Predict.** Lesson 03 made much of attention's cost, which grows with the
# square of the length. In rows as long as the large preset's, what part of a
# training step is it, in the large policy and in yours? Write two numbers
# down, then move the length.


# %%
def looked(doublings: int):
    """Attention's share, for the slider: the length is a power of two."""
    both = {"planned policy": policy, "toy policy": mine}
    return attention_curve(training_flops, both, 2**doublings)


interactive(looked, doublings=(5, 17, 1, 11))

# %% [markdown]
# Width decides: weights grow with its square, attention only with it. So at
# this width and length the rule of six is right, and attention's kernel hardly
# matters for speed. In rows that long it would be badly wrong for your policy;
# in the short rows of its own world it holds again.

# %% [markdown]
# ## Memory
#
# What must lie in a GPU's memory before the first token comes? AdamW keeps two
# numbers of each weight that it trains.

# %% tags=["exercise"]
from minipalm.scale.memory import state_bytes

# %%
few_trained = adapter_numbers(policy, rank=16)
for name, sizes in (
    ("float32, one GPU", (0, weights, 4, 1)),
    ("float32, eight GPUs", (0, weights, 4, 8)),
    ("bfloat16, one GPU", (0, weights, 2, 1)),
    ("frozen, small adapters", (weights, few_trained, 4, 1)),
):
    held = state_bytes(*sizes)
    each = "  ".join(f"{k} {v / GIB:5.1f}" for k, v in held.items())
    print(f"{name:24} {each}  all {sum(held.values()) / GIB:6.1f} GiB")

# %% [markdown]
# Sixteen bytes a weight, before anything is computed. Then come
# **activations**: what a block must remember until its gradient comes by.

# %% tags=["define"]
from minipalm.scale.memory import kept_bytes

# %%
one = kept_bytes(policy, compiled=True)
print(f"{one:,} bytes a token and block")
print(f"{one * policy.depth * 4 * preset.window / GIB:.1f} GiB for four rows")

# %% [markdown]
# Most of it is the feed-forward layer. **Recomputing** keeps only what goes
# into each block, and runs the block once more when its gradient is due:
# memory for time.

# %% tags=["define"]
from minipalm.model.compiled import recompute_blocks


# %% [markdown]
# **Predict.** Does the gradient stay the same? And how many numbers less are
# kept, in your small network?


# %%
def saved_and_gradient(model: PaLM) -> tuple[int, Tensor]:
    """Numbers kept for the backward pass, and the first gradient."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: (kept.append(x.numel()), x)[1], lambda x: x
    ):
        loss = next_token_loss(model, torch.arange(64).view(2, 32))
    loss.backward()
    return sum(kept), model.blocks[0].w_in.weight.grad


plain = PaLM(mine)
again = copy.deepcopy(plain)
recompute_blocks(again)
(many, first), (few, second) = map(saved_and_gradient, (plain, again))
print(f"{many:,} numbers kept, {few:,} with recomputing")
print(f"the same gradient: {torch.allclose(first, second)}")

# %% [markdown]
# In your policy the head and its logits, which are kept in any case, weigh
# more than in a large one: hence less is saved than the docstring says.

# %% [markdown]
# When is the memory fullest? Not at the end: as the backward pass goes on,
# activations go and gradients come. So the worst moment is either its
# beginning or its end.
#
# Two more parts: *copies* are the bfloat16 twins of float32 weights that the
# products use, *working* is what lives for a moment: gradients inside a block,
# or the loss's logits.
#
# **Predict.** One A100 of 80 GB, four rows: which of these fit? All weights
# trained; the same with recomputing; adapters. Then move rows and GPUs.


# %%
def lie(gpus: int, rows: int):
    """Four ways to train the policy, for the sliders."""
    ways = {}
    for name, rank, again in (
        ("all weights", 0, False),
        ("all + recompute", 0, True),
        ("adapters", 16, False),
        ("adapters + recompute", 16, True),
    ):
        if rank and gpus > 1:
            continue  # adapters need no company
        machine = replace(preset.machine, lora_rank=rank, recompute=again)
        tokens = rows * preset.window
        ways[name] = training_peak(policy, machine, tokens, gpus, rank > 0)
    title = f"{gpus} GPU, {rows} rows each"
    return memory_bars(ways, GPUS["a100-80g"], title, gpus)


interactive(lie, gpus=(1, 8, 1, 1), rows=(1, 16, 1, 4))

# %% [markdown]
# Two ways out of one card: share what lies there among several, or train less.
#
# ## Share it
#
# Under **FSDP** each of g GPUs keeps a g-th of everything, and reads rows of
# its own. Just before a block computes, its parts are gathered from all; just
# after, they are forgotten. On the way back the same, and the gradients are
# added up, each GPU keeping its part. Memory falls with g. What is the price?

# %% tags=["exercise"]
from minipalm.scale.sharding import fsdp_traffic

# %%
sent = fsdp_traffic(weights, weights, gpus=8)
for name in ("h200", "a100-80g", "24g"):
    gpu = GPUS[name]
    print(f"{gpu.name:14} {sent / gpu.link:6.2f} s on the wire a micro-batch")

# %% [markdown]
# The last one has no fast wire: its GPUs speak through the slots of the board.
#
# **Predict.** The price is a micro-batch's, whatever its size. How many rows
# must it have until the wire takes less than a tenth of the time? Move the
# number of GPUs: does it get better or worse?

# %%
interactive(
    lambda gpus: wire_curve(
        training_flops, fsdp_traffic, policy, weights, GPUS["a100-80g"], gpus
    ),
    gpus=(2, 8, 1, 8),
)

# %% [markdown]
# Hardly worse: each GPU receives nearly all weights, be there four or eight.
# That is why sharing scales within a machine. (The figure counts computing and
# the wire one after the other. On two GPUs the measured times were like that.)

# %% [markdown]
# ## Train less
#
# An adapter puts two thin matrices beside a large one. The large one stays as
# it is, so it needs no gradient and no moments.

# %% tags=["define"]
from minipalm.model.lora import LowRank

# %%
torch.manual_seed(seed)
reference = PaLM(mine)
adapted = with_adapters(reference, rank=4)
ids = torch.randint(144, (2, 9))
same = torch.allclose(adapted(ids), reference(ids), atol=1e-5)
small = sum(w.numel() for w in adapter_parameters(adapted))
print(f"{small:,} of {count_parameters(mine) + small:,} weights are trained")
print(f"at first the answers are the reference's: {same}")

# %% [markdown]
# `with_adapters` copies nothing: policy and reference are one network, with
# the adapters on or off. PPO needs both, and pays for one. To sample, the
# adapters are added into the matrices, and taken out again bit for bit.

# %% [markdown]
# ## The floor of sampling
#
# A step of sampling writes one token for each row, and must read every weight
# for it. Which is the shortest time that it can take?

# %% tags=["exercise"]
from minipalm.scale.decoding import decode_floor

# %% [markdown]
# **Predict.** From one row to sixty-four: how much longer does a step take?
# And where does the line turn?


# %%
def written(doublings: int, card: str):
    """The floor, for the sliders: the number of rows is a power of two."""
    return decode_curve(decode_floor, policy, GPUS[card], 2**doublings, 192)


interactive(written, doublings=(0, 10, 1, 6), card=["h200", "a100-80g", "24g"])

# %% [markdown]
# Up to the turn, rows are free. What stands between this floor and a naive
# loop is Python, which starts a thousand small kernels a step. The package's
# `Decoder` keeps every buffer in its place, so that the GPU records a step
# once, as a graph, and repeats it by itself:
# [decoder.py](../minipalm/model/decoder.py). Its last kernel picks the tokens:

# %% tags=["define"]
from minipalm.model.draw import next_token

# %% [markdown]
# Every row has uniform numbers of its own, drawn beforehand. So an answer does
# not depend on the batch that it is in, nor on the number of GPUs.

# %% [markdown]
# ## Small steps
#
# Half of the memory could be saved by keeping weights in bfloat16. Why does
# nobody who knows do it without a trick?

# %% tags=["exercise"]
from minipalm.scale.rounding import surviving_share

# %% [markdown]
# AdamW's first step moves each weight by the learning rate. **Predict**, for
# weights of a usual size and the learning rate of this preset's PPO, how many
# of a hundred steps change anything. Then move both.

# %%
draw = torch.randn(4096, generator=torch.Generator().manual_seed(seed))
print(f"PPO's learning rate: {preset.ppo.policy_lr:g}")


def survive(exponent: float, size: float):
    """Steps that survive, for the sliders: the rate is ten to the exponent."""
    return survival_curve(surviving_share, size * draw, 10**exponent)


interactive(
    survive, exponent=(-8.0, -3.0, 0.25, -6.0), size=(0.01, 0.2, 0.01, 0.02)
)

# %% [markdown]
# The share falls in steps, since the distance between neighbours doubles at
# each power of two. So weights that are trained stay in float32, and become
# bfloat16 for each product: **masters**. Or the rounding is done by chance, so
# that a step of a hundredth of the way is done one time in a hundred:

# %% tags=["define"]
from minipalm.scale.rounding import stochastic_rounding

# %% [markdown]
# ## Hours and money

# %% tags=["exercise"]
from minipalm.scale.money import hours_and_money

# %%
tokens = preset.pretrain.steps * preset.pretrain.batch_size * preset.window
a100 = GPUS["a100-80g"]
hours, dollars = hours_and_money(
    tokens * per_token, 8, a100.flops, 0.9, a100.price
)
print(f"{tokens:,} tokens: {hours:.0f} hours, {dollars:,.0f} dollars")

# %% [markdown]
# The price is an assumption, and so is the rate: it is the data sheet's, times
# the share that another card was measured to reach when it is hot.
#
# The planner adds what this leaves out: the wire, the optimizer, checkpoints,
# the trunk of reward model and critic, which is trained as long, and all that
# comes after. **Predict.** Of a hundred GPU-hours of the whole
# pipeline, how many go into RLHF: SFT, reward model and PPO together?

# %%
stages = plan(preset, a100, gpus=8)
print(stage_table(stages, a100, 8))

# %% [markdown]
# **Predict.** PPO has four networks. At its worst moment, what is largest, and
# which part would not shrink with more GPUs?

# %%
[ppo] = [one for one in stages if one.phases]
print(memory_table(ppo.memory))

# %% [markdown]
# A copy of the policy to sample from, whole on every GPU: gathering each block
# for each token would take far longer than the step itself. It is given up
# before learning begins. (*prompts* is what reading them needs for a moment.)
# Now the bill:


# %%
def paid(card: str, gpus: int):
    """The bill, for the sliders."""
    return bill(plan(preset, GPUS[card], gpus), GPUS[card], gpus)


interactive(paid, card=["a100-80g", "h100", "h200"], gpus=(1, 8, 1, 8))

# %% [markdown]
# Nearly everything is pretraining. RLHF is expensive in people and in care,
# hardly in hours. Who starts from published weights pays the small rest.
#
# Suppose that you are given five thousand A100-hours. What do they buy?

# %%
for name, number in budget(stages, gpus=8, hours=5000.0).items():
    print(f"{name:18} {number:,.{1 if number < 100 else 0}f}")
print(
    f"\ntokens a weight: {budget(stages, 8, 5000.0)['tokens'] / weights:.1f}"
)

# %% [markdown]
# `pipelines` and `after pretraining` count whole runs, `iterations` those of
# PPO. `tokens` is what pretraining may have if the rest is paid once. Hoffmann
# and others found about twenty tokens a weight to be the best use of a given
# compute: these hours buy less than half of that.

# %% [markdown]
# ## Is it true?
#
# A plan is a claim. Each dot is a way to train that was run on one GPU or two,
# by this package's own code. None of them has set a constant of the planner:
# prototypes have, before. The bands are what the planner promises.

# %%
results = read_results()
print(results["source"])
plan_and_truth(results)

# %%
Markdown(comparison(results))

# %% [markdown]
# The last lines are PPO's iterations and the steps of decoding. One formula
# was corrected after this table was first seen, and
# [the page of the planner](../docs/planner.md) says which.

# %% [markdown]
# ## How near to the ceilings?
#
# The same card was asked in the same minutes how fast it multiplies when it is
# hot, and how fast it copies. **Predict.** What comes nearer to its ceiling: a
# step of training, or a step of sampling?

# %%
page = Path("bench/README.md").read_text("utf-8")
_, _, table = page.partition("bench.full_size --readme: begin -->")
Markdown(table.partition("<!--")[0])

# %% [markdown]
# Training is mostly large products, and these are what the ceiling is made
# of. A step of sampling reads every weight once, in hundreds of small kernels,
# each of which has a beginning and an end.
# [How it was measured](../bench/README.md).

# %% [markdown]
# ## Whose log-probabilities?
#
# PPO's ratio divides a token's probability by the old one, under which it was
# drawn. The sampler knew that: token by token, with a cache. Training computes
# it again, whole rows at once: the same formula, in another order. In bfloat16
# every order rounds otherwise.
#
# So there is a choice, `reuse_logprobs`: keep the sampler's numbers, or let
# training's own pass read every answer once more, before it learns.

# %% tags=["classroom"]
own = get_preset(scale)
tokenizer = tokenizer_of(out)
kept = stage_summary(out, "11_ppo")["kl_coefs"][0]
saved = load_policy(out, "11_ppo", own, tokenizer, f"beta-{kept:g}")
records = read_prompts("data/prompts.jsonl")[:256]
asked = pad_left(
    [prompt_ids(tokenizer, one.prompt) for one in records], own.max_prompt
)

# %% [markdown]
# **Predict.** You sample, and no weight has changed yet: the ratio ought to be
# one. How far from it are the tokens, with either choice? And in float32?


# %% tags=["classroom"]
@cache
def first_ratios(compute: str) -> dict[str, Tensor]:
    """Of every token, by whose numbers the old ones are."""
    policy = place(saved, MachineConfig(compute=compute, decoder=True))
    sampled = Sampler(policy)(
        policy,
        *asked,
        max_new_tokens=own.max_response,
        eos_id=tokenizer.eos_id,
        generator=torch.Generator().manual_seed(seed),
    )
    answers = (*asked, sampled.responses, sampled.mask)

    def read() -> Tensor:  # as training does
        logits = response_logits(policy, *answers)
        return token_logprobs(logits, sampled.responses)[sampled.mask]

    with torch.no_grad():
        olds = {"recomputed": read(), "reused": sampled.logprobs[sampled.mask]}
    return {name: (read() - old).exp().detach() for name, old in olds.items()}


interactive(
    lambda compute: ratio_spread(first_ratios(compute), own.ppo.clip),
    compute=["bfloat16", "float32"],
)

# %% [markdown]
# Recomputed, it is one: the same kernels did the same work twice. Reused, it
# is blurred around one, and the clip is far away. In float32 the choice hardly
# matters, so on a laptop the pass is saved.
#
# Which is right? The tokens came from the sampler's law, so importance
# sampling divides by *its* numbers. Recomputing makes the ratio quiet, and
# hides that two laws differ.
#
# **Predict.** In the large policy, which part of an iteration is that pass?

# %%
measured = json.loads(Path("data/results/full_size.json").read_text("utf-8"))
for run in ("old_logprobs", "old_logprobs_again"):
    for way in ("recomputed", "reused"):
        seconds, gap, most, outside = (
            measured[run][f"{way}/{key}"]
            for key in ("seconds", "gap", "farthest", "outside")
        )
        print(
            f"{way:11}{seconds:6.2f} s, log ratio at first {gap:.4f} nats a "
            f"token, at most {most:.2f}, {outside:.0%} outside"
        )
    seconds = measured[run]["recomputed/pass_seconds"]
    print(f"the pass took {seconds:.2f} s of the first\n")
costs = json.loads(Path("data/results/full_methods.json").read_text("utf-8"))
for name, row in costs["methods"].items():
    if seconds := row["phases"].get("logprobs"):
        print(f"{name:8} the pass is {seconds / row['seconds']:.0%}")
print(f"two GPUs: sampler_gap {measured['two_ppo']['sampler_gap']:.4f} nats")

# %% [markdown]
# Two runs of the same program, an iteration each way. In one of them
# recomputing gave one to the last bit, in the other it did not. Most likely
# because each run compiles its kernels anew, with gradients and without, and
# chooses them by speed: where they differ, so does the rounding. With either
# choice all tokens stay inside the clip range. (Adapters, random weights: it
# says nothing about learning.)

# %% [markdown]
# Why do the presets for GPUs pay for it? Because the pass is a test: every
# iteration writes down `sampler_gap`, and a sampler with a bug stops the run.
# Who trusts the sampler may reuse, and saves the seconds.

# %% [markdown]
# ## Reading a batch run
#
# `./course full` runs these notebooks on the GPUs, one process a GPU, for
# hours. Nobody looks at a slider there. What you read is:
#
# - the executed notebook of each stage, in the run's folder: rank 0 has the
#   figures; the others' stand beside it, for when one fails;
# - `metrics.jsonl`, a line a step, while it goes: `tail -f` is enough;
# - `python -m minipalm.report RUN`, the whole as a page, at any time.
#
# [Full size](../docs/full_size.md) says how to start one and how to resume it.

# %%
run = finished_stage(out, "11_ppo")
found = sorted(run.glob("beta-*/metrics.jsonl"))
lines = found[-1].read_text("utf-8").splitlines()
rows = [json.loads(line) for line in lines]
print(", ".join(rows[-1]))
ppo_dashboard(rows)

# %% [markdown]
# On GPUs each line also has `seconds` of every phase, `tokens_per_second`,
# `memory`, and `sampler_gap`: how far the sampler's log-probabilities are from
# training's own. Read them in this order:
#
# - `memory` after the first steps, against the plan: it will not grow later;
# - `tokens_per_second`, against the plan: far below it, look at the phases;
# - `sampler_gap`: bfloat16 kernels differ by some hundredths of a nat. Much
#   more is a bug, the kind that lesson 14 was about;
# - then what you know: KL, entropy, explained variance.

# %% [markdown]
# ## Break it
#
# **Keep bfloat16 weights**, and learn something easy: rows that count. The
# same steps three times; only the rounding differs. **Predict** the three
# curves.


# %% tags=["classroom"]
def learn(rounding, steps: int = 200) -> list[float]:
    """Losses of a small network whose weights are rounded after each step."""
    random = torch.Generator().manual_seed(seed)
    model = PaLM(replace(mine, vocab_size=32), random)
    optimizer, losses = adamw(model), []
    set_lr(optimizer, 3e-5)
    for _ in range(steps):
        start = torch.randint(32, (16, 1), generator=random)
        loss = next_token_loss(model, (start + torch.arange(24)) % 32)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for weight in model.parameters():
                weight.copy_(rounding(weight))
        losses.append(loss.item())
    return losses


training_curves(
    {
        "float32": learn(lambda weight: weight),
        "bfloat16": learn(lambda weight: weight.bfloat16()),
        "by chance": learn(stochastic_rounding),
    }
)

# %% [markdown]
# Every gradient was right, every step was taken, and nothing complained.
# Rounding by chance follows float32 with half of the bytes.
#
# **Forget that gradients stay.** A batch is cut into micro-batches because it
# does not fit. The plan below counts one of them, on a larger card, an H200.
# What is there when the second begins?

# %% tags=["classroom"]
machine = preset.machine
for several in (False, True):
    peak = training_peak(
        policy, machine, 4 * preset.window, accumulates=several
    )
    left = (GPUS["h200"].memory - total(peak)) / GIB
    print(f"several micro-batches: {several}, {left:+.1f} GiB are left")

# %% [markdown]
# The first micro-batch fits, the second one fails: the gradients of the first
# are waiting. Try a step, not a micro-batch, before you leave for the night.

# %% [markdown]
# ## What changed
#
# You can say, before anything is rented, what a run needs: operations from
# weights and tokens, bytes from how a network lies there, seconds from the
# rates that last, the bill from all three. And you know which number to
# distrust: the data sheet's rate, a price, and an activation that nobody
# counted.

# %% [markdown]
# ## What real systems do differently
#
# - Beyond one machine the wire is ten times slower. Then blocks are cut across
#   the GPUs of a machine (tensor parallelism) or laid one after the other
#   (pipelines), and FSDP works between machines.
# - Large runs sample on GPUs of their own, while others train.
# - Matrix products in eight bits halve the time again, and need more care.
#
# ## Left out on purpose
#
# - Moving moments to the CPU's memory: it fits nearly anything, slowly.
#   DeepSpeed's ZeRO-Offload does it well.
# - Frozen weights in four bits under adapters: QLoRA.
# - Machines that fail. A run of weeks counts on it; here it resumes.

# %% [markdown]
# ## Further reading
#
# - Rajbhandari, Rasley, Ruwase and He 2019, *ZeRO*, arXiv 1910.02054: sections
#   3 and 5, where the bytes are, and 7, what goes over the wire.
# - Korthikanti et al. 2022, *Reducing activation recomputation in large
#   transformer models*, arXiv 2205.05198.
# - Hu et al. 2021, *LoRA*, arXiv 2106.09685.
# - Pope et al. 2022, *Efficiently scaling transformer inference*, arXiv
#   2211.05102: section 2.
# - Zamirai, Zhang, Aberger and De Sa 2020, *Revisiting bfloat16 training*,
#   arXiv 2010.06192.
# - Hoffmann et al. 2022, *Training compute-optimal large language models*,
#   arXiv 2203.15556.
# - Kaplan et al. 2020, *Scaling laws for neural language models*, arXiv
#   2001.08361: section 2.

# %% tags=["classroom"]
progress()

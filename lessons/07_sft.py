# %% [markdown]
# # 07 · Supervised fine-tuning
#
# You teach both models to answer. A demonstration is a prompt and a good
# response; the models learn to continue the one with the other. The loss
# counts the response only, and rows are packed so that little of the work is
# padding.
#
# It is the first of the three stages of RLHF, and the one that PPO will be
# held to: every later policy is measured by its distance from this one.

# %% tags=["parameters"]
scale = "toy"
seed = 0
out = "runs/toy"
demonstrations = "data/demonstrations.jsonl"

# %%
import os
from collections.abc import Sequence
from dataclasses import asdict, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from minipalm import plot
from minipalm.clock import Clock
from minipalm.config import OptimConfig, get_preset
from minipalm.course import ROOT
from minipalm.data.corpus import encode_examples, packed_rows
from minipalm.data.datasets import fitting, hold_out, read_demonstrations
from minipalm.data.files import fingerprint
from minipalm.model.palm import PaLM
from minipalm.model.place import beside, fine_tuned, place
from minipalm.parallel import summed
from minipalm.rlhf.answers import answer
from minipalm.rlhf.sft import Example, Rows, pad_examples
from minipalm.train.heldout import mean_loss
from minipalm.train.networks import load_policy, load_trunk, tokenizer_of
from minipalm.train.optim import adamw, micro_batches, optimizer_step
from minipalm.train.run import Run, read_metrics, steps_left
from minipalm.train.stage import finish_stage, result_fingerprint

# %% tags=["classroom"]
from minipalm.course.check import check, progress
from minipalm.course.classroom import start_afresh
from minipalm.plot.finetuning import answer_lengths, response_view
from minipalm.plot.interactive import interactive

# %%
os.chdir(ROOT)  # paths are from the repository's folder

# %% tags=["classroom"]
start_afresh(out, "07_sft", scale)

# %%
preset = get_preset(scale)
tokenizer = tokenizer_of(out)
left = out, "06_palm", preset, tokenizer
policy = fine_tuned(load_policy(*left), preset.machine)
trunk = place(load_trunk(*left), preset.machine)

# %%
demos = read_demonstrations(demonstrations)
demos = fitting(demos, tokenizer, preset.max_prompt, preset.max_response)
for demo in demos[:3]:
    print(f"the author: {demo.prompt} → {demo.response}")

# %% [markdown]
# **Predict.** What does the policy of lesson 06 say to these prompts? It has
# read many tales, and no request. Write down what you expect, then run.

# %% tags=["classroom"]


def tell(model, number=4, temperature=1.0):
    """Answers to the first prompts."""
    return answer(
        model,
        tokenizer,
        [demo.prompt for demo in demos[:number]],
        max_prompt=preset.max_prompt,
        max_response=preset.max_response,
        generator=torch.Generator().manual_seed(seed),
        temperature=temperature,
    )


before = tell(policy)
for prompt, said in zip(before.prompts, before.texts, strict=True):
    print(prompt, "→", said)

# %% [markdown]
# It goes on writing, as it was taught, whatever was asked for. It knows the
# words and lacks the habit. Demonstrations will do.

# %% [markdown]
# ## From demonstrations to rows
#
# A demonstration becomes two lists of tokens: `<bos>` and the prompt; the
# response and `<eos>`. Three tensors hold many of them, of class `Rows`:
#
#     ids       <bos> say  hi   :   hi   <eos> <bos> ...  <pad>
#     segments    1    1    1   1    1     1     2   ...    0
#     mask        .    .    .   .    ■     ■     .   ...    .
#
# - `segments`: 1, 2, ... for the texts of a row, 0 for padding
# - `mask`: where a token counts. Which ones should?

# %% tags=["exercise"]
from minipalm.rlhf.sft import fill_rows

# %%
examples, tests = (
    encode_examples(part, tokenizer) for part in hold_out(demos, 0.05, seed)
)

# %% [markdown]
# Look at rows token by token. Above stands what the model reads, below what it
# is asked for at that place. **Predict** before you move the slider: at which
# place of a row is the first token asked for, and what is asked for last?

# %% tags=["classroom"]
names = [tokenizer.decode([token]) for token in range(tokenizer.vocab_size)]
names[:3] = "<pad>", "<bos>", "<eos>"
pairs = [examples[n : n + 2] for n in range(0, 40, 2)]
shown = fill_rows(pairs, preset.window)


def view(row):
    words = [names[token] for token in shown.ids[row].tolist()]
    return response_view(words, shown.segments[row], shown.mask[row])


interactive(view, row=(0, len(shown) - 1, 1, 0))

# %% [markdown]
# The first question stands under the last token of the *prompt*, the last one
# is `<eos>`, and `<eos>` itself is asked nothing: after it there is no answer.

# %% [markdown]
# ## Pack
#
# Responses have different lengths. Padded to the longest, much of each row is
# empty; packed, several demonstrations share a row. They do not see each
# other: attention stays within a segment, and positions start again with each.
# So packing changes no number, it only leaves less to compute.

# %% tags=["exercise"]
from minipalm.rlhf.sft import pack_examples

# %%
packed = packed_rows(
    pack_examples, examples, preset.window, f"{out}/07_sft/rows"
)
heldout = pad_examples(tests[:256])
few = examples[:24]
padded = pad_examples(few)
lengths = [len(asked) + len(said) for asked, said in examples[:20_000]]
plot.lengths_histogram({"demonstrations": lengths}, limit=preset.window)

# %%
plot.packing_picture(
    padded.segments, pack_examples(few, preset.window).segments
)

# %% [markdown]
# How wide should a row be? Move it. Wider rows fill better. Is there a price?
# (Attention compares each token with all of its row, and then masks most of
# it: its work grows with the square of the width.)

# %% tags=["classroom"]
narrow = max(len(prompt) + len(response) for prompt, response in few)


def packing_at(width):
    return plot.packing_picture(
        padded.segments, pack_examples(few, width).segments
    )


interactive(packing_at, width=(narrow, 5 * narrow, 1, 4 * narrow))

# %% [markdown]
# ## The loss
#
# $$L = -\frac{1}{\sum m_t} \sum_t m_t \log \pi(y_t \mid x, y_{<t})$$
#
# The mask $m$ is 1 at response tokens, the end-of-sequence token included: a
# model that is never asked to end does not learn to. One mean over all tokens
# of the batch: a token of a long answer weighs as much as one of a short.

# %% tags=["exercise"]
from minipalm.rlhf.sft import sft_loss

# %% [markdown]
# **Predict.** The same demonstrations, once padded and once packed into rows
# that hold two or three of them: by how much do the losses differ?

# %% tags=["classroom"]
with torch.no_grad():
    one = sft_loss(policy, padded).item()
    two = sft_loss(policy, pack_examples(few, preset.window)).item()
print(f"loss padded {one:.6f}, packed {two:.6f}")

# %% [markdown]
# The same to the last digits: the rest is rounding, in sums of another order.
# What if packed texts could see each other?

# %% tags=["classroom"]
tight = pack_examples(few, preset.window)
merged = Rows(tight.ids, tight.segments.clamp(max=1), tight.mask)
with torch.no_grad():
    leaky = sft_loss(policy, merged).item()
print(f"segments kept {two:.3f}, all texts of a row in one {leaky:.3f}")

# %% [markdown]
# Another loss, and no error. At training time the model would learn to look
# into texts that are not there when it answers.

# %% [markdown]
# ## Which rows, and when?
#
# Every demonstration once an epoch, in an order that depends on seed and epoch
# alone. Then a run that was stopped at any step goes on as if nothing had
# happened: the checkpoint need not store an order.

# %% tags=["exercise"]
from minipalm.train.optim import batch_rows

# %% [markdown]
# ## A step
#
# A batch may be larger than memory. Then it goes through in parts
# (*micro-batches*), and their gradients are summed before the one step:
#
# $$\nabla L = \sum_i \nabla L_i, \qquad L_i = -\frac{1}{\sum_{\text{batch}} m}
# \sum_{\text{part } i} m_t \log \pi(y_t \mid x, y_{<t})$$
#
# Note the denominator: that of the whole batch. A well-known library took a
# mean of the parts' means for years (see "Further reading"). **Your turn.**

# %% tags=["exercise"]
from minipalm.train.sft import sft_step

# %% [markdown]
# ## Train
#
# The loop around it: choose rows, step, write a line, keep a checkpoint.

# %% tags=["define"]
from minipalm.train.sft import train_sft

# %%
for name, model in {"policy": policy, "trunk": trunk}.items():
    run = Run(
        f"{out}/07_sft/{name}",
        seed=seed,
        model=asdict(model.config),
        optim=asdict(preset.sft),
        window=preset.window,
        start=result_fingerprint(out, "06_palm"),
        tokenizer=tokenizer.fingerprint,
        demonstrations=fingerprint(demonstrations),
    )
    train_sft(model, packed, preset.sft, run, seed, preset.checkpoint_every)

# %%
curves = {
    name: read_metrics(f"{out}/07_sft/{name}") for name in ("policy", "trunk")
}
plot.loss_curves(curves, "nats a response token")

# %%
asked = heldout.mask.sum(), preset.sft.micro_batch
heldout_loss = {
    name: mean_loss(sft_loss, model, heldout, *asked)
    for name, model in {"policy": policy, "trunk": trunk}.items()
}
for name, loss in heldout_loss.items():
    print(
        f"{name}: {loss:.3f} nats a response token on demonstrations held out"
    )

# %% [markdown]
# ## Use it
#
# The policy now answers. Look for flaws: a wrong mood, another subject, a slip
# of grammar. It imitates its teachers, slips included.

# %%
told = answer(
    policy,
    tokenizer,
    [demo.prompt for demo in demos[:6]],
    max_prompt=preset.max_prompt,
    max_response=preset.max_response,
    generator=torch.Generator().manual_seed(seed),
)
for prompt, text in zip(told.prompts, told.texts, strict=True):
    print(prompt, "→", text)

# %% [markdown]
# ## Break it: leave out the end
#
# A popular slip: the padding token is also the end token, and whoever masks
# "padding" masks every `<eos>`. **Predict:** a short run with it and one
# without. Which one has the lower loss? How long are the answers?

# %% tags=["classroom"]


def short_run(rows, steps=60):
    """The policy of lesson 06, fine-tuned for a few steps."""
    model = place(load_policy(*left), preset.machine)
    optim = replace(preset.sft, steps=steps)
    optimizer = adamw(model, optim.weight_decay)
    for step in range(1, steps + 1):
        chosen = batch_rows(len(rows), optim.batch_size, step, seed)
        loss, _ = sft_step(model, optimizer, rows[chosen], optim, step)
    return model, loss


without_end = packed.mask & (packed.ids != tokenizer.eos_id)
kinds = {
    "<eos> in the mask": packed,
    "<eos> left out": Rows(packed.ids, packed.segments, without_end),
    "prompt in the mask": Rows(
        packed.ids, packed.segments, packed.segments > 0
    ),
}
runs = {name: short_run(rows) for name, rows in kinds.items()}
for name, (_, loss) in runs.items():
    print(f"{name:19} last training loss {loss:.3f}")

# %% tags=["classroom"]
named = list(kinds)[:2]
answers = {name: tell(runs[name][0], 200) for name in named}
answer_lengths(
    {name: each.tokens[3].sum(1) for name, each in answers.items()},
    {name: each.finished for name, each in answers.items()},
    preset.max_response,
)

# %% tags=["classroom"]
for name, each in answers.items():
    print(f"{name}: {each.prompts[0]} → {each.texts[0]}")

# %% [markdown]
# Nothing in the loss gives it away: it is a mean over other tokens. But the
# model has learnt that after a full stop there is always another sentence, and
# each answer runs into the limit. Read samples, and count the ends, before
# you trust any curve.

# %% [markdown]
# And the prompt in the mask? Its training loss is the lowest of the three,
# since prompts are easy to guess. Compare them on what matters, the response:

# %% tags=["classroom"]
for name, (model, _) in runs.items():
    with torch.no_grad():
        fair = sft_loss(model, heldout).item()
    print(f"{name:19} {fair:.3f} nats a response token, held out")

# %% [markdown]
# A part of its effort has gone into asking. Here prompts are short and alike,
# so the price is small; with long and various prompts it grows. Losses over
# different masks must never be compared with each other.

# %% [markdown]
# ## What changed
#
# The policy answers as its teachers do, and no better: imitation has no notion
# of better. For that you need somebody who compares two answers, which is the
# next lesson.

# %%
finish_stage(
    out,
    "07_sft",
    {"policy": policy, "trunk": trunk},
    tokenizer,
    scale=scale,
    seed=seed,
    heldout_loss=heldout_loss,
)

# %% [markdown]
# ## What real systems do differently
#
# - Chat templates mark who speaks with tokens of their own; a conversation has
#   several responses, and the mask holds all of the assistant's turns.
# - Attention kernels for packed rows take the lengths of the texts and never
#   compute what the mask would hide, so that width has no price.
# - Demonstrations are chosen with care: a small good set beats a large one.
# - Large models are often tuned through a few added weights (LoRA).
# - InstructGPT's makers trained well past the lowest held-out loss, since
#   people liked those answers better.

# %% [markdown]
# ## Left out on purpose
#
# - Templates and several turns: done well in Hugging Face's TRL and in
#   meta-pytorch/torchtune.
# - Sorting by length before packing: first fit is close to it here, and keeps
#   the order of the data.
# - Early stopping: the schedule ends where it should; watch the held-out loss.

# %% [markdown]
# ## Further reading
#
# - Ouyang et al. 2022, *Training language models to follow instructions with
#   human feedback* (InstructGPT), arXiv 2203.02155: section 3.5.
# - Krell et al. 2021, *Efficient Sequence Packing without
#   Cross-contamination*, arXiv 2107.02027: packing, and why texts must not
#   see each other.
# - Zhou et al. 2023, *LIMA: Less Is More for Alignment*, arXiv 2305.11206: a
#   thousand good demonstrations.
# - Hu et al. 2021, *LoRA*, arXiv 2106.09685.
# - Pull request 34191 of huggingface/transformers (October 2024), on gradient
#   accumulation: the denominator of a part.

# %% tags=["classroom"]
progress()

# %% [markdown]
# # 06 · A whole PaLM
#
# You build a language model out of the parallel blocks of `minipalm/model`:
# an embedding, a stack of blocks, a last norm, and the embedding again as
# head. Then you train two of them to continue text: the **policy**, which
# will learn to answer, and a smaller **trunk**, which will learn to judge
# answers.
#
# All that follows in this course, from fine-tuning to PPO, moves the weights
# that you make here.

# %% tags=["parameters"]
scale = "toy"
seed = 0
out = "runs/toy"
text = "data/text.jsonl"
demonstrations = "data/demonstrations.jsonl"

# %%
import math
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from minipalm import plot
from minipalm.clock import Clock
from minipalm.config import OptimConfig, PaLMConfig, get_preset
from minipalm.course import ROOT
from minipalm.data.batches import hold_out_stream, prompt_ids
from minipalm.data.corpus import corpus_tokenizer, token_stream
from minipalm.data.datasets import (
    check_window,
    read_demonstrations,
    read_texts,
)
from minipalm.data.files import fingerprint
from minipalm.model.attention import attention_mask
from minipalm.model.block import (
    ParallelBlock,
    Rotations,
    SerialBlock,
    init_block,
)
from minipalm.model.cache import KVCache
from minipalm.model.linear import linear
from minipalm.model.place import beside, place
from minipalm.model.rope import rotations
from minipalm.parallel import summed
from minipalm.train.heldout import mean_loss
from minipalm.train.optim import batch_rows, micro_batches
from minipalm.train.run import Run, read_metrics, steps_left
from minipalm.train.stage import finish_stage

# %% tags=["classroom"]
from minipalm.course.check import check, progress
from minipalm.course.classroom import start_afresh
from minipalm.plot.interactive import interactive
from minipalm.plot.sampling import first_losses, law_of_next, lying_loss

# %%
os.chdir(ROOT)  # paths are from the repository's folder

# %% tags=["classroom"]
start_afresh(out, "06_palm", scale)

# %%
preset = get_preset(scale)
texts = read_texts(text)
demos = read_demonstrations(demonstrations)
[record.text for record in texts[:3]]

# %% [markdown]
# ## From text to rows
#
# The tokenizer must know the words of the later lessons too, so it also sees
# the demonstrations. All texts are laid end to end and cut into windows of
# equal length: nothing is padding, everything is learnt from. A fiftieth is
# held out: on text that it has seen, a model can also be good by memory.

# %%
tokenizer = corpus_tokenizer(
    texts,
    demos,
    preset.tokenizer,
    preset.vocab_size,
    f"{out}/06_palm/tokenizer",
)
check_window(demos, tokenizer, preset.window)
stream, heldout = hold_out_stream(
    token_stream(tokenizer, texts, f"{out}/06_palm/tokens"),
    preset.window,
    source=text,
)
print(f"vocabulary: {tokenizer.vocab_size}, text: {len(stream)} tokens")

# %% [markdown]
# ## The network
#
# What does a token meet on its way to a guess about the next one?
#
#     ids B T ─ embedding ─ block ─ block ─ ... ─ norm ─ embeddingᵀ ─ logits
#                 V × D       │       │            │        D × V      B T V
#                          stream of width D: each block adds to it
#
# $$h_0 = E[x], \qquad h_{l+1} = h_l + \text{attention}(\bar h_l) +
# \text{swiglu}(\bar h_l), \qquad \text{logits} = \bar h_L E^\top$$

# %% [markdown]
# $\bar h$ is the normalised state. The embedding $E$ is used twice, at both
# ends (the head is *tied*), so its scale decides two things at once: how loud
# a token is, and how sharp the first guesses are.
#
# **Your turn.** The parts are there: `__init__` makes them, `places` says
# what each token sees, `linear` is `F.linear`. Lead the tokens through.

# %% tags=["exercise"]
from minipalm.model.palm import PaLM

# %% [markdown]
# ## How large is it?
#
# Two models are needed: one large enough to speak, and a smaller one to judge.
# Where do most of the weights sit: embedding, attention or feed-forward? Say a
# guess before you count.

# %% tags=["exercise"]
from minipalm.model.palm import count_parameters

# %%
generator = torch.Generator().manual_seed(seed)
config = replace(preset.policy, vocab_size=tokenizer.vocab_size)
trunk_config = replace(preset.reward_trunk, vocab_size=tokenizer.vocab_size)
lie = {"machine": preset.machine, "weights": preset.machine.weights}
policy = place(PaLM(config, generator), **lie)
trunk = place(PaLM(trunk_config, generator), **lie)
print(f"policy {count_parameters(config):,} parameters")
print(f"trunk  {count_parameters(trunk_config):,} parameters")

# %% tags=["classroom"]
# The same network with other sizes; 4096, 32, 16 is the large preset's.
for dim, depth, heads in ((64, 4, 4), (768, 12, 12), (4096, 32, 16)):
    other = PaLMConfig(32_768, dim, depth, heads, head_dim=64)
    total = count_parameters(other)
    embedding = other.vocab_size * dim / total
    feedforward = depth * 3 * dim * other.ff_dim / total
    print(
        f"D {dim:4}, {depth:2} blocks: {total / 1e6:7,.1f} million, "
        f"{embedding:.0%} embedding, {feedforward:.0%} feed-forward"
    )

# %% [markdown]
# ## The loss
#
# Predict every token from those before it:
#
# $$L = -\frac{1}{B(T-1)} \sum_b \sum_{t=1}^{T-1}
# \log p(x_{b,t+1} \mid x_{b,1}, \dots, x_{b,t})$$
#
# One row of T tokens asks T − 1 questions at once, since no position sees
# what comes after it.
#
#     reads    <bos>  the   old   fox   slept
#     asked     the   old   fox  slept    .

# %% tags=["exercise"]
from minipalm.train.language_model import next_token_loss

# %% [markdown]
# **Predict.** Before any training, what is the loss of your policy, in nats?
# Write down a number. You know the vocabulary's size V from above, and that an
# untrained model prefers no token for any good reason.

# %%
rows = heldout[: len(heldout) // preset.window * preset.window]
rows = rows.view(-1, preset.window)[:256]
asked = rows.numel() - len(rows), preset.pretrain.micro_batch
untrained = mean_loss(next_token_loss, policy, rows, *asked)
print(f"before: {untrained:.2f} nats a token")
print(f"log V:  {math.log(tokenizer.vocab_size):.2f}")

# %% [markdown]
# Knowing nothing costs $\log V$: every token gets $1/V$. Your policy starts a
# little above. It is not ignorant but wrong at random: its logits have some
# spread, and no reason for it. How much, the embedding's scale decides.

# %% [markdown]
# ## The optimizer
#
# AdamW divides each step by the gradient's recent size, and pulls matrices
# towards 0. The pull must spare the norms: their scale should be near 1.

# %% tags=["exercise"]
from minipalm.train.optim import adamw

# %% [markdown]
# How fast? At first Adam knows little of the gradient's size, so the steps
# should be small; at the end they should be small again, so that the weights
# settle.
#
#     1          ╭──╮
#              ╱      ╲
#     final   ╱         ╲____    up a line, down half a cosine
#           step 1 .. rise .. steps

# %% tags=["exercise"]
from minipalm.train.optim import lr_scale

# %% tags=["define"]
from minipalm.train.optim import optimizer_step, set_lr

# %% [markdown]
# ## Train
#
# Each step takes a batch of windows, goes down the gradient, and writes a line
# of metrics. A run that is cut short resumes at its last checkpoint.

# %% tags=["define"]
from minipalm.train.language_model import train_language_model

# %%
for name, model in {"policy": policy, "trunk": trunk}.items():
    run = Run(
        f"{out}/06_palm/{name}",
        seed=seed,
        model=asdict(model.config),
        optim=asdict(preset.pretrain),
        window=preset.window,
        tokenizer=tokenizer.fingerprint,
        text=fingerprint(text),
    )
    train_language_model(
        model,
        stream,
        preset.window,
        preset.pretrain,
        run,
        seed,
        preset.checkpoint_every,
    )

# %%
curves = {
    name: read_metrics(f"{out}/06_palm/{name}") for name in ("policy", "trunk")
}
levels = {"knows nothing": math.log(tokenizer.vocab_size)}
plot.loss_curves(curves, "nats a token", levels=levels)

# %% [markdown]
# The fall at the beginning is the easy part: which words exist, and how often.
# What comes later is grammar, and who the tale is about. The curve does not
# say which is learnt when; you have to read samples for that.

# %%
trained = {
    name: mean_loss(next_token_loss, model, rows, *asked)
    for name, model in {"policy": policy, "trunk": trunk}.items()
}
for name, loss in trained.items():
    print(f"{name}: {loss:.3f} nats a token on the text held out")

# %% [markdown]
# ## Break it: how loud is the embedding?
#
# Some libraries leave `nn.Embedding` at its own default, a standard deviation
# of 1. **Predict:** what is the untrained loss then, and does a short run make
# up for it?

# %% tags=["classroom"]
windows = stream[: len(stream) // preset.window * preset.window]
windows = windows.view(-1, preset.window)


def short_run(loss_of, embed_std=config.embed_std, steps=80, batch=16):
    """A model trained for a few steps, its losses, and the real ones."""
    shape = replace(config, embed_std=embed_std)
    model = PaLM(shape, torch.Generator().manual_seed(seed))
    optim = replace(preset.pretrain, steps=steps, batch_size=batch)
    optimizer, lines, real = adamw(model, optim.weight_decay), [], []
    for step in range(1, steps + 1):
        if step == 1:
            real.append(next_token_loss(model, rows[:64]).item())
        chosen = batch_rows(len(windows), batch, step, seed)
        loss = loss_of(model, windows[chosen])
        loss.backward()
        optimizer_step(model, optimizer, optim, step)
        lines.append({"step": step, "loss": loss.item()})
    with torch.no_grad():
        real.append(next_token_loss(model, rows[:64]).item())
    return model, lines, real


# %% tags=["classroom"]
stds = [0.02, 0.1, 0.3, 1.0]
ends = [short_run(next_token_loss, std)[2] for std in stds]
first_losses(stds, *zip(*ends), math.log(tokenizer.vocab_size), steps=80)

# %% [markdown]
# The loud network begins far above $\log V$: it is sure of itself, and wrong.
# Its short run is spent on unlearning. The quiet ones begin at $\log V$; at
# this depth they end close to each other. The rule: look at the first loss
# of every run. If it is far above $\log V$, something is wrong with the
# initialisation or the targets.

# %% [markdown]
# ## Break it: forget the shift
#
# The targets are the inputs themselves, one `[:, 1:]` is missing. No error
# comes. **Predict** the curve: does the loss fall slower, as fast, or faster?

# %% tags=["classroom"]


def unshifted_loss(model, ids):
    """Wrong: each position is asked for the token that it reads."""
    return F.cross_entropy(model(ids).flatten(0, 1), ids.flatten())


_, right, worth = short_run(next_token_loss)
copier, wrong, copied = short_run(unshifted_loss)
lying_loss(
    {"shifted": right, "not shifted": wrong},
    {"shifted": worth[-1], "not shifted": copied[-1]},
    math.log(tokenizer.vocab_size),
)

# %% [markdown]
# The orange loss falls to zero: the answer stands in the question, and the
# tied head finds it at once. As a language model it is worse than knowing
# nothing. A loss that is too good is a bug report: text has entropy, and no
# model gets below that.

# %% [markdown]
# ## Sample
#
# Ask for the next token, draw it from the law that the logits give, and go on.
# A temperature below 1 makes the law sharper; top-k and top-p cut its tail.

# %% tags=["classroom"]
begin = prompt_ids(tokenizer, texts[0].text)[:6]
start = tokenizer.decode(begin)
ids, mask = torch.tensor([begin]), torch.ones(1, len(begin), dtype=torch.bool)
with torch.no_grad():
    logits = policy(ids, mask.long())[0, -1]
names = [tokenizer.decode([token]) for token in range(tokenizer.vocab_size)]
names[:3] = "<pad>", "<bos>", "<eos>"
plot.next_token_bars(logits, names, prompt=start)

# %% [markdown]
# $$p_i = \frac{e^{z_i/\tau}}{\sum_j e^{z_j/\tau}}$$
#
# - **temperature** $\tau$ scales the logits $z$; at 0 only the largest is left
# - **top-k** keeps the k most probable tokens
# - **top-p** keeps the fewest tokens that together have probability p
#
# What is cut gets log-probability $-\infty$, and the rest is normalised again.

# %% tags=["exercise"]
from minipalm.model.generate import sampling_law

# %% [markdown]
# **Predict.** Keep top-p and raise the temperature: are there more tokens to
# draw from, fewer, or as many? Move the sliders and watch three things: how
# many tokens can be drawn, the filled bars against their outlines, and how far
# the dots, real draws, stray from the bars.

# %% tags=["classroom"]
longer = prompt_ids(tokenizer, texts[0].text.split(".")[0] + ".")
with torch.no_grad():
    after = policy(torch.tensor([longer]))[0, -1]
V = tokenizer.vocab_size


def law_at(temperature, top_k, top_p):
    return law_of_next(
        sampling_law,
        after,
        names,
        tokenizer.decode(longer),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
    )


interactive(
    law_at,
    temperature=(0.0, 3.0, 0.1, 1.4),
    top_k=(1, V, 1, V),
    top_p=(0.05, 1.0, 0.05, 0.9),
)

# %% [markdown]
# ## A whole answer
#
# Now the loop. Prompts are padded on the **left**, so that all answers begin
# in the same column and the newest state is always the last.
#
#     <pad> <pad> <bos> about the fox :  | once there  ...  .  <eos>
#     <bos> about the  old  witch again :| she  slept  . <eos>   ×
#
# A row that has said `<eos>` is done; the others go on.

# %% tags=["define"]
from minipalm.model.generate import Sampled

# %% [markdown]
# **Your turn.** The plain form computes everything again for each token and
# is right. With a `KVCache` (lesson 03) the newest token is enough; the
# packaged one does that, and drops rows that have ended.

# %% tags=["exercise"]
from minipalm.model.generate import generate

# %% tags=["classroom"]
ids, mask = ids.expand(4, -1), mask.expand(4, -1)
sampled = generate(
    policy,
    ids,
    mask,
    max_new_tokens=preset.max_response,
    eos_id=tokenizer.eos_id,
    generator=torch.Generator().manual_seed(seed),
)
for response, kept in zip(sampled.responses, sampled.mask, strict=True):
    print(start, tokenizer.decode(response[kept].tolist()))

# %% [markdown]
# Read them as an editor would. Which sentences are grammatical? Does a tale
# stay with its subject? Now the same at other temperatures, and from the model
# that forgot the shift:

# %% tags=["classroom"]
for name, model, temperature in (
    ("policy, T = 0", policy, 0.0),
    ("policy, T = 2", policy, 2.0),
    ("no shift, T = 1", copier, 1.0),
):
    told = generate(
        model,
        ids[:1],
        mask[:1],
        max_new_tokens=12,
        eos_id=tokenizer.eos_id,
        generator=torch.Generator().manual_seed(seed),
        temperature=temperature,
    )
    said = told.responses[0][told.mask[0]].tolist()
    print(f"{name:16} {start} ... {tokenizer.decode(said)}")

# %% [markdown]
# At 0 you get the same tale every time. At 2 words come in any order. The
# copier repeats what it has read last, since that is what it was taught.

# %% [markdown]
# ## What changed
#
# You have two models that write in the manner of the tales, and a sampler that
# knows the exact log-probability of every token it draws. Neither model
# answers a request yet: that is the next lesson.

# %%
tokenizer.save(Path(out, "06_palm", "tokenizer.json"))
finish_stage(
    out,
    "06_palm",
    {"policy": policy, "trunk": trunk},
    tokenizer,
    scale=scale,
    seed=seed,
    heldout_loss=trained,
)

# %% [markdown]
# ## What real systems do differently
#
# - PaLM trains with Adafactor, a schedule that falls with the inverse root of
#   the step, and a small penalty on the softmax's normaliser (z-loss); its
#   embedding starts at standard deviation 1 and the logits are divided by √D.
# - The vocabulary has a quarter of a million pieces of words, not whole words.
# - Steps run on thousands of chips; one step's batch is larger than your data.
# - Servers keep the cache in pages, join requests of different users into one
#   batch, and let a small model guess ahead for a large one.

# %% [markdown]
# ## Left out on purpose
#
# - Dropout: each text is seen a few times only, too few to be memorised.
# - Scaling laws, mixtures of data, deduplication: done well in the Chinchilla
#   paper below, and in the code of nanochat (karpathy/nanochat).
# - Beam search: it looks for the likeliest text, and RLHF needs *samples*.
# - Repetition penalties: they make the law depend on the text drawn so far.

# %% [markdown]
# ## Further reading
#
# - Chowdhery et al. 2022, *PaLM*, arXiv 2204.02311: section 2 for the model,
#   section 5 for initialisation, optimizer and loss.
# - Press and Wolf 2016, *Using the Output Embedding to Improve Language
#   Models*, arXiv 1608.05859: why the head can be tied.
# - Loshchilov and Hutter 2017, *Decoupled Weight Decay Regularization*,
#   arXiv 1711.05101: algorithm 2.
# - Holtzman et al. 2019, *The Curious Case of Neural Text Degeneration*,
#   arXiv 1904.09751: top-p, there called nucleus sampling.
# - Hoffmann et al. 2022, *Training Compute-Optimal Large Language Models*,
#   arXiv 2203.15556: how much text for how many parameters.

# %% tags=["classroom"]
progress()

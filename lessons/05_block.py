# %% [markdown]
# # 05 · The parallel block
#
# You join attention and SwiGLU to the layer that PaLM repeats, and its serial
# twin, which nearly every other network repeats. Then you measure both sides
# of the trade: what the parallel block saves, and what it costs. Last come
# the first weights, which decide whether a deep network can begin to learn at
# all.

# %% tags=["parameters"]
scale = "toy"
seed = 0
out = "runs/toy"
text = "data/text.jsonl"

# %%
import math
import os
import time
from dataclasses import replace
from statistics import mean, median, stdev

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from minipalm import plot
from minipalm.config import PaLMConfig, get_preset
from minipalm.course import ROOT
from minipalm.data.batches import hold_out_stream, text_stream
from minipalm.data.datasets import read_texts
from minipalm.data.tokenizer import train_tokenizer
from minipalm.model.attention import fused_attention
from minipalm.model.block import Rotations, last_of_parallel, last_of_serial
from minipalm.model.cache import KVCache
from minipalm.model.linear import Linear
from minipalm.model.palm import PaLM
from minipalm.model.rope import rotate, rotations
from minipalm.model.swiglu import swiglu
from minipalm.plot.block import stream_by_depth, stream_sizes, timeline
from minipalm.plot.interactive import interactive
from minipalm.train.language_model import next_token_loss
from minipalm.train.optim import adamw, batch_rows, optimizer_step

# %% tags=["classroom"]
from minipalm.course.check import check, progress

# %%
os.chdir(ROOT)  # paths are from the repository's folder
preset = get_preset(scale)
draw = torch.Generator().manual_seed(seed)

# %% [markdown]
# ## Does the feed-forward layer need to wait?
#
# A block has two parts: attention, in which tokens look at each other, and the
# feed-forward layer, in which each thinks for itself. In series, the second
# part reads what the first has written:
#
# $$y = x + \text{attention}(\text{norm}(x)), \qquad
# z = y + \text{swiglu}(\text{norm}'(y))$$
#
# PaLM does not wait:
#
# $$z = x + \text{attention}(\text{norm}(x)) + \text{swiglu}(\text{norm}(x))$$

# %% [markdown]
# What is lost? In one block, no thought about what was just read; that has to
# happen a block later. What is gained? One norm less, and the projections to
# queries, keys, values, gate and up read the same input, so they are *one*
# matrix product. How much that saves depends on the machine. Measure yours:
# how many operations a microsecond, and how long does a call take that has
# next to nothing to do?


# %% tags=["classroom"]
def microseconds(f, *inputs, repeat: int = 40) -> float:
    """The median: others use this machine, too."""
    times = []
    for _ in range(repeat):
        begin = time.perf_counter()
        f(*inputs)
        times.append(1e6 * (time.perf_counter() - begin))
    return median(times)


a, b = torch.randn(256, 1024), torch.randn(1024, 1024)
one = torch.randn(1, 32)
rate = 2 * a.numel() * 1024 / microseconds(torch.matmul, a, b)
overhead = microseconds(torch.matmul, one, one.T)
print(f"{rate:,.0f} operations a microsecond, {overhead:.1f} for a call")

# %% [markdown]
# **Predict.** Below, time runs to the right, for one block at the rate of your
# machine ("look" is attention itself, between its two products). Which of the
# sliders makes the parallel block look good: more `dim`, more `tokens`, more
# `overhead` for each call, or `exchange`, the time in which cards that share a
# block add up their parts of a result?

# %% tags=["classroom"]
interactive(
    lambda dim, tokens, overhead, exchange: timeline(
        dim, tokens, overhead, exchange, rate
    ),
    dim=(64, 1024, 64, 256),
    tokens=(1, 256, 1, 16),
    overhead=(0, 50, 5, 20),
    exchange=(0, 300, 20, 100),
)

# %% [markdown]
# The work is the same in all three rows: with large products and one machine,
# nothing is saved. What shrinks is the number of things that wait for each
# other. That counts where a call is short, as in writing token by token, and
# where cards must talk: the serial block needs a sum over all cards twice,
# the parallel one once. (The third row needs a machine that does two things at
# a time.)

# %% [markdown]
# ## From columns to heads
#
# One product gives $C = (H + 2G) \cdot K$ columns for each token: queries,
# keys, values. Which of the three must know where the token stands?

# %% tags=["exercise"]
from minipalm.model.block import split_heads

# %%
config = PaLMConfig(1, dim=48, depth=4, heads=3, head_dim=16)
x = torch.randn(2, 24, config.dim, generator=draw)
rope = rotations(torch.arange(24)[None], config.head_dim)
columns = torch.randn(2, 24, config.qkv_dim, generator=draw)
for name, part in zip("qkv", split_heads(columns, config, rope)):
    print(name, tuple(part.shape))

# %% [markdown]
# ## The block
#
# Everything is there: `__init__` makes the norm and three matrices (`Linear`
# is torch's, without a bias). The first is five in one, its columns are
# q | k | v | gate | up. `forward` hands over to `all_tokens`, which you write.
# (The other way, `last`, gives the same numbers where only the last tokens are
# asked for.)

# %% tags=["exercise"]
from minipalm.model.block import ParallelBlock

# %% [markdown]
# The stream $x$ goes straight through; a block only adds to it. How does that
# show if the block's two ways out are set to zero?

# %%
torch.manual_seed(seed)  # Linear draws from torch's own generator
block = ParallelBlock(config)
with torch.no_grad():
    added = block(x, rope) - x
    block.w_attention.weight.zero_()
    block.w_feedforward.weight.zero_()
    silent = block(x, rope) - x
for name, part in {"added": added, "with silent ways out": silent}.items():
    print(f"{name}: root mean square {part.square().mean().sqrt():.3f}")

# %% [markdown]
# ## Its twin
#
# The same projections, one norm more, one wait more.

# %% tags=["exercise"]
from minipalm.model.block import SerialBlock

# %% [markdown]
# ## What each one takes
#
# Now for real: your two blocks on one batch, and the five products alone. Do
# the parts add up to the whole? What is the rest?

# %% tags=["classroom"]
sizes = replace(preset.policy, vocab_size=1)
D, M, read = sizes.dim, sizes.ff_dim, sizes.heads * sizes.head_dim
x = torch.randn(8, preset.window, D, generator=draw)
wide = torch.randn(8, preset.window, M, generator=draw)
rope = rotations(torch.arange(preset.window)[None], sizes.head_dim)
products = {
    "q k v": (x, Linear(D, sizes.qkv_dim)),
    "gate up": (x, Linear(D, 2 * M)),
    "both at once": (x, Linear(D, sizes.qkv_dim + 2 * M)),
    "out": (x[..., :read], Linear(read, D)),
    "down": (wide, Linear(M, D)),
}
with torch.no_grad():
    for name, (inputs, layer) in products.items():
        print(f"{name:14} {microseconds(layer, inputs):6.0f} µs")
    for kind in (SerialBlock, ParallelBlock):
        took = microseconds(kind(sizes), x, rope)
        print(f"{kind.__name__:14} {took:6.0f} µs")

# %% [markdown]
# ## The price of each
#
# A saving is worth something only if the network learns as well. Train both on
# the same text, from five seeds: a seed decides the first weights and the
# order of the rows, for both alike.
#
# **Predict.** Which one has the lower loss on text that it has not seen? By
# more than five seeds differ among themselves?

# %% tags=["classroom"]
texts = [record.text for record in read_texts(text)]
tokenizer = train_tokenizer(texts, preset.tokenizer, preset.vocab_size)
stream, heldout = hold_out_stream(
    text_stream(tokenizer, texts), preset.window, source=text
)
rows, unseen = (
    ids[: len(ids) // preset.window * preset.window].view(-1, preset.window)
    for ids in (stream, heldout)
)
sizes = replace(preset.policy, vocab_size=tokenizer.vocab_size)
steps = min(preset.pretrain.steps, 150)
optim = replace(preset.pretrain, steps=steps, batch_size=16)


# %% tags=["classroom"]
def train(kind: type[nn.Module], seed: int) -> tuple[float, float, list]:
    """The loss on unseen text, CPU seconds, and the losses on the way."""
    model = PaLM(sizes, torch.Generator().manual_seed(seed), kind)
    optimizer = adamw(model, optim.weight_decay, optim.betas)
    curve, begin = [], time.process_time()
    for step in range(1, steps + 1):
        chosen = batch_rows(len(rows), optim.batch_size, step, seed)
        loss = next_token_loss(model, rows[chosen])
        loss.backward()
        optimizer_step(model, optimizer, optim, step)
        curve.append({"step": step, "loss": loss.item()})
    seconds = time.process_time() - begin
    with torch.no_grad():
        return next_token_loss(model, unseen[:128]).item(), seconds, curve


# %% tags=["classroom"]
kinds = {"serial": SerialBlock, "parallel": ParallelBlock}
results = {name: [] for name in kinds}
for n in range(5):
    for name, kind in kinds.items():
        results[name].append(train(kind, seed + n))
for name, runs in results.items():
    losses, seconds, _ = zip(*runs)
    print(
        f"{name:8} {mean(losses):.3f} ± {stdev(losses):.3f} nats a token, "
        f"{mean(seconds):.2f} ± {stdev(seconds):.2f} s"
    )
gaps = [b[0] - a[0] for a, b in zip(results["serial"], results["parallel"])]
print(
    f"parallel - serial, seed by seed: {mean(gaps):+.3f} ± {stdev(gaps):.3f}"
)

# %% tags=["classroom"]
curves = {name: runs[0][2] for name, runs in results.items()}
plot.loss_curves(curves, levels={"knows nothing": math.log(sizes.vocab_size)})

# %% [markdown]
# Compare the difference with its spread before you call one of them better.
# The PaLM authors saw a small loss at 8B parameters and none at 62B: see their
# section in the list below.

# %% [markdown]
# ## The first weights
#
# Before the first step all weights are drawn at random. How large should they
# be? A column that reads $n$ inputs of variance 1 with weights of variance
# $1/n$ has variance 1 again: so $1/\sqrt{\text{fan\_in}}$ keeps the size
# through a matrix.

# %% [markdown]
# The stream is another matter: every block *adds* to it. What is the variance
# of a sum of depth independent terms of variance 1? And so, by what must the
# two matrices that write to the stream be divided?

# %% tags=["exercise"]
from minipalm.model.block import init_block

# %% [markdown]
# ## Break it: forget the division, forget the norm
#
# Your block, with your first weights, stacked 2 to 64 times; then three broken
# towers: one without the division by $\sqrt{\text{depth}}$, one without the
# norm, one without both.
#
# **Predict.** How large is the stream at the top of each? Which grows like
# $\sqrt{\text{depth}}$, and which faster than any power?


# %% tags=["classroom"]
class NoNorm(ParallelBlock):
    def __init__(self, config: PaLMConfig) -> None:
        super().__init__(config)
        self.norm = nn.Identity()


def undivided(block: nn.Module, depth: int, generator: torch.Generator):
    init_block(block, 1, generator)


def towers(depth: int) -> plot.Figure:
    return stream_by_depth(
        {
            "as built": stream_sizes(ParallelBlock, init_block, depth),
            "without √depth": stream_sizes(ParallelBlock, undivided, depth),
            "without the norm": stream_sizes(NoNorm, init_block, depth),
            "without both": stream_sizes(NoNorm, undivided, depth),
        }
    )


interactive(towers, depth=(2, 64, 2, 32))

# %% [markdown]
# With both, the stream has at the top nearly the size that it had at the
# bottom. Without the division it grows with every block, so that late blocks
# whisper beside it. Without the norm a block answers a louder stream more than
# proportionally, since SwiGLU multiplies two of its projections: a little more
# gives much more, and without both it is no number after a few blocks.

# %% [markdown]
# ## What changed
#
# You have the whole layer, and know what it saves, where, and at what price.
# Lesson 06 puts an embedding below a stack of them and a head above, and
# trains it.

# %% [markdown]
# ## What real systems do differently
#
# - Most later models went back to the serial block. GPT-J, from which PaLM has
#   the idea, GPT-NeoX and Falcon are parallel.
# - Split over cards, each holds some heads and some columns of the
#   feed-forward layer; the sum over cards is the exchange of the timeline.
# - Compilers fuse norm, product and gate, which takes away most of the
#   overhead of calls.
# - RMSNorm, which does not subtract the mean, has mostly replaced LayerNorm;
#   some norm the queries and keys as well.

# %% [markdown]
# ## Left out on purpose
#
# - Biases and dropout: PaLM has none. Networks trained for many passes over
#   little text may want dropout.
# - The split over cards itself: lesson 16.
# - Initialisations under which the best learning rate is the same at every
#   width: the library `mup` does that.

# %% [markdown]
# ## Further reading
#
# - Chowdhery et al. 2022, *PaLM*, arXiv 2204.02311, section 2, "Parallel
#   Layers": about 15 % faster training at large scales; a small loss in
#   quality at 8B parameters, none at 62B.
# - Xiong et al. 2020, *On Layer Normalization in the Transformer
#   Architecture*, arXiv 2002.04745: why the norm stands before the layer.
# - Radford et al. 2019, *Language Models are Unsupervised Multitask Learners*
#   (GPT-2), section 2.3: the division by the root of the number of residual
#   layers.
# - Zhang, Dauphin and Ma 2019, *Fixup Initialization*, arXiv 1901.09321: deep
#   networks without any norm.
# - Pope et al. 2022, *Efficiently Scaling Transformer Inference*, arXiv
#   2211.05102: what the parallel block and one shared key save in serving.

# %% tags=["classroom"]
progress()

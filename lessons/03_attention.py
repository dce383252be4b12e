# %% [markdown]
# # 03 · Attention with one shared key and value
#
# You build the only part of the network in which a token learns about other
# tokens: who may look at whom, what a look gives, and how a network that
# writes word by word avoids doing all its looking again at every word. The
# reward model, PPO's rollouts and packed fine-tuning all stand on these four
# functions, and most bugs of those lessons begin here.

# %% tags=["parameters"]
scale = "toy"
seed = 0
out = "runs/toy"
text = "data/text.jsonl"

# %%
import math
import os

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from minipalm import plot
from minipalm.config import PaLMConfig
from minipalm.course import ROOT
from minipalm.data.batches import text_stream
from minipalm.data.datasets import read_texts
from minipalm.data.tokenizer import train_tokenizer
from minipalm.model.palm import count_parameters
from minipalm.model.rope import rotate, rotations
from minipalm.plot.attention import cache_sizes, cache_steps, scale_of_scores
from minipalm.plot.interactive import interactive

# %% tags=["classroom"]
from minipalm.course.check import check, progress

# %%
os.chdir(ROOT)  # paths are from the repository's folder
draw = torch.Generator().manual_seed(seed)

# %% [markdown]
# ## Who may look at whom?
#
# The network is asked for the next token at every place of a row at once. At
# which places of the row does the answer to "what comes after token 4?"
# stand? Whoever may look there need not guess.
#
# A row may also hold things that are none of a token's business: padding on
# the left, so that prompts of different lengths end together, or another text
# packed in beside it.

# %% [markdown]
# So each row comes with its **segments**: 0 for padding, 1, 2, … for the texts
# in it. Query $t$ may see key $s$ if $s$ is not later and both have the same
# segment.
#
# Mind one thing: with a cache only the *last* $T$ of $S$ tokens ask. Query $t$
# then stands at the place $S - T + t$.

# %% tags=["exercise"]
from minipalm.model.attention import attention_mask

# %% [markdown]
# **Predict.** A row has two places of padding, then a text of three tokens,
# then one of four. How many cells of the square below are filled, and which
# rows have exactly one?

# %%
segments = torch.tensor([[0, 0, 1, 1, 1, 2, 2, 2, 2]])
mask = attention_mask(segments, segments)[0]
for row in mask:
    print(" ".join("■" if seen else "·" for seen in row.tolist()))
print(int(mask.sum()), "cells;", mask.sum(1).tolist(), "in each row")

# %% [markdown]
# Even padding sees something: itself. What it computes is thrown away, but a
# softmax over nothing is 0/0, and one NaN in a batch is a NaN in every
# gradient.

# %% [markdown]
# ## A look
#
# A token asks a question (its query $q_t$), every token holds up a sign (its
# key $k_s$), and what is read is not the sign but what lies behind it (the
# value $v_s$):
#
# $$w_{ts} = \text{softmax}_s\left(\frac{q_t \cdot k_s}{\sqrt K}\right),
# \qquad y_t = \sum_s w_{ts} v_s$$
#
# What the mask forbids gets the score $-\infty$, so its weight is 0 and the
# others still sum to 1.

# %% [markdown]
# There are $H$ queries a token, so $H$ looks. PaLM lets all of them read *one*
# key and *one* value: that is multi-query attention, $G = 1$. With $G$ key and
# value heads, neighbouring query heads share: head $h$ reads head
# $h // (H/G)$. Why anyone would share, you see when you count bytes below.

# %% tags=["exercise"]
from minipalm.model.attention import attention

# %% [markdown]
# ### Why √K?
#
# A score is a sum of $K$ products. If queries and keys have entries of
# variance 1, what is the standard deviation of a score?
#
# **Predict.** Move $K$ up. Which of the two panels stays as it is, and what
# does a gradient look like in the other one?

# %% tags=["classroom"]
interactive(lambda K: scale_of_scores(attention, K), K=(16, 256, 16, 64))

# %% [markdown]
# The left one uses your `attention` as it is; the right one undoes the
# division. Where one weight is nearly 1, no small change of a key changes
# anything: the softmax is saturated, and what should learn gets no gradient.

# %% [markdown]
# ### Heads that share
#
# Your function takes any $G$. Change the values of one key/value head and see
# which query heads notice:

# %%
q = torch.randn(1, 6, 5, 8, generator=draw)
k, v = torch.randn(2, 1, 3, 5, 8, generator=draw)
other = v.clone()
other[:, 1] += 1
moved = (attention(q, k, other) - attention(q, k, v)).abs().amax((0, 2, 3))
print("query heads that notice:", [h for h in range(6) if moved[h] > 1e-6])

# %% [markdown]
# ## Do the work once
#
# To write a text, the network is asked for a token, the token is appended,
# and the network is asked again. What of the last pass can be used in the
# next? A token's key and value depend on earlier tokens only, since the mask
# hides the later ones. So they never change: keep them.
#
# **Predict.** A text grows from 1 token to 20. How many scores
# $q_t \cdot k_s$ does one head compute on the way if every pass starts from
# nothing, and how many if only the new token asks?

# %%
T = 20
print("anew each time:", sum(t * t for t in range(1, T + 1)), "scores")
print("with a cache:  ", sum(t for t in range(1, T + 1)), "scores")

# %% [markdown]
# Move `step` and watch both pictures fill. Then choose another `row`: the
# cells that the mask hides are computed all the same, since a matrix product
# does not know which of its entries will be used.

# %% tags=["classroom"]
interactive(
    lambda step, row: cache_steps(attention_mask, step, row),
    step=(1, 12, 1, 7),
    row=["one text", "left padding", "packed texts"],
)

# %% [markdown]
# The green squares are what you build next: a tensor with room for all
# tokens, and the number of places that are filled. Every layer writes at the
# same place; only when the last has written does the number grow.

# %% tags=["exercise"]
from minipalm.model.cache import KVCache

# %% [markdown]
# Do the three parts fit? Nine tokens at once, and the same nine one by one
# through your cache, with your mask and your attention. The first row is
# padded. What should the difference be?

# %%
segments = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1], [1] * 9])
q = torch.randn(2, 4, 9, 8, generator=draw)
k, v = torch.randn(2, 2, 2, 9, 8, generator=draw)
at_once = attention(q, k, v, attention_mask(segments, segments))

sizes = PaLMConfig(1, dim=8, depth=1, heads=4, head_dim=8, kv_heads=2)
cache, one_by_one = KVCache(sizes, batch=2, size=9, like=q), []
for t in range(9):
    new = slice(t, t + 1)
    mask = attention_mask(
        segments[:, new], cache.append_segments(segments[:, new])
    )
    keys, values = cache.extend(0, k[:, :, new], v[:, :, new])
    one_by_one.append(attention(q[:, :, new], keys, values, mask))
    cache.advance(1)
gap = (torch.cat(one_by_one, dim=2) - at_once).abs().max()
print(f"largest difference: {gap:.1e}")

# %% [markdown]
# This is the test to run on any code that samples: *cached equals uncached*,
# with padding. It finds wrong places, wrong masks and wrong lengths at once.

# %% [markdown]
# ## What the cache costs
#
# What the cache saves in time it takes in memory. For every token of every
# row, every layer keeps a key and a value for each of its $G$ heads.

# %% tags=["exercise"]
from minipalm.model.cache import cache_bytes

# %% [markdown]
# **Predict.** The largest network of this course has 32 layers and 16 query
# heads of width 64; a number takes 2 bytes. It writes 64 answers at once, each
# with a long prompt. Which is larger, its weights or its cache? And if every
# query head had its own key and value?

# %% tags=["classroom"]
large = PaLMConfig(32_768, dim=4096, depth=32, heads=16, head_dim=64)
weights = 2 * count_parameters(large)
interactive(
    lambda batch, tokens: cache_sizes(
        cache_bytes, large, weights, batch, tokens
    ),
    batch=(16, 512, 16, 64),
    tokens=(256, 8192, 256, 2048),
)

# %% [markdown]
# To write one token, the machine reads all weights *and* the whole cache once.
# Sharing one key and value divides the second part by the number of heads.
# That is why PaLM does it, and why most later models share among groups.

# %% [markdown]
# ## Break it: read the answer
#
# What happens without the mask? Two tiny models, one look each, are trained to
# guess the next word of the tales. One has your mask; the other may look at
# everything.
#
# **Predict.** Which one has the lower loss, and which one writes the better
# tale?


# %% tags=["classroom"]
class Tiny(nn.Module):
    """One look: two query heads that share a key and a value."""

    def __init__(self, V: int, D: int = 32, K: int = 16) -> None:
        super().__init__()
        self.K, self.embedding = K, nn.Embedding(V, D)
        self.qkv, self.out = nn.Linear(D, 4 * K), nn.Linear(D, V)
        nn.init.normal_(self.embedding.weight, std=0.3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.embedding(ids)
        heads = self.qkv(F.layer_norm(x, x.shape[-1:]))
        heads = heads.unflatten(-1, (4, self.K)).transpose(1, 2)
        rope = rotations(torch.arange(ids.shape[1])[None], self.K)
        q, k, v = heads.split([2, 1, 1], dim=1)
        y = attention(rotate(q, *rope), rotate(k, *rope), v, mask)
        return self.out(x + y.transpose(1, 2).flatten(2))


# %% tags=["classroom"]
texts = [record.text for record in read_texts(text)][:2000]
tokenizer = train_tokenizer(texts, "word", 144)
window = 24
stream = text_stream(tokenizer, texts)
rows = stream[: len(stream) // window * window].view(-1, window)


def train(peeks: bool, steps: int = 300) -> tuple[nn.Module, list[dict]]:
    torch.manual_seed(seed)
    model, losses = Tiny(tokenizer.vocab_size), []
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    one_text = torch.ones(32, window - 1, dtype=torch.long)
    mask = attention_mask(one_text, one_text)
    mask = torch.ones_like(mask) if peeks else mask
    for step in range(1, steps + 1):
        ids = rows[torch.randint(len(rows), (32,))]
        logits = model(ids[:, :-1], mask)
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step(), optimizer.zero_grad()
        losses.append({"step": step, "loss": loss.item()})
    return model, losses


# %% tags=["classroom"]
models, curves = {}, {}
for name, peeks in (("with the mask", False), ("without", True)):
    models[name], curves[name] = train(peeks)
guessing = {"knows nothing": math.log(tokenizer.vocab_size)}
plot.loss_curves(curves, levels=guessing)

# %% [markdown]
# The model without the mask looks like the better one by far. Let both write,
# and measure both again, this time behind the mask:


# %% tags=["classroom"]
@torch.no_grad()
def tale(model: nn.Module, begin: str, words: int = 18) -> str:
    ids = torch.tensor([[tokenizer.bos_id, *tokenizer.encode(begin)]])
    torch.manual_seed(seed)
    for _ in range(words):
        here = torch.ones_like(ids)
        law = model(ids, attention_mask(here, here))[0, -1].softmax(0)
        ids = torch.cat([ids, torch.multinomial(law, 1)[None]], dim=1)
    return tokenizer.decode(ids[0].tolist())


@torch.no_grad()
def honest_loss(model: nn.Module) -> float:
    """With the mask, whatever it was trained with."""
    ids = rows[:256]
    one_text = torch.ones_like(ids[:, 1:])
    logits = model(ids[:, :-1], attention_mask(one_text, one_text))
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()


for name, model in models.items():
    print(f"{name}: {honest_loss(model):.2f} nats a token behind the mask")
    print(f"    {tale(model, 'once there was a')}")

# %% [markdown]
# When it writes, there is no next word to look at, and it has learnt little
# else: behind the mask, its loss is far above the other's. A training loss
# that is too good is a bug. Read samples, early.
#
# Try other ways to break it: write `<` for `<=` in your mask, or deal heads
# out with `h % G`, run the notebook again from there, and see which figures
# notice.

# %% [markdown]
# ## What changed
#
# You have the mask, the look, and the cache. Lesson 05 puts them into a block,
# and every later lesson runs through them: packed fine-tuning and left-padded
# prompts need the segments, rollouts need the cache.

# %% [markdown]
# ## What real systems do differently
#
# - They never hold all scores in memory: a kernel goes through keys tile by
#   tile and keeps a running softmax. `fused_attention` in the package calls
#   PyTorch's; it gives your numbers.
# - They skip tiles that the mask hides altogether, so that packing costs next
#   to nothing.
# - They keep the cache in pages, so that answers of different lengths waste no
#   room, and share the pages of a common prompt.
# - They store it in 8 bits, or for a window of the last tokens only.

# %% [markdown]
# ## Left out on purpose
#
# - Grouped queries inside a whole model, sliding windows: lesson 17.
# - A paged cache and continuous batching: vLLM does this well.
# - A prompt whose tokens see each other both ways (prefix language models),
#   and attention to a second text (encoder and decoder): the paper on T5
#   (Raffel et al. 2019, arXiv 1910.10683) compares both.

# %% [markdown]
# ## Further reading
#
# - Vaswani et al. 2017, *Attention Is All You Need*, arXiv 1706.03762,
#   section 3.2.1: the formula, and a footnote on √K.
# - Shazeer 2019, *Fast Transformer Decoding: One Write-Head is All You Need*,
#   arXiv 1911.02150, section 3.
# - Chowdhery et al. 2022, *PaLM*, arXiv 2204.02311, section 2, "Multi-Query
#   Attention".
# - Ainslie et al. 2023, *GQA*, arXiv 2305.13245: groups, and how to convert a
#   trained model.
# - Dao et al. 2022, *FlashAttention*, arXiv 2205.14135.

# %% tags=["classroom"]
progress()

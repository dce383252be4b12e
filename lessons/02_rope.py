# %% [markdown]
# # 02 · Position as rotation
#
# Attention compares tokens, but it has no idea which came first. You build
# RoPE, the rotary position embedding that PaLM uses: it turns each query and
# each key by an angle that grows with its position. No parameter is added, and
# what a score can see is how far apart two tokens stand.

# %% tags=["parameters"]
scale = "toy"
seed = 0
out = "runs/toy"

# %%
import math

import torch
from einops import repeat
from jaxtyping import Float, Int
from torch import Tensor

from minipalm.config import PaLMConfig, get_preset
from minipalm.model.attention import attention
from minipalm.model.palm import PaLM
from minipalm.plot.interactive import interactive
from minipalm.plot.rope import angle_map, hands, moved_along, score_curves

# %% tags=["classroom"]
from minipalm.course.check import check, progress

# %% [markdown]
# ## Does attention know the order?
#
# Attention in two sentences: each token has a **query** (what it looks for), a
# **key** (what it is found by) and a **value** (what is read there). Query
# times key is a **score**, and the softmax of a token's scores weighs a mean
# of values. Several such **heads**, of width $K$, work side by side.

# %% [markdown]
# **Predict.** The last token of a text looks at itself and at all tokens
# before it. You shuffle those before it. Does what it reads change a lot, a
# little, or not at all?

# %% tags=["classroom"]
generator = torch.Generator().manual_seed(seed)
q, k, v = torch.randn(3, 1, 1, 6, 8, generator=generator)
shuffled = [3, 0, 4, 2, 1, 5]  # the last one stays
before = attention(q, k, v)[0, 0, -1]
after = attention(q, k[:, :, shuffled], v[:, :, shuffled])[0, 0, -1]
print(f"largest difference: {(after - before).abs().max():.7f}")

# %% [markdown]
# Not at all, up to rounding. To the last token, a text is a bag of tokens:
# "dog bites man" and "man bites dog" are one. That a token sees only those
# before it (the causal mask) says what may be seen, not where it stands.
#
# So the position must get into queries and keys. But how, if a phrase is to
# mean the same wherever it stands?

# %% [markdown]
# ## Hands on a clock
#
# Take two numbers of a query, $(a, b)$, for the hand of a clock, and turn it a
# little further with every token. Two hands that turn equally fast keep the
# angle between them; only the distance of their tokens sets it. And the dot
# product of two hands depends on their lengths and that angle alone. (The
# hands turn counterclockwise, as angles do in mathematics.)

# %% [markdown]
# One clock cannot tell far from near: after a full turn it begins again. So a
# head of width $K$ has $K/2$ clocks, each slower than the one before:
#
# $$\varphi_i = p \cdot \text{base}^{-2i/K}, \qquad i = 0, \ldots, K/2 - 1$$
#
# is the angle of pair $i$ at position $p$.

# %% tags=["exercise"]
from minipalm.model.rope import rotations

# %% [markdown]
# **Predict.** Here are the sizes of this course. Which pairs turn more than
# once in a row? Will the colour of the last pair change at all?

# %%
preset = get_preset(scale)
head_dim = preset.policy.head_dim
print(f"a head has {head_dim // 2} pairs, a row {preset.window} tokens")

# %%
angle_map(*rotations(torch.arange(preset.window)[None], head_dim))

# %% [markdown]
# The first pair tells neighbours apart, and soon repeats itself. The last one
# hardly moves: for it, the whole row is one place. The network can use such
# pairs for *what* a token is, wherever it stands.

# %% [markdown]
# ## Turn queries and keys
#
# $$(a, b) \to (a \cos\varphi - b \sin\varphi,\; b \cos\varphi + a
# \sin\varphi)$$
#
# Which two numbers make a pair is a convention: here $x_i$ and $x_{i+K/2}$,
# half a head apart. Elsewhere neighbours are paired. Both work, as the
# weights learn their order; mixing them does not.

# %% tags=["exercise"]
from minipalm.model.rope import rotate

# %% [markdown]
# ## Two hands
#
# A small head with three pairs, so three clocks. At position 0 all hands point
# to the right.
#
# **Predict.** The query stands at 9, the key at 4. You move both by 5 tokens.
# What happens to the hands? What happens to the score?
#
# Then move the query alone. Which distance, other than 0, makes the three
# clocks agree best? (The key's hand is only drawn shorter.)


# %% tags=["classroom"]
def two_hands(query, key):
    return hands(query, key, rotations, rotate)


interactive(two_hands, query=(0, 24, 1, 9), key=(0, 24, 1, 4))

# %% [markdown]
# Both moved by 5, in case your sliders do not move:

# %% tags=["classroom"]
two_hands(9 + 5, 4 + 5)

# %% [markdown]
# Every hand has moved, and the black dot on the curve has not: distance and
# score are the same as before. In numbers, for random queries and keys at
# random positions (what is left is float32's rounding):

# %%
generator = torch.Generator().manual_seed(seed)
q, k = torch.randn(2, 1, 2, 12, head_dim, generator=generator)
positions = torch.randint(40, (1, 12), generator=generator)


def scores_at(positions, more=0):
    """Scores with all keys, the queries `more` tokens later."""
    turned = rotate(q, *rotations(positions + more, head_dim))
    return turned @ rotate(k, *rotations(positions, head_dim)).mT


here, there = scores_at(positions), scores_at(positions + 5)
print(f"both moved by 5:          {(there - here).abs().max():.6f}")
later = scores_at(positions, more=5)
print(f"queries alone moved by 5: {(later - here).abs().max():.6f}")
longer = rotate(q, *rotations(positions, head_dim)).norm(dim=-1)
print(f"change of length:         {(longer - q.norm(dim=-1)).abs().max():.6f}")

# %% [markdown]
# Values are not turned. They are what is read, not where: a turned value
# would mean something else at each place, and nothing would turn it back.

# %% [markdown]
# ## How far can a pair see?
#
# A pair that is exactly one turn further looks as if it had not moved. The
# tokens of one turn are its wavelength, as with any wave.

# %% tags=["exercise"]
from minipalm.model.rope import wavelengths

# %%
for base in (100.0, 10_000.0, 1_000_000.0):
    turns = wavelengths(head_dim, base)
    slow = int((turns > preset.window).sum())
    print(
        f"base {base:,.0f}: {turns[0]:.1f} to {turns[-1]:,.0f} tokens a turn"
    )
    print(f"    {slow} of {len(turns)} pairs do not finish one turn in a row")

# %% [markdown]
# ## A score that takes a distance
#
# Now state the promise as a function: the score of a query and a key, divided
# by $\sqrt K$ as attention does, from their distance alone.

# %% tags=["exercise"]
from minipalm.model.rope import scores_by_distance

# %% [markdown]
# **Predict.** A key meets a query that is its copy, further and further away.
# At distance 0 all clocks agree. How does the mean score go on: does it stay,
# fall, or swing? What does a larger base change?

# %%
copies = torch.randn(200, head_dim, generator=generator)
distances = torch.arange(preset.window)
score_curves(
    distances,
    {
        f"base {base:,}": scores_by_distance(copies, copies, distances, base)
        for base in (100, 10_000)
    },
)

# %% [markdown]
# Near copies score higher on average: a bias towards what is near that nobody
# has trained. But it is no law: the curve swings, and the weights of a
# trained network can turn a query so that another distance scores best.
#
# With a larger base more pairs are slow, so more of the score is left far
# away. That is why long contexts come with large bases.

# %% [markdown]
# ## The whole network keeps the promise
#
# If every score sees distances only, so does a network of any depth. Here the
# package's PaLM reads one text twice, the second time as if it began at
# another place.

# %% tags=["classroom"]
config = PaLMConfig(vocab_size=20, dim=32, depth=3, heads=4, head_dim=8)
palm = PaLM(config, torch.Generator().manual_seed(seed)).eval()
ids = torch.randint(20, (1, 10), generator=generator)
places = torch.arange(10)[None]
with torch.no_grad():
    first, second = palm(ids), palm(ids, positions=places + 300)
    reversed_places = palm(ids, positions=9 - places)
print(f"300 tokens further: {(second - first).abs().max():.6f}")
print(f"in reverse order:   {(reversed_places - first).abs().max():.6f}")

# %% [markdown]
# So a prompt may have padding on its left that nobody looks at: the number of
# the place where it begins does not matter, only that its tokens stand side by
# side.

# %% [markdown]
# ## Break it
#
# Three ways to lose the promise. A query and its copy as key stand 3 tokens
# apart, and both move along a text.
#
# - *Added*: a vector of sines and cosines is added to query and key, as in
#   the first transformer.
# - *Mixed pairs*: queries pair numbers half a head apart, keys pair
#   neighbours, as if weights of another library had been loaded.
# - *bfloat16*: the angles are rounded to that type before cosine and sine.
#
# **Predict.** Which of them fails at once, which only later?


# %% tags=["classroom"]
def added(x, places):
    return x + torch.cat(rotations(places, 16), -1)


def turned(x, places):
    return rotate(x, *rotations(places, 16))


def neighbours(x, places):
    apart = torch.cat([x[..., ::2], x[..., 1::2]], -1)
    first, second = turned(apart, places).chunk(2, -1)
    return torch.stack([first, second], -1).flatten(-2)


def rounded(x, places):
    speeds = 10_000.0 ** -(torch.arange(8) / 8)
    angles = (places[:, None, :, None] * speeds).bfloat16().float()
    return rotate(x, angles.cos(), angles.sin())


# %% tags=["classroom"]
generator.manual_seed(seed)
starts = torch.arange(0, 2800, 7)[None]
x = torch.randn(1, 1, 1, 16, generator=generator).expand(-1, -1, 400, -1)
ways = {
    "RoPE": (turned, turned),
    "added": (added, added),
    "mixed pairs": (turned, neighbours),
    "bfloat16": (rounded, rounded),
}
moved_along(
    starts[0],
    {
        name: (of_query(x, starts + 3) * of_key(x, starts)).sum(-1)[0, 0] / 4
        for name, (of_query, of_key) in ways.items()
    },
    distance=3,
)

# %% [markdown]
# You see one flat line. *Added* and *mixed pairs* swing from the first token:
# a phrase learnt at one place is another phrase elsewhere. *bfloat16* is the
# treacherous one: it keeps eight significant bits, so all is well while the
# text is short, and the further along, the coarser the angles become. No error
# is raised in any of them.

# %% [markdown]
# ## One token, again and again
#
# **Predict.** A PaLM reads the same token ten times and nothing else. It has
# RoPE, so it knows where each one stands. Are the predictions after the second
# and after the tenth different?

# %% tags=["classroom"]
same = torch.full((1, 10), 7)
opened = same.clone()
opened[0, 0] = 3  # another token in front, as <bos> would be
with torch.no_grad():
    for name, read in (("ten times 7", same), ("3, then 7s", opened)):
        logits = palm(read)[0]
        print(f"{name}: {(logits[-1] - logits[1]).abs().max():.6f}")

# %% [markdown]
# They are the same: this network cannot count. Rotation changes with which
# shares a mean is taken, and all that is averaged are values, here ten equal
# ones. Any weighted mean of equal vectors is that vector, in each layer anew.
#
# One different token in front is enough: now the shares decide how much of it
# is left, and distance becomes visible. It is one more reason for rows to
# begin with `<bos>`.

# %% [markdown]
# ## What changed
#
# You have a position that costs no parameter, and a score that sees distance
# only. In the next lesson these queries and keys meet in attention.
#
# Angles belong to positions, not to places in a tensor. That will matter when
# rows are padded, hold several texts, or are read token by token.

# %% [markdown]
# ## What real systems do differently
#
# - They compute cosine and sine once, for the longest text, and keep them.
# - Some turn a part of each head only; x-transformers, a library of
#   transformer parts, turns half of it unless told otherwise.
# - Which numbers are paired differs between libraries, so loading weights may
#   mean reordering the columns of the query and key projections.
# - For long contexts they raise the base before the last part of training, or
#   stretch the slow pairs and leave the fast ones (YaRN).

# %% [markdown]
# ## Left out on purpose
#
# - Reading texts longer than those of training: see YaRN below.
# - xPos, which also shrinks scores with distance; PaLM-rlhf-pytorch, the
#   library that this course rebuilds, turns it on.
# - Learned positions, biases on scores (ALiBi), and no positions at all: the
#   causal mask alone lets a deep network find out some of the order.

# %% [markdown]
# ## Further reading
#
# - Su et al. 2021, RoFormer, arXiv 2104.09864, sections 3.2 to 3.4.
# - Chowdhery et al. 2022, PaLM, arXiv 2204.02311, section 2: RoPE among the
#   choices.
# - Peng et al. 2023, YaRN, arXiv 2309.00071: wavelengths and longer contexts.
# - Sun et al. 2022, A Length-Extrapolatable Transformer, arXiv 2212.10554:
#   xPos.
# - Press et al. 2021, ALiBi, arXiv 2108.12409.

# %% tags=["classroom"]
progress()

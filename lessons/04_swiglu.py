# %% [markdown]
# # 04 · SwiGLU
#
# Between two rounds of attention, a transformer works on each token alone. In
# PaLM this feed-forward layer has gates: one projection says what passes,
# another says how much of it. You build it, make it cost what a plain layer
# costs, and measure what the gate is good for, and what it is not.

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
from jaxtyping import Float
from torch import Tensor

from minipalm.config import get_preset
from minipalm.course import ROOT
from minipalm.data.batches import text_stream
from minipalm.data.datasets import read_texts
from minipalm.data.tokenizer import train_tokenizer
from minipalm.plot.interactive import interactive
from minipalm.plot.swiglu import activations, layer_losses, unit_surface

# %% tags=["classroom"]
from minipalm.course.check import check, progress

# %%
os.chdir(ROOT)  # paths are from the repository's folder

# %% [markdown]
# ## Why a gate?
#
# A plain layer is $\text{relu}(x W_{in})\, W_{out}$: each hidden unit is a
# weighted sum of the inputs, cut off below 0. Now suppose that one feature
# should count *only if* another is there, or twice as much where the other is
# twice as strong. That is a product, and a plain unit has to piece it
# together from many cuts.
#
# A gated unit has the product built in: $\text{gate} \times \text{value}$,
# both weighted sums of the inputs.

# %% [markdown]
# ## What bends the gate
#
# A gate that never bends leaves a product of two linear maps. So it goes
# through a curve first: $\text{silu}(g) = g\,\sigma(g)$.
#
# **Predict.** ReLU has slope 0 left of 0. What slope has silu at $-5$, at 0
# and at 5? Does it fall below 0 anywhere?

# %%
activations(
    {"silu": F.silu, "relu": F.relu, "gelu": F.gelu, "sigmoid": torch.sigmoid}
)

# %% [markdown]
# silu is closed far to the left and open to the right, as ReLU is, but it has
# no corner. Around 0 a gate that is closed still has a slope, so it can learn
# to open. A sigmoid, the gate of the first gated networks, stops at 1.

# %% tags=["exercise"]
from minipalm.model.swiglu import swiglu

# %% [markdown]
# ## One hidden unit
#
# Two inputs, one unit: its output is a landscape. Blue is negative, red
# positive.
#
# **Predict.** The gate looks to the right, the value up. In which corner is
# the output large? Where is it negative? What happens if both look in the
# same direction?


# %% tags=["classroom"]
def one_unit(gate_1, gate_2, value_1, value_2):
    return unit_surface(swiglu, (gate_1, gate_2), (value_1, value_2))


interactive(
    one_unit,
    gate_1=(-3.0, 3.0, 0.25, 1.0),
    gate_2=(-3.0, 3.0, 0.25, 0.0),
    value_1=(-3.0, 3.0, 0.25, 0.0),
    value_2=(-3.0, 3.0, 0.25, 1.0),
)

# %% [markdown]
# On the left of the solid line little passes. On the right the value passes
# with its sign, multiplied by the gate. The plain unit has one line and one
# sign. Let both look in the same direction:

# %% tags=["classroom"]
one_unit(1.0, 0.0, 1.0, 0.0)

# %% [markdown]
# The negative part is gone: a number times itself has no sign. That is what a
# layer computes in which one projection serves as both.

# %% [markdown]
# ## A fair comparison
#
# A gated layer has three matrices where a plain one has two. With the same
# width it would win merely because it is larger. How wide may it be?

# %% tags=["exercise"]
from minipalm.model.swiglu import gated_width

# %%
policy = get_preset(scale).policy
D, plain_width = policy.dim, 4 * policy.dim
print(f"D = {D}; weights of one layer:")
for name, matrices, width in (
    ("plain, 4D", 2, plain_width),
    ("gated, equal cost", 3, gated_width(plain_width)),
    ("gated, multiple of 64", 3, gated_width(plain_width, 64)),
    ("gated, this policy", 3, policy.ff_dim),
):
    print(f"{name:22} width {width:6,}: {matrices * D * width:12,}")

# %% [markdown]
# PaLM does not narrow its layer: it keeps width $4D$ with three matrices, and
# pays for it. LLaMA takes two thirds, rounded up. Neither is wrong, but a
# comparison must say which.

# %% tags=["exercise"]
from minipalm.model.swiglu import gated_feedforward

# %% [markdown]
# ## Does it help?
#
# Two tasks, each made for one of the layers. Inputs are 8 numbers, outputs 8:
#
# - *products*: each output is the product of two neighbouring inputs,
# - *kinks*: each output is the absolute value of an input.
#
# **Predict.** Which layer wins where? And on text, where nobody has chosen
# the task?


# %% tags=["classroom"]
def relu_layer(x, w_in, w_out):
    return F.relu(x @ w_in) @ w_out


def shapes(D, width, matrices):
    return [(D, width)] * (matrices - 1) + [(width, D)]


def weights(shapes, generator):
    drawn = [torch.randn(*one, generator=generator) for one in shapes]
    return [(one / math.sqrt(len(one))).requires_grad_() for one in drawn]


def descend(loss, parameters, steps, lr=0.01):
    """Adam, with a step size that falls to 0."""
    optimizer = torch.optim.Adam(parameters)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


# %% tags=["classroom"]
def draw(task, seed, rows=1024):
    x = torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed))
    x[:, -1] = 1.0  # a constant input, in the place of biases
    return x, x * x.roll(1, dims=1) if task == "products" else x.abs()


def fit(task, layer, shapes, seed, steps=400):
    """The error on fresh data, as a share of the outputs' variance."""
    x, y = draw(task, seed)
    parameters = weights(shapes, torch.Generator().manual_seed(seed))
    descend(lambda: F.mse_loss(layer(x, *parameters), y), parameters, steps)
    x, y = draw(task, seed + 1000)
    with torch.no_grad():
        return (F.mse_loss(layer(x, *parameters), y) / y.var()).item()


# %% [markdown]
# For text, a small network reads the four words before and predicts the next
# one; the layer stands between, with a residual connection as in a block.

# %% tags=["classroom"]
texts = [one.text for one in read_texts(text)]
tokenizer = train_tokenizer(texts, "word", 400)
stream = text_stream(tokenizer, texts)
windows = stream[:100_000].unfold(0, 5, 1)  # four words, and the next
heldout = stream[-8_000:].unfold(0, 5, 1)


def read(layer, shapes, seed, steps=300):
    """Nats a word on held-out text."""
    generator = torch.Generator().manual_seed(seed)
    V = tokenizer.vocab_size
    embedding = torch.randn(V, 12, generator=generator, requires_grad=True)
    head, *parameters = weights([(48, V), *shapes], generator)

    def loss(rows):
        x = F.layer_norm(embedding[rows[:, :4]].flatten(1), (48,))
        logits = (x + layer(x, *parameters)) @ head
        return F.cross_entropy(logits, rows[:, 4])

    def drawn():
        chosen = torch.randint(len(windows), (256,), generator=generator)
        return loss(windows[chosen])

    descend(drawn, [embedding, head, *parameters], steps)
    with torch.no_grad():
        return loss(heldout).item()


# %% tags=["classroom"]
seeds = range(seed, seed + 5)
results = {}
for task in ("products", "kinks"):
    results[task] = {
        "relu": [fit(task, relu_layer, shapes(8, 48, 2), n) for n in seeds],
        "swiglu": [
            fit(task, gated_feedforward, shapes(8, gated_width(48), 3), n)
            for n in seeds
        ],
    }
results["text"] = {
    "relu": [read(relu_layer, shapes(48, 192, 2), n) for n in seeds],
    "swiglu": [
        read(gated_feedforward, shapes(48, gated_width(192), 3), n)
        for n in seeds
    ],
}
units = {"products": "error / variance", "kinks": "error / variance"}
units["text"] = "nats a word"
layer_losses(results, units)

# %% tags=["classroom"]
for task, losses in results.items():
    for name, some in losses.items():
        mean, sd = torch.tensor(some).mean(), torch.tensor(some).std()
        print(f"{task:9} {name:7} {mean:.4f} ± {sd:.4f}")

# %% [markdown]
# A dot is a seed, which sets data, weights and batches; the bar is their
# mean. Each layer wins its own task in every seed. A gate is no free gift: at
# equal cost it buys products and pays with kinks.

# %% [markdown]
# On text, after so few steps of so small a network, look whether the dots of
# one layer leave those of the other. What is known about language comes from
# far larger comparisons, and the gains there are small, too.

# %% [markdown]
# ## Break it
#
# Four layers that cost the same as yours, each with one thing wrong:
#
# - *sigmoid*: the gate stops at 1, so nothing is multiplied by more.
# - *no curve*: gate times value; the bilinear layer.
# - *shared*: one projection is both gate and value.
# - *no gate*: silu of one projection.

# %% tags=["classroom"]
M = gated_width(48)
broken = {
    "swiglu": (gated_feedforward, shapes(8, M, 3)),
    "sigmoid": (
        lambda x, g, u, d: (torch.sigmoid(x @ g) * (x @ u)) @ d,
        shapes(8, M, 3),
    ),
    "no curve": (lambda x, g, u, d: ((x @ g) * (x @ u)) @ d, shapes(8, M, 3)),
    "shared": (lambda x, g, d: swiglu(x @ g, x @ g) @ d, shapes(8, 48, 2)),
    "no gate": (lambda x, g, d: F.silu(x @ g) @ d, shapes(8, 48, 2)),
}
layer_losses(
    {
        task: {
            name: [fit(task, layer, sizes, n) for n in seeds]
            for name, (layer, sizes) in broken.items()
        }
        for task in ("products", "kinks")
    },
    units,
)

# %% [markdown]
# Read the dots before you believe a story.
#
# - *No curve* is best at products: it is a polynomial, and so is the task.
#   No weights make a corner of it.
# - *Shared* has lost the sign, as the landscape showed, and is worse than
#   swiglu at products.
# - *No gate* is last at products and among the best at kinks.
# - *Sigmoid*, the older gate, is not broken at all: on these tasks nothing
#   speaks for silu. What does is the comparison on language below.

# %% [markdown]
# Now a break that no loss announces. silu is $g / (1 + e^{-g})$; write it so
# and look at a gate that is far from open.

# %% tags=["classroom"]
for g in (-5.0, -50.0, -100.0):
    gate = torch.tensor(g, requires_grad=True)
    by_hand = gate / (1 + torch.exp(-gate))
    by_hand.backward()
    print(f"gate {g:6}: silu {by_hand.item():.4f}, slope {gate.grad:.4f}")

# %% [markdown]
# The output is right in every line, so every test of outputs passes. But
# $e^{-g}$ overflows, and its gradient is NaN. One such gate in one token is
# enough: its weights become NaN, and soon so does all that they touch.

# %% [markdown]
# ## What changed
#
# You have the feed-forward layer of PaLM, a width that makes comparisons
# fair, and a measured answer to what gating buys. In the next lesson this
# layer stands beside attention in one block.

# %% [markdown]
# ## What real systems do differently
#
# - Gate and up are one matrix product, as in this course's block; often the
#   curve and the product are fused into one kernel.
# - Widths are rounded to what the hardware likes.
# - Nearly all recent open models gate with silu; some with gelu (GEGLU).
# - In mixtures of experts there are many such layers, and a router picks a
#   few for each token.

# %% [markdown]
# ## Left out on purpose
#
# - Biases: PaLM has none, and the constant input above stood in for them.
# - Why gating helps language: the paper that introduced SwiGLU offers no
#   explanation, and neither does this lesson.
# - Dropout, and the larger comparison that would decide the third panel.

# %% [markdown]
# ## Further reading
#
# - Shazeer 2020, GLU Variants Improve Transformer, arXiv 2002.05202: section
#   2 for the layers and the two thirds, section 3 for the comparison.
# - Dauphin et al. 2016, Language Modeling with Gated Convolutional Networks,
#   arXiv 1612.08083: the gate with a sigmoid.
# - Ramachandran et al. 2017, Searching for Activation Functions, arXiv
#   1710.05941: silu, under the name of Swish.
# - Chowdhery et al. 2022, PaLM, arXiv 2204.02311, section 2.
# - Touvron et al. 2023, LLaMA, arXiv 2302.13971, section 2.2.

# %% tags=["classroom"]
progress()

# %% [markdown]
# # 06 · A whole PaLM
#
# You build a language model out of the parallel blocks of `minipalm/model`:
# an embedding, a stack of blocks, a last norm, and the embedding again as
# head. Then you train two of them to continue text: the **policy**, which
# will learn to answer, and a smaller **trunk**, which will learn to judge
# answers.

# %% tags=["parameters"]
scale = "toy"
seed = 0
out = "runs/toy"
text = "data/text.jsonl"
demonstrations = "data/demonstrations.jsonl"

# %%
import math
import os
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from minipalm import plot
from minipalm.config import OptimConfig, PaLMConfig, get_preset
from minipalm.course import ROOT
from minipalm.data.batches import hold_out_stream, prompt_ids, text_stream
from minipalm.data.datasets import (
    check_window,
    read_demonstrations,
    read_texts,
)
from minipalm.data.files import fingerprint
from minipalm.data.tokenizer import train_tokenizer
from minipalm.model.attention import attention_mask
from minipalm.model.block import ParallelBlock, SerialBlock, init_block
from minipalm.model.cache import KVCache
from minipalm.model.generate import generate
from minipalm.model.rope import rotations
from minipalm.train.optim import (
    adamw,
    batch_rows,
    micro_batches,
    optimizer_step,
)
from minipalm.train.run import Run, progress, read_metrics
from minipalm.train.stage import finish_stage

# %%
os.chdir(ROOT)  # paths are from the repository's folder
preset = get_preset(scale)
texts = [record.text for record in read_texts(text)]
demos = read_demonstrations(demonstrations)
texts[:3]

# %% [markdown]
# ## From text to rows
#
# The tokenizer must know the words of the later lessons too, so it also sees
# the demonstrations. All texts are laid end to end and cut into windows of
# equal length: nothing is padding, everything is learnt from.

# %%
words = texts + [f"{demo.prompt} {demo.response}" for demo in demos]
tokenizer = train_tokenizer(words, preset.tokenizer, preset.vocab_size)
check_window(demos, tokenizer, preset.window)
stream, heldout = hold_out_stream(
    text_stream(tokenizer, texts), preset.window, source=text
)
print(f"vocabulary: {tokenizer.vocab_size}, text: {len(stream)} tokens")

# %% [markdown]
# ## The network
#
# $$h_0 = E[x], \qquad h_{l+1} = h_l + \text{attention}(\bar h_l) +
# \text{swiglu}(\bar h_l), \qquad \text{logits} = \bar h_L E^\top$$
#
# $\bar h$ is the normalised state. The embedding $E$ is used twice, at both
# ends, so its scale decides two things at once: how loud a token is, and how
# sharp the first guesses are.

# %% tags=["define"]
from minipalm.model.palm import PaLM

# %% tags=["define"]
from minipalm.model.palm import count_parameters

# %%
generator = torch.Generator().manual_seed(seed)
config = replace(preset.policy, vocab_size=tokenizer.vocab_size)
trunk_config = replace(preset.reward_trunk, vocab_size=tokenizer.vocab_size)
policy = PaLM(config, generator)
trunk = PaLM(trunk_config, generator)
print(f"policy {count_parameters(config):,} parameters")
print(f"trunk  {count_parameters(trunk_config):,} parameters")

# %% [markdown]
# ## The loss
#
# Predict every token from those before it. Before any training the model knows
# nothing, and knowing nothing costs about $\log V$ nats a token.

# %% tags=["define"]
from minipalm.train.language_model import next_token_loss

# %%
rows = heldout[: len(heldout) // preset.window * preset.window]
rows = rows.view(-1, preset.window)[:256]
with torch.no_grad():
    untrained = next_token_loss(policy, rows).item()
print(f"before: {untrained:.2f} nats a token")
print(f"log V:  {math.log(tokenizer.vocab_size):.2f}")

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

# %%
with torch.no_grad():
    trained = {
        "policy": next_token_loss(policy, rows).item(),
        "trunk": next_token_loss(trunk, rows).item(),
    }
for name, loss in trained.items():
    print(f"{name}: {loss:.3f} nats a token on the text held out")

# %% [markdown]
# ## Sample
#
# Ask for the next token, draw it from the law that the logits give, and go on.
# A temperature below 1 makes the law sharper; top-k and top-p cut its tail.

# %%
begin = prompt_ids(tokenizer, texts[0])[:6]
start = tokenizer.decode(begin)
ids, mask = torch.tensor([begin]), torch.ones(1, len(begin), dtype=torch.bool)
with torch.no_grad():
    logits = policy(ids, mask.long())[0, -1]
names = [tokenizer.decode([token]) for token in range(tokenizer.vocab_size)]
names[:3] = "<pad>", "<bos>", "<eos>"
plot.next_token_bars(logits, names, prompt=start)

# %%
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
# ## What changed
#
# You have two models that write in the manner of the tales. Neither answers a
# request yet: that is the next lesson.

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

# %% [markdown]
# # 07 · Supervised fine-tuning
#
# You teach both models to answer. A demonstration is a prompt and a good
# response; the models learn to continue the one with the other. The loss
# counts the response only, and rows are packed so that little of the work is
# padding.

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
from minipalm.config import OptimConfig, get_preset
from minipalm.course import ROOT
from minipalm.data.batches import prompt_ids, response_ids
from minipalm.data.datasets import (
    check_prompt_lengths,
    check_response_lengths,
    hold_out,
    read_demonstrations,
)
from minipalm.data.files import fingerprint
from minipalm.data.tokenizer import load_tokenizer
from minipalm.model.palm import PaLM
from minipalm.rlhf.answers import answer
from minipalm.rlhf.sft import Example, Rows, fill_rows, pad_examples
from minipalm.train.optim import (
    adamw,
    batch_rows,
    micro_batches,
    optimizer_step,
)
from minipalm.train.run import Run, progress, read_metrics
from minipalm.train.stage import (
    finish_stage,
    finished_stage,
    load_result,
    result_fingerprint,
)

# %%
os.chdir(ROOT)  # paths are from the repository's folder
preset = get_preset(scale)
tokenizer = load_tokenizer(finished_stage(out, "06_palm") / "tokenizer.json")
config = replace(preset.policy, vocab_size=tokenizer.vocab_size)
trunk_config = replace(preset.reward_trunk, vocab_size=tokenizer.vocab_size)
policy = load_result(PaLM(config), out, "06_palm", "policy", tokenizer)
trunk = load_result(PaLM(trunk_config), out, "06_palm", "trunk", tokenizer)

# %%
demos = read_demonstrations(demonstrations)
check_prompt_lengths(demos, tokenizer, preset.max_prompt)
check_response_lengths(demos, tokenizer, preset.max_response)
for demo in demos[:3]:
    print(demo.prompt, "→", demo.response)

# %% [markdown]
# ## Pack
#
# Responses have different lengths. Padded to the longest, much of each row is
# empty; packed, several demonstrations share a row. They do not see each
# other: attention stays within a segment, and positions start again with each.
# So packing changes no number, it only leaves less to compute.

# %% tags=["define"]
from minipalm.rlhf.sft import pack_examples

# %%
examples, tests = (
    [
        (prompt_ids(tokenizer, d.prompt), response_ids(tokenizer, d.response))
        for d in part
    ]
    for part in hold_out(demos, 0.05, seed)
)
packed = pack_examples(examples, preset.window)
heldout = pad_examples(tests[:256])
few = examples[:24]
padded = pad_examples(few)
lengths = [len(prompt) + len(response) for prompt, response in examples]
plot.lengths_histogram({"demonstrations": lengths}, limit=preset.window)

# %%
plot.packing_picture(
    padded.segments, pack_examples(few, preset.window).segments
)

# %% [markdown]
# ## The loss
#
# $$L = -\frac{1}{\sum m_t} \sum_t m_t \log \pi(y_t \mid x, y_{<t})$$
#
# The mask $m$ is 1 at response tokens, the end-of-sequence token included: a
# model that is never asked to end does not learn to.

# %% tags=["define"]
from minipalm.rlhf.sft import sft_loss

# %%
with torch.no_grad():
    one = sft_loss(policy, padded).item()
    two = sft_loss(policy, pack_examples(few, preset.window)).item()
print(f"loss padded {one:.6f}, packed {two:.6f}")

# %% [markdown]
# ## Train

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
with torch.no_grad():
    heldout_loss = {
        "policy": sft_loss(policy, heldout).item(),
        "trunk": sft_loss(trunk, heldout).item(),
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

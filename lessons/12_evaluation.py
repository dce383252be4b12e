# %% [markdown]
# # 12 · Is it better?
#
# PPO raised the reward model's score. You ask the gold reward, which it never
# saw, whether the answers are better: on the prompts of training and on held-
# out ones, side by side with the policy it began with.

# %% tags=["parameters"]
scale = "toy"
seed = 0
out = "runs/toy"
prompts = "data/prompts.jsonl"
heldout = "data/prompts_heldout.jsonl"

# %%
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import torch
from jaxtyping import Float
from torch import Tensor

from minipalm import plot
from minipalm.config import get_preset
from minipalm.course import ROOT
from minipalm.data.datasets import check_prompt_lengths, read_prompts
from minipalm.data.files import write_text
from minipalm.data.tokenizer import load_tokenizer
from minipalm.evaluate.judge import judge
from minipalm.evaluate.statistics import (
    Interval,
    mean_interval,
    over_optimisation,
    wins,
)
from minipalm.model.palm import PaLM
from minipalm.rlhf.answers import answer
from minipalm.rlhf.reward import RewardModel
from minipalm.train.run import read_metrics
from minipalm.train.stage import (
    finish_stage,
    finished_stage,
    load_result,
    stage_summary,
)

# %%
os.chdir(ROOT)  # paths are from the repository's folder
preset = get_preset(scale)
tokenizer = load_tokenizer(finished_stage(out, "06_palm") / "tokenizer.json")
config = replace(preset.policy, vocab_size=tokenizer.vocab_size)
trunk_config = replace(preset.reward_trunk, vocab_size=tokenizer.vocab_size)
reward_model = load_result(
    RewardModel(PaLM(trunk_config), preset.reward.pooling),
    out,
    "08_reward_model",
    "reward_model",
    tokenizer,
)
names = [
    f"beta-{kl_coef:g}" for kl_coef in stage_summary(out, "11_ppo")["kl_coefs"]
]
policies = {
    "sft": load_result(PaLM(config), out, "07_sft", "policy", tokenizer)
}
for name in names:
    policies[name] = load_result(PaLM(config), out, "11_ppo", name, tokenizer)

# %% [markdown]
# ## Ask everybody the same
#
# Each policy answers the same prompts. TinyTales' held-out prompts ask for
# pairs of mood and subject that no demonstration, comparison or PPO prompt
# asks for.

# %%
splits = {}
for split, path in {"seen": prompts, "heldout": heldout}.items():
    records = read_prompts(path)
    check_prompt_lengths(records, tokenizer, preset.max_prompt)
    splits[split] = [record.prompt for record in records]

judged = {}
for split, texts in splits.items():
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(
        len(texts), (preset.eval_samples,), generator=generator
    )
    for name, policy in policies.items():
        answers = answer(
            policy,
            tokenizer,
            [texts[row] for row in rows],
            max_prompt=preset.max_prompt,
            max_response=preset.max_response,
            generator=generator,
        )
        judged[split, name] = judge(
            answers, policy, policies["sft"], reward_model
        )

# %% [markdown]
# ## Who wins?
#
# The win rate is the share of prompts where PPO's answer has more gold than
# SFT's, ties counted half. A share of $n$ pairs is not known exactly: the
# interval says how well.

# %% tags=["define"]
from minipalm.evaluate.statistics import wilson

# %% tags=["define"]
from minipalm.evaluate.statistics import win_rate

# %%
compared = {}
for split in splits:
    sft, ppo = judged[split, "sft"], judged[split, names[0]]
    before, after = sft.row(), ppo.row()
    compared[split] = {
        "sft": before,
        "ppo": after,
        "win_rate": None,
        "gain_sd": None,
    }
    if sft.gold is not None:
        rate = win_rate(ppo.gold_totals(), sft.gold_totals())
        compared[split]["win_rate"] = rate._asdict()
        gain = after["gold"] - before["gold"]
        compared[split]["gain_sd"] = gain / before["gold_sd"]

# %%
if sft.gold is not None:
    for (split, name), one in judged.items():
        mean, half = mean_interval(one.gold_totals())
        print(f"{split:8} {name:10} gold {mean:.2f} ± {half:.2f}")

# %%
for split, both in compared.items():
    print(f"{split} prompts   SFT      PPO")
    for measure, value in both["sft"].items():
        if value is not None:
            print(f"  {measure:12} {value:8.3f} {both['ppo'][measure]:8.3f}")

# %%
plot.win_rate_bar(
    {
        f"{split} prompts": both["win_rate"]
        for split, both in compared.items()
        if both["win_rate"]
    }
)

# %%
shown = ["sft", names[0], *(name for name in names[1:] if name == "beta-0")]
figure = None
if judged["seen", "sft"].gold is not None:
    figure = plot.gold_parts(*(judged["seen", name].row() for name in shown))
figure

# %% [markdown]
# ## The proxy and the truth
#
# Follow both rewards along the way from the reference. The proxy is what PPO
# climbs. Where β is 0, look at gold.

# %%
penalty = preset.ppo.missing_eos_penalty
curves = {
    name.removeprefix("beta-"): [
        {
            "step": step["step"],
            "kl": step["kl"],
            "gold": step.get("gold"),
            "score": step["score"]
            + penalty * step["unfinished"],  # the proxy alone
            "unfinished": step["unfinished"],
        }
        for step in read_metrics(f"{out}/11_ppo/{name}")
    ]
    for name in names
}
plot.over_optimisation(curves, compared["seen"]["sft"]["gold"])

# %% [markdown]
# ## Read them
#
# Numbers first, then texts: a policy can only be trusted once somebody has
# read it.

# %%
samples = []
for split, n in [("seen", 0), ("seen", 1), ("heldout", 0), ("heldout", 1)]:
    sample = {
        "prompt": judged[split, "sft"].answers.prompts[n],
        "split": split,
    }
    keys = {"sft": "sft", "beta-0": "unpenalised", names[0]: "ppo"}
    for name in policies:
        one = judged[split, name]
        if name in keys:
            gold = one.gold[n].total if one.gold is not None else None
            sample[keys[name]] = {"text": one.answers.texts[n], "gold": gold}
    samples.append(sample)

# %%
for sample in samples:
    print(sample["prompt"])
    for name in ("sft", "ppo", "unpenalised"):
        if name in sample:
            print(f"  {name:12} {sample[name]['text']}")

# %% [markdown]
# ## What changed
#
# You know by how much the policy is better, how sure that is, and what happens
# when the penalty is taken away.

# %%
fall = None
if "0" in curves and all(step["gold"] is not None for step in curves["0"]):
    fall = over_optimisation(curves["0"])._asdict()
losses = {
    "pretrain": ("06_palm/policy", "loss"),
    "sft": ("07_sft/policy", "loss"),
    "reward_model": ("08_reward_model/training", "loss"),
    "ppo": (f"11_ppo/{names[0]}", "score"),
}
evaluation = {
    "scale": scale,
    "seed": seed,
    "beta": stage_summary(out, "11_ppo")["kl_coefs"][0],
    "prompts": compared,
    "reward_model": stage_summary(out, "08_reward_model"),
    "curves": curves,
    "over_optimisation": fall,
    "samples": samples,
    "losses": {
        name: [
            [step["step"], step[key]]
            for step in read_metrics(f"{out}/{folder}")
        ]
        for name, (folder, key) in losses.items()
    },
}
write_text(
    Path(out, "12_evaluation", "evaluation.json"),
    json.dumps(evaluation, indent=1),
)
finish_stage(out, "12_evaluation", {}, tokenizer, scale=scale, seed=seed)

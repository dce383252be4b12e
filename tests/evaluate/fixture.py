"""An evaluation as a toy run writes it, drawn from a seed; no training needed."""

import math
from random import Random

PROMPTS = [
    ("write a sad story about the fox :", "seen"),
    ("tell a happy tale about the dog :", "seen"),
    ("scary story about the witch :", "heldout"),
    ("write a happy story about the uncle :", "heldout"),
]
SFT = "the fox lived in the forest . then it met a small bird and the queen was"
PPO = "the sad fox wept . it was gloomy and sad ."
FREE = "the odd fox mourned . it it it it it it sad fox mourned . it it it it it it"


def curve(rng, iterations, kl_end, peak, end, proxy_end):
    """Gold that climbs to its peak at a third of the way and then falls to its end."""
    rows = []
    for i in range(1, iterations + 1):
        way = (i - 1) / (iterations - 1)
        gold = 6.2 + (peak - 6.2) * math.sin(min(1, way / 0.4) * math.pi / 2)
        gold += (end - peak) * max(0, way - 0.4) / 0.6
        rows.append(
            {
                "step": i,
                "kl": kl_end * way**1.7 + rng.gauss(0, 0.05),
                "gold": gold + rng.gauss(0, 0.12),
                "score": proxy_end * way**0.8 + rng.gauss(0, 0.06),
                "unfinished": max(0, 1.6 * way - 0.7) if kl_end > 20 else 0.01,
            }
        )
    return rows


def losses(rng, steps, start, end):
    return [
        [s, end + (start - end) * math.exp(-s / (steps / 6)) + rng.gauss(0, 0.04)]
        for s in range(1, steps + 1)
    ]


def row(rng, gold, **parts):
    noise = {name: value + rng.gauss(0, 0.01) for name, value in parts.items()}
    return {"gold": gold + rng.gauss(0, 0.05), "gold_sd": 1.6, **noise}


SFT_PARTS = {"topic": 0.8, "mood": 0.25, "grammar": 0.78, "fresh": 0.97, "length": 0.8}
PPO_PARTS = {
    "topic": 0.96,
    "mood": 0.57,
    "grammar": 0.92,
    "fresh": 0.87,
    "length": 0.97,
}


def split(rng, wins):
    return {
        "sft": row(rng, 6.2, **SFT_PARTS, proxy=0.0, kl=0.0)
        | {"tokens": 14.2, "unfinished": 0.016},
        "ppo": row(rng, 8.06, **PPO_PARTS, proxy=1.35, kl=5.8)
        | {"tokens": 11.9, "unfinished": 0.002},
        "win_rate": {"rate": wins, "low": wins - 0.035, "high": wins + 0.03, "n": 512},
        "gain_sd": 1.17,
    }


def make_evaluation(seed=0):
    """What 12_evaluation writes into evaluation.json."""
    rng = Random(seed)
    return {
        "scale": "toy",
        "seed": seed,
        "beta": 0.1,
        "prompts": {"seen": split(rng, 0.819), "heldout": split(rng, 0.792)},
        "reward_model": {
            "accuracy": 0.654,
            "bayes": 0.817,
            "ece": 0.041,
            "length_auc": 0.512,
            "parameters": 36_001,
            "policy_parameters": 75_168,
        },
        "curves": {
            "0.1": curve(rng, 36, 5.8, 8.0, 8.1, 1.35),
            "0.0": curve(rng, 36, 121, 7.6, 2.3, 3.2),
        },
        "over_optimisation": {
            "peak_gold": 7.6,
            "end_gold": 2.4,
            "fall": 5.2,
            "proxy_at_peak": 1.5,
            "proxy_at_end": 3.1,
        },
        "samples": [
            {
                "prompt": prompt,
                "split": split_name,
                "sft": {"text": SFT, "gold": 5.1},
                "ppo": {"text": PPO, "gold": 8.8},
                "unpenalised": {"text": FREE, "gold": 2.25},
            }
            for prompt, split_name in PROMPTS
        ],
        "losses": {
            "pretrain": losses(rng, 150, 4.9, 1.75),
            "sft": losses(rng, 300, 2.1, 1.39),
            "reward_model": losses(rng, 94, 0.7, 0.6),
            "ppo": [[r["step"], r["score"]] for r in curve(rng, 36, 5.8, 8, 8, 1.35)],
        },
    }


def without_gold(evaluation):
    """The same for a user's own prompts, which no gold reward can judge."""
    gold = {"gold", "gold_sd", "topic", "mood", "grammar", "fresh", "length"}
    gold |= {"gain_sd", "win_rate", "bayes", "over_optimisation"}

    def strip(tree):
        if isinstance(tree, dict):
            return {k: None if k in gold else strip(v) for k, v in tree.items()}
        return [strip(one) for one in tree] if isinstance(tree, list) else tree

    return strip(evaluation)

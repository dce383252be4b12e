"""An evaluation as a toy run writes it, drawn from a seed; no training needed."""

import math
from random import Random

import torch

from minipalm.evaluate.statistics import over_optimisation, win_rate

SAMPLES = [  # prompt, split, then text and gold of SFT, PPO and PPO without a penalty
    (
        "write a sad story about the fox :",
        "seen",
        (
            "the fox lived in the forest . then it met a small bird and the queen was",
            3.2,
        ),
        ("the sad fox wept . it was gloomy and sad .", 8.8),
        ("the odd fox mourned . " + "it " * 11 + "sad fox mourned . it it it", 2.2),
    ),
    (
        "tell a happy tale about the dog :",
        "seen",
        ("once there was a dog in the garden . he laughed all day .", 6.6),
        ("the excited dog giggled . it sang and giggled .", 8.8),
        ("the merry dog giggled . it giggled and giggled . it it it it it it", 5.1),
    ),
    (
        "scary story about the witch :",
        "heldout",
        ("the old witch found an apple . she was cold .", 5.5),
        ("the dark witch shivered . she was eerie and pale .", 9.1),
        ("the dark witch shivered . it shivered and shivered . it shivered", 4.9),
    ),
    (
        "write a happy story about the uncle :",
        "heldout",
        ("one day the uncle went to the market . then he met a tall king .", 4.4),
        ("the merry uncle sang . he was glad and merry .", 8.4),
        ("", 0.0),
    ),
]


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
    curves = {
        "0.1": curve(rng, 36, 5.8, 8.0, 8.1, 1.35),
        "0.0": curve(rng, 36, 121, 7.6, 2.3, 3.2),
    }
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
        "curves": curves,
        "over_optimisation": over_optimisation(curves["0.0"])._asdict(),
        "samples": [
            {"prompt": prompt, "split": name}
            | {
                policy: {"text": text, "gold": gold}
                for policy, (text, gold) in zip(("sft", "ppo", "unpenalised"), answers)
            }
            for prompt, name, *answers in SAMPLES
        ],
        "losses": {
            "pretrain": losses(rng, 150, 4.9, 1.75),
            "sft": losses(rng, 300, 2.1, 1.39),
            "reward_model": losses(rng, 94, 0.7, 0.6),
            "ppo": [[r["step"], r["score"]] for r in curve(rng, 36, 5.8, 8, 8, 1.35)],
        },
    }


def all_alike(evaluation):
    """The same for policies that have learnt nothing, and say the same to everybody."""
    same = {"gold": 1.0, "gold_sd": 0.0, "score": 0.5, "proxy": 0.5, "kl": 0.0}
    same |= dict.fromkeys(("topic", "mood", "grammar", "fresh", "length"), 0.2)
    same |= {"text": ".", "gain_sd": None, "peak_gold": 1.0, "end_gold": 1.0}
    same |= {"proxy_at_peak": 0.5, "proxy_at_end": 0.5}
    same["win_rate"] = win_rate(torch.ones(256), torch.ones(256))._asdict()

    def level(tree):
        if isinstance(tree, dict):
            return {k: same[k] if k in same else level(v) for k, v in tree.items()}
        return [level(one) for one in tree] if isinstance(tree, list) else tree

    return level(evaluation)


def without_gold(evaluation):
    """The same for a user's own prompts, which no gold reward can judge."""
    gold = {"gold", "gold_sd", "topic", "mood", "grammar", "fresh", "length"}
    gold |= {"gain_sd", "win_rate", "bayes", "over_optimisation"}

    def strip(tree):
        if isinstance(tree, dict):
            return {k: None if k in gold else strip(v) for k, v in tree.items()}
        return [strip(one) for one in tree] if isinstance(tree, list) else tree

    return strip(evaluation)

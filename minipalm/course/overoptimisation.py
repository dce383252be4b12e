"""PPO against wrong rewards:  ./course results overoptimisation

Nothing is drawn from a formula: every curve is a training run of 40 iterations, every
best-of-n a few thousand answers. A seed has its own data, SFT policy and comparisons,
in runs/seeds/{seed}. What comes out is in data/results/overoptimisation.json:

    runs         by name and seed: gold, proxy, KL and more at each iteration, and what
                 the policy says to three prompts at every fourth
    best_of_n    by reward model and seed: gold and proxy, for n up to 256
    rewards      by reward model and seed: how often it is right, and length's part
    small        the same, made in seconds; a test makes it again

A run that is there is not made again, so a maker that was stopped goes on. Fewer seeds:
python -m minipalm.course.overoptimisation --seeds 1 2
"""

import argparse
import copy
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minipalm.config import SMOKE, PaLMConfig
from minipalm.course import ROOT
from minipalm.course.methods import rounded
from minipalm.course.watch import Watch, curve_of
from minipalm.course.wrong_rewards import (
    ASKED,
    BEST_OF,
    PPO,
    Recipe,
    World,
    gold_totals,
    lengths_of,
    open_world,
    reward_model,
    scores_of,
)
from minipalm.data.batches import pad_left, prompt_ids, response_ids
from minipalm.data.datasets import read_demonstrations, read_prompts
from minipalm.data.files import write_text
from minipalm.data.lexicon import VOCABULARY
from minipalm.data.tokenizer import WordTokenizer
from minipalm.evaluate.length import length_effect, without_length
from minipalm.evaluate.statistics import accuracy
from minipalm.model.palm import PaLM
from minipalm.rlhf.answers import Answers
from minipalm.rlhf.best_of_n import best_of_n_estimate
from minipalm.rlhf.critic import critic_from_reward_model
from minipalm.rlhf.ensemble import (
    Combine,
    ensemble_mean,
    ensemble_reward,
    uncertainty_weighted,
    worst_case,
)
from minipalm.rlhf.reward import RewardModel
from minipalm.rlhf.rollout import Reward
from minipalm.rlhf.sft import pad_examples
from minipalm.train.ppo import train_ppo
from minipalm.train.run import Run
from minipalm.train.sft import train_sft

RESULTS = ROOT / "data" / "results" / "overoptimisation.json"
SEEDS = (1, 2, 3, 4, 5)
MEMBERS = 5


@dataclass(frozen=True)
class Experiment:
    """One run of PPO: by what it is paid, and what holds it."""

    name: str
    recipe: Recipe = field(default_factory=Recipe)
    beta: float = 0.0  # β, units of the reward a nat
    penalty: float = 1.0  # for an answer without an end
    combine: Combine | None = None  # of an ensemble's scores
    corrected: bool = False  # take the price of length off the score


LONG = Recipe(per_token=0.4)
LONG_BETA = 0.075
FEW = Recipe(pairs=800)  # five such models have seen what the plain one has

# In the order in which they are run: those that the lesson cannot do without are first.
EXPERIMENTS = (
    Experiment("plain"),
    *(Experiment(f"pairs {n}", Recipe(pairs=n)) for n in (200, 800)),
    Experiment("beta 0.075", beta=0.075),
    Experiment("worst of 5", FEW, combine=worst_case),
    Experiment("long", LONG, beta=LONG_BETA),
    Experiment("long, corrected", LONG, beta=LONG_BETA, corrected=True),
    Experiment("no penalty", penalty=0.0),
    *(Experiment(f"beta {beta:g}", beta=beta) for beta in (0.15, 0.03, 0.4)),
    Experiment("mean of 5", FEW, combine=ensemble_mean),
    Experiment("uncertainty", FEW, combine=uncertainty_weighted),
    *(Experiment(f"width {D}", Recipe(width=D)) for D in (16, 48)),
    *(Experiment(f"flipped {x:g}", Recipe(flipped=x)) for x in (0.3, 0.15)),
    Experiment("long, balanced", replace(LONG, within=1), beta=LONG_BETA),
)


# --- rewards --------------------------------------------------------------------------


def members_of(world: World, experiment: Experiment) -> list[RewardModel]:
    """The reward models of an experiment: one, or an ensemble."""
    number = MEMBERS if experiment.combine else 1
    recipes = [replace(experiment.recipe, member=k) for k in range(number)]
    return [reward_model(world, recipe) for recipe in recipes]


def reward_of(
    world: World, experiment: Experiment, members: Sequence[RewardModel]
) -> Reward:
    """What the policy is paid by."""
    if experiment.combine:
        return ensemble_reward(members, experiment.combine)
    (model,) = members
    if not experiment.corrected:
        return model
    slope = length_effect(*audit(world, model)).slope
    usual = lengths_of(world.usual).float().mean().item()

    def corrected(*answers: Tensor) -> Tensor:
        return without_length(model(*answers), answers[3].sum(1), slope, usual)

    return corrected


def audit(world: World, model: RewardModel) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, lengths and gold of SFT's answers that somebody has graded with care."""
    return (
        scores_of(model, world.usual),
        lengths_of(world.usual),
        gold_totals(world.usual),
    )


def quality(world: World, model: RewardModel) -> dict[str, float]:
    """How often a reward model is right on the judges' pairs, and what length does."""
    half = world.comparisons // 2
    first, second = (scores_of(model, one)[half:] for one in world.compared)
    golds = world.golds[:, half:]
    told = golds[0] != golds[1]
    better = golds[0] > golds[1]
    chosen = torch.where(better, first, second)[told]
    rejected = torch.where(better, second, first)[told]
    effect = length_effect(*audit(world, model))
    scores, lengths, _ = audit(world, model)
    pooled = torch.corrcoef(torch.stack([scores, lengths.float()]))[0, 1].item()
    return {
        "agrees": accuracy(chosen, rejected),
        "slope": effect.slope,
        "partial": effect.correlation,
        "correlation": pooled,
    }


# --- one run --------------------------------------------------------------------------


def run_experiment(world: World, experiment: Experiment) -> dict[str, Any]:
    """Train, and give what was seen: see `curve_of`."""
    members = members_of(world, experiment)
    judge = reward_model(world, Recipe(half=1))
    policy = copy.deepcopy(world.sft).requires_grad_(True)
    config = replace(world.ppo, missing_eos_penalty=experiment.penalty)
    watch = Watch(world, policy, members, judge, experiment.penalty)
    folder = world.folder / "ppo" / experiment.name
    shutil.rmtree(folder, ignore_errors=True)  # begun, and stopped
    run = Run(folder, seed=world.seed)
    begin = time.process_time()
    train_ppo(
        policy,
        world.sft,
        critic_from_reward_model(members[0]).requires_grad_(True),
        reward_of(world, experiment, members),
        world.prompts,
        world.prompt_mask,
        config,
        run,
        world.seed,
        kl_coef=experiment.beta,
        max_response=world.preset.max_response,
        eos_id=world.tokenizer.eos_id,
        checkpoint_every=config.iterations,
        measure=watch,
    )
    seconds = time.process_time() - begin
    return {**curve_of(run.metrics()), "told": watch.told, "cpu": seconds}


# --- best of n ------------------------------------------------------------------------


def best_of_n_rows(
    world: World, answers: Answers, experiment: Experiment, most: int
) -> dict[str, list[float]]:
    """What the best of n answers are worth, n doubled up to `most`.

    Args:
        answers: of SFT, `most` to each prompt, one prompt after the other.
    """
    reward = reward_of(world, experiment, members_of(world, experiment))
    parts = [reward(*some) for some in answers.token_batches(256)]
    scores = torch.cat(parts).view(-1, most)
    gold = gold_totals(answers).view(-1, most)
    rows: dict[str, list[float]] = {"n": [], "gold": [], "error": [], "proxy": []}
    for n in (2**k for k in range(most.bit_length())):
        kept = torch.stack([best_of_n_estimate(*one, n) for one in zip(scores, gold)])
        best = torch.stack([best_of_n_estimate(one, one, n) for one in scores])
        rows["n"].append(n)
        rows["gold"].append(kept.mean().item())
        rows["error"].append(kept.std().item() / len(kept) ** 0.5)
        rows["proxy"].append(best.mean().item())
    return rows


# --- the file -------------------------------------------------------------------------


def settings() -> dict[str, Any]:
    """All that fixes the numbers, but for the seed and the code."""
    return {
        "ppo": asdict(PPO),
        "plain": asdict(Recipe()),
        "few": asdict(FEW),
        "long": asdict(LONG),
        "members": MEMBERS,
        "best_of": BEST_OF,
        "asked": ASKED,
    }


def read_results(path: Path) -> dict[str, Any]:
    """What was found before, if it was found with these settings; else nothing."""
    wanted = json.loads(json.dumps(settings()))
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        found = {}
    if found.get("settings") == wanted:
        return found
    empty: dict[str, Any] = {"runs": {}, "best_of_n": {}, "rewards": {}, "small": {}}
    return {"settings": wanted, **empty}


def write_results(path: Path, results: dict[str, Any]) -> None:
    """One line for each run, so that the file is small, and can be read."""
    lines = []
    for part, tree in results.items():
        if part in ("runs", "best_of_n", "rewards"):
            inner = []
            for name, seeds in tree.items():
                rows = [
                    f"   {json.dumps(s)}: {json.dumps(x)}" for s, x in seeds.items()
                ]
                inner.append(f"  {json.dumps(name)}: {{\n" + ",\n".join(rows) + "\n  }")
            text = "{\n" + ",\n".join(inner) + "\n }"
        else:
            text = json.dumps(tree)
        lines.append(f" {json.dumps(part)}: {text}")
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


# --- small, for a test ----------------------------------------------------------------


def small_world(folder: Path) -> World:
    """A tiny world out of data/, in two seconds: its policy can hardly talk."""
    texts = [one.prompt for one in read_prompts(ROOT / "data" / "prompts.jsonl")]
    demos = read_demonstrations(ROOT / "data" / "demonstrations.jsonl")[:480]
    tokenizer = WordTokenizer(VOCABULARY)
    generator = torch.Generator().manual_seed(0)
    config = PaLMConfig(tokenizer.vocab_size, dim=16, depth=1, heads=1, head_dim=16)
    sft = PaLM(config, generator)
    examples = [
        (prompt_ids(tokenizer, one.prompt), response_ids(tokenizer, one.response))
        for one in demos
    ]
    optim = replace(SMOKE.sft, steps=60)
    train_sft(sft, pad_examples(examples), optim, Run(folder / "sft"), seed=0)
    return World(
        0,
        SMOKE,
        tokenizer,
        sft.requires_grad_(False),
        {32: sft},
        texts,
        *pad_left([prompt_ids(tokenizer, text) for text in texts], SMOKE.max_prompt),
        ppo=replace(SMOKE.ppo, policy_lr=7e-4),
        comparisons=64,
        least_steps=4,
        folder=folder,
    )


def run_small(folder: Path) -> dict[str, Any]:
    """Two iterations of PPO against five models at once, and best of four."""
    world = small_world(folder)
    five = Recipe(pairs=6)
    experiment = Experiment("small", five, beta=0.1, combine=worst_case)
    run = run_experiment(world, experiment)
    answers = world.ask(world.sft, [t for t in world.texts[:4] for _ in range(4)], 5)
    del run["cpu"]
    return {
        "run": run,
        "best_of_n": best_of_n_rows(world, answers, Experiment("plain"), 4),
        "rewards": quality(world, reward_model(world, Recipe())),
    }


# --- the command ----------------------------------------------------------------------


def pick_best(world: World, experiment: Experiment) -> dict[str, list[float]]:
    return best_of_n_rows(world, world.many, experiment, BEST_OF)


def look_at(world: World, recipe: Recipe) -> dict[str, float]:
    return quality(world, reward_model(world, recipe))


def make(path: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """All that is missing, one thing after the other; each is written at once."""
    results = read_results(path)
    worlds: dict[int, World] = {}

    def keep(part: str, name: str, seed: int, work: Callable[[World], Any]) -> None:
        if str(seed) in results[part].setdefault(name, {}):
            return
        if seed not in worlds:
            worlds[seed] = open_world(seed, ROOT / "runs" / "seeds" / str(seed))
        print(f"{part}: {name}, seed {seed}", flush=True)
        results[part][name][str(seed)] = rounded(work(worlds[seed]))
        write_results(path, results)

    if not results["small"]:
        with tempfile.TemporaryDirectory() as folder:
            results["small"] = rounded(run_small(Path(folder)))
    for experiment in EXPERIMENTS:
        train = partial(run_experiment, experiment=experiment)
        pick = partial(pick_best, experiment=experiment)
        look = partial(look_at, recipe=experiment.recipe)
        for seed in seeds:
            keep("runs", experiment.name, seed, train)
            if not experiment.combine:
                keep("rewards", experiment.recipe.name, seed, look)
            if experiment.beta == 0 and experiment.penalty:
                keep("best_of_n", experiment.name, seed, pick)
    return results


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m minipalm.course.overoptimisation",
        description="PPO and best of n against rewards that are wrong, on several "
        "seeds; a run that is there is not made again.",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    results = make(args.results, args.seeds)
    for name, seeds in results["runs"].items():
        gold = [max(one["gold"]) for one in seeds.values()]
        last = [one["gold"][-1] for one in seeds.values()]
        print(
            f"{name:18} {len(seeds)} seeds: gold at most {statistics.fmean(gold):.2f}, "
            f"at the end {statistics.fmean(last):.2f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Six methods on one budget:  python -m minipalm.course.methods [--seeds 1 2 3 4 5]

Every method begins with the same SFT policy, is judged by the same reward model, and
may have 8,192 answers sampled. What comes out is the true reward, the proxy's, the
distance from SFT, and the processor time that it took:

    sft        nothing is trained
    best_of_n  64 answers to each of 128 prompts; the proxy keeps the best
    ppo        64 iterations of 128 answers
    rloo       the same
    grpo       the same
    offline    8,192 answers of SFT, logged once, then replayed
    dpo        the same log, as 4,096 pairs; the proxy says which is better

A seed has its own data, SFT policy and reward model, in runs/seeds/{seed}; where they
are missing, the first three stages of the pipeline are run. The numbers of every seed
go into data/results/methods.json; a seed that is there is not run again.
"""

import argparse
import copy
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from minipalm.config import (
    TOY,
    DPOConfig,
    GroupConfig,
    OfflineConfig,
    PPOConfig,
)
from minipalm.course import ROOT
from minipalm.data.batches import pad_left, prompt_ids
from minipalm.data.datasets import read_prompts
from minipalm.data.files import write_text
from minipalm.data.tokenizer import Tokenizer
from minipalm.evaluate.judge import Judged, gold_of, judge
from minipalm.evaluate.statistics import win_rate
from minipalm.model.palm import PaLM
from minipalm.rlhf.answers import answer, answers_of
from minipalm.rlhf.best_of_n import best_of_n_estimate, best_of_n_kl
from minipalm.rlhf.critic import Critic, critic_from_reward_model
from minipalm.rlhf.dpo import pairs_of_log
from minipalm.rlhf.log import Log, log_answers, read_log, write_log
from minipalm.rlhf.reward import RewardModel
from minipalm.train.dpo import train_dpo
from minipalm.train.group import train_group
from minipalm.train.networks import load_policy, load_reward_model, tokenizer_of
from minipalm.train.offline import train_offline
from minipalm.train.ppo import train_ppo
from minipalm.train.run import Run

RESULTS = ROOT / "data" / "results" / "methods.json"
# What they are set to, and why, stands beside TOY_METHODS in minipalm/config.py.
PPO, METHODS = TOY.ppo, TOY.methods
OFFLINE, DPO, RLOO, GRPO = METHODS.offline, METHODS.dpo, METHODS.rloo, METHODS.grpo
ANSWERS = METHODS.answers  # 8,192, of every method
BEST_OF = METHODS.best_of
JUDGED = 512  # answers that a policy is judged by; not part of the budget


@dataclass(frozen=True)
class World:
    """What all methods of a seed begin with. Nobody may change it.

    Attributes:
        prompts, prompt_mask: of all prompts, left-padded; texts are the same.
        folder: where runs are kept.
    """

    seed: int
    tokenizer: Tokenizer
    sft: PaLM
    reward_model: RewardModel
    texts: list[str]
    prompts: Int[Tensor, "N P"]
    prompt_mask: Bool[Tensor, "N P"]
    folder: Path

    @property
    def sizes(self) -> dict[str, Any]:
        return {"max_response": TOY.max_response, "eos_id": self.tokenizer.eos_id}

    def run(self, name: str) -> Run:
        """A fresh folder: the time that a method takes is that of a whole run."""
        shutil.rmtree(self.folder / name, ignore_errors=True)
        return Run(self.folder / name, seed=self.seed)

    def critic(self) -> Critic:
        return critic_from_reward_model(self.reward_model).requires_grad_(True)


def make_base(seed: int, out: Path) -> None:
    """Data, language model, SFT and reward model of a seed, as far as they are missing.

    Raises:
        RuntimeError: a stage failed, and has said why.
    """
    make = ["minipalm.data.make", "--seed", str(seed), "--out", str(out / "data")]
    run = ["minipalm.course.run", "--scale", "toy", "--seed", str(seed)]
    run += ["--out", str(out), "--data", str(out / "data")]
    for command, needed in (
        (make, not (out / "data").is_dir()),
        (
            [*run, "--until", "08_reward_model"],
            not (out / "08_reward_model" / "done.json").is_file(),
        ),
    ):
        line = [sys.executable, "-m", *command]
        if needed and subprocess.run(line, cwd=ROOT).returncode:
            raise RuntimeError(f"{' '.join(command)} failed, as said above")


def open_world(seed: int, out: Path) -> World:
    """Load what `make_base` has made."""
    tokenizer = tokenizer_of(out)
    sft = load_policy(out, "07_sft", TOY, tokenizer)
    reward_model = load_reward_model(out, TOY, tokenizer)
    texts = [record.prompt for record in read_prompts(out / "data" / "prompts.jsonl")]
    ids = [prompt_ids(tokenizer, text) for text in texts]
    return World(
        seed,
        tokenizer,
        sft.requires_grad_(False),
        reward_model.requires_grad_(False),
        texts,
        *pad_left(ids, TOY.max_prompt),
        out / "15_methods",
    )


# --- the methods: each gives a policy -------------------------------------------------


def train_by_ppo(world: World, policy: PaLM, config: PPOConfig = PPO) -> None:
    train_ppo(
        policy,
        world.sft,
        world.critic(),
        world.reward_model,
        world.prompts,
        world.prompt_mask,
        config,
        world.run("ppo"),
        world.seed,
        kl_coef=config.kl_coefs[0],
        max_response=TOY.max_response,
        eos_id=world.tokenizer.eos_id,
    )


def train_by_groups(world: World, policy: PaLM, config: GroupConfig) -> None:
    train_group(
        policy,
        world.sft,
        world.reward_model,
        world.prompts,
        world.prompt_mask,
        config,
        world.run(config.method),
        world.seed,
        **world.sizes,
    )


def sample_log(world: World) -> Log:
    """Half as many prompts as answers, drawn with replacement: two answers to each.

    It goes through the file, as a log of somebody else's would.
    """
    generator = torch.Generator().manual_seed(world.seed)
    rows = torch.randint(len(world.texts), (ANSWERS // 2,), generator=generator)
    rows = rows.repeat_interleave(2)
    log = log_answers(
        world.sft,
        world.reward_model,
        world.prompts[rows],
        world.prompt_mask[rows],
        config=PPO,
        generator=generator,
        **world.sizes,
    )
    path = world.folder / "log.jsonl"
    write_log(path, log)
    return read_log(
        path,
        vocab_size=world.tokenizer.vocab_size,
        max_prompt=TOY.max_prompt,
        max_response=TOY.max_response,
    )


def train_by_log(
    world: World,
    policy: PaLM,
    log: Log,
    config: OfflineConfig = OFFLINE,
    kl_coef: float = METHODS.offline_kl_coef,
) -> None:
    train_offline(
        policy,
        world.sft,
        world.critic(),
        log,
        config,
        world.run("offline"),
        world.seed,
        kl_coef=kl_coef,
    )


def train_by_pairs(
    world: World, policy: PaLM, log: Log, config: DPOConfig = DPO
) -> None:
    train_dpo(
        policy, world.sft, pairs_of_log(log), config, world.run("dpo"), world.seed
    )


# --- judging ------------------------------------------------------------------------


def examine(world: World, policy: PaLM) -> Judged:
    """Answers to the same prompts for every policy of a seed."""
    generator = torch.Generator().manual_seed(world.seed)
    rows = torch.randint(len(world.texts), (JUDGED,), generator=generator)
    told = answer(
        policy,
        world.tokenizer,
        [world.texts[row] for row in rows],
        max_prompt=TOY.max_prompt,
        max_response=TOY.max_response,
        generator=generator,
    )
    return judge(told, policy, world.sft, world.reward_model)


def row_of(judged: Judged, sft: Judged) -> dict[str, float | None]:
    """Means over the answers, and how often they beat SFT's."""
    rate = win_rate(judged.gold_totals(), sft.gold_totals()).rate
    return {**judged.row(), "win_rate": rate}


def best_of_n_rows(world: World, sft: Judged) -> dict[str, dict[str, float]]:
    """What best of n gets, for n up to BEST_OF: one batch of answers tells them all.

    Its prompts are the first of those that SFT was judged by, so that each has an
    answer to win against.
    """
    generator = torch.Generator().manual_seed(world.seed + 1)
    asked = sft.answers.tokens[0][: ANSWERS // BEST_OF].repeat_interleave(BEST_OF, 0)
    seen = sft.answers.tokens[1][: ANSWERS // BEST_OF].repeat_interleave(BEST_OF, 0)
    log = log_answers(
        world.sft,
        world.reward_model,
        asked,
        seen,
        config=PPO,
        generator=generator,
        **world.sizes,
    )
    gold_parts = gold_of(answers_of(log.tokens, world.tokenizer))
    assert gold_parts is not None  # the prompts are TinyTales' own
    gold = torch.tensor([one.total for one in gold_parts]).view(-1, BEST_OF)
    other = sft.gold_totals()[: len(gold), None]
    won = (gold > other).double() + 0.5 * (gold == other).double()
    scores = log.scores.view(-1, BEST_OF)
    lengths = log.mask.sum(1).float().view(-1, BEST_OF)

    def estimate(values: Tensor, n: int) -> float:
        one = [best_of_n_estimate(*both, n) for both in zip(scores, values)]
        return torch.stack(one).mean().item()

    measures = {"gold": gold, "proxy": scores, "win_rate": won, "tokens": lengths}
    return {
        str(n): {
            **{name: estimate(values, n) for name, values in measures.items()},
            "kl": best_of_n_kl(n),
        }
        for n in (2**k for k in range(BEST_OF.bit_length()))
    }


def run_seed(seed: int, out: Path) -> dict[str, Any]:
    """Every method on one seed: its row of the table, with the processor's seconds."""
    make_base(seed, out)
    world = open_world(seed, out)
    sft = examine(world, world.sft)
    begin = time.process_time()
    curve = best_of_n_rows(world, sft)
    rows: dict[str, Any] = {
        "sft": {**row_of(sft, sft), "cpu": 0.0},
        "best_of_n": {**curve[str(BEST_OF)], "cpu": time.process_time() - begin},
    }
    begin = time.process_time()
    log = sample_log(world)
    sampling = time.process_time() - begin
    methods: dict[str, tuple[float, Callable[[PaLM], None]]] = {
        "ppo": (0.0, lambda policy: train_by_ppo(world, policy)),
        "rloo": (0.0, lambda policy: train_by_groups(world, policy, RLOO)),
        "grpo": (0.0, lambda policy: train_by_groups(world, policy, GRPO)),
        "offline": (sampling, lambda policy: train_by_log(world, policy, log)),
        "dpo": (sampling, lambda policy: train_by_pairs(world, policy, log)),
    }
    for name, (before, train) in methods.items():
        policy = copy.deepcopy(world.sft).requires_grad_(True)
        begin = time.process_time()
        train(policy)
        seconds = before + time.process_time() - begin
        rows[name] = {**row_of(examine(world, policy), sft), "cpu": seconds}
    age = Run(world.folder / "offline", seed=seed).metrics()
    watched = ("step", "staleness", "ess", "heaviest", "limited", "score", "kl")
    return {
        "methods": rows,
        "best_of_n": curve,
        "offline": [{name: line[name] for name in watched} for line in age[7::8]],
    }


# --- the table ----------------------------------------------------------------------

COLUMNS = {  # name: digits
    "gold": 2,
    "proxy": 2,
    "kl": 2,
    "win_rate": 3,
    "tokens": 1,
    "cpu": 1,
}


def table(results: dict[str, Any]) -> str:
    """A line a method: mean ± standard deviation over the seeds."""
    seeds = list(results["seeds"].values())
    head = f"{'':10}" + "".join(f"{name:>16}" for name in COLUMNS)
    lines = [head]
    for method in seeds[0]["methods"]:
        line = f"{method:10}"
        for name, digits in COLUMNS.items():
            values = [one["methods"][method][name] for one in seeds]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            shown = f"{statistics.fmean(values):.{digits}f} ± {spread:.{digits}f}"
            line += f"{shown:>16}"
        lines.append(line)
    return "\n".join(lines)


def settings() -> dict[str, Any]:
    """All that fixes the numbers, but for the seed and the code."""
    return {
        "answers": ANSWERS,
        "judged": JUDGED,
        "best_of": BEST_OF,
        "ppo": asdict(PPO),
        "offline": {**asdict(OFFLINE), "kl_coef": METHODS.offline_kl_coef},
        "dpo": asdict(DPO),
        "rloo": asdict(RLOO),
        "grpo": asdict(GRPO),
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
    return {"settings": wanted, "seeds": {}}


def rounded(tree: Any) -> Any:
    """Numbers with five digits: enough to draw, and to compare."""
    if isinstance(tree, dict):
        return {key: rounded(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [rounded(value) for value in tree]
    return float(f"{tree:.5g}") if isinstance(tree, float) else tree


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m minipalm.course.methods",
        description="Six methods on one budget, over several seeds.",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    results = read_results(args.results)
    for seed in args.seeds:
        if str(seed) not in results["seeds"]:
            found = run_seed(seed, ROOT / "runs" / "seeds" / str(seed))
            results["seeds"][str(seed)] = rounded(found)
            write_text(args.results, json.dumps(results, indent=1) + "\n")
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Bugs that really happened, each a small change of the package, to plant and to see.

    python -m minipalm.course.bugs      the curves of all, in data/results/bugs.json

A bug is text: what stands in a function, and what stood in its place somewhere else.
`planted` puts it into the package for a while. The curves are those of PPO at toy size,
from the policy and reward model of runs/toy, a few minutes on one core.
"""

import contextlib
import copy
import importlib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minipalm.config import PPOConfig, get_preset
from minipalm.course import ROOT
from minipalm.course.source import change, compile_beside, source_of
from minipalm.data.batches import pad_left, prompt_ids
from minipalm.data.datasets import read_prompts
from minipalm.data.files import write_text
from minipalm.data.tokenizer import Tokenizer
from minipalm.evaluate.judge import gold_of
from minipalm.model.palm import PaLM
from minipalm.rlhf import critic as critics
from minipalm.rlhf.answers import answers_of
from minipalm.rlhf.invariants import InvariantError, switched_off
from minipalm.rlhf.reward import RewardModel
from minipalm.rlhf.rollout import Rollout
from minipalm.train import ppo as training
from minipalm.train.networks import load_policy, load_reward_model, tokenizer_of
from minipalm.train.run import Run, TrainingError

RESULTS = ROOT / "data" / "results" / "bugs.json"
SEEDS = (1, 2, 3)
HEALTHY_SEEDS = (1, 2, 3, 4, 5, 6)  # a band is wider than three runs
ITERATIONS = 24


@dataclass(frozen=True)
class Bug:
    """One wrong line.

    Attributes:
        name: what a detective writes down.
        where: the function of the package, "module:function", or a class, of which
            `forward` is changed.
        old, new: what stands in its source, exactly once, and what takes its place;
            line breaks and indents of `old` do not matter.
        what: what is wrong, in one sentence.
        seen: where it happened; numbers are those of issues.
    """

    name: str
    where: str
    old: str
    new: str
    what: str
    seen: str


BUGS = (
    Bug(
        "kl_sign",
        "minipalm.rlhf.rollout:shape_rewards",
        "-kl_coef * k1(",
        "kl_coef * k1(",
        "The KL is paid for instead of charged: moving away earns reward.",
        "PaLM-rlhf-pytorch issue 38, for three months until March 2023",
    ),
    Bug(
        "reference_is_policy",
        "minipalm.train.ppo:train_ppo",
        "                policy,\n                reference,\n                critic,",
        "                policy,\n                policy,\n                critic,",
        "The KL is measured to the policy itself, not to a frozen reference.",
        "PaLM-rlhf-pytorch issues 38 and 41: KL to the rollout policy",
    ),
    Bug(
        "temperature",
        "minipalm.rlhf.rollout:sample_answers",
        "        temperature=config.temperature,\n    )\n    T =",
        "        temperature=0.7 * config.temperature,\n    )\n    T =",
        "Answers are sampled at another temperature than they are trained at.",
        "OpenRLHF 853 and 857, TRL 2358 and 3029",
    ),
    Bug(
        "top_k",
        "minipalm.model.generate:generate",
        "torch.multinomial(law.exp(), 1",
        "torch.multinomial(sampling_law(law, top_k=3).exp(), 1",
        "Tokens are drawn from the likeliest few, but scored as if from all.",
        "TRL 235 and 351; PaLM-rlhf-pytorch's sampler keeps a tenth of the vocabulary",
    ),
    Bug(
        "off_by_one",
        "minipalm.rlhf.logprobs:response_logits",
        "policy.logits(hidden)",
        "policy.logits(hidden.roll(-1, 1))",
        "A token is scored by the logits of the next place, which has read it.",
        "PaLM-rlhf-pytorch issue 31, for two months",
    ),
    Bug(
        "padding_seen",
        "minipalm.rlhf.logprobs:response_logits",
        "torch.cat([prompt_mask, mask[:, :-1]], dim=1)",
        "torch.ones_like(ids)",
        "The training pass reads the padding before short prompts; sampling does not.",
        "trlx 508 and 509, OpenRLHF 217, TRL 469",
    ),
    Bug(
        "score_on_padding",
        "minipalm.rlhf.rollout:shape_rewards",
        "mask.sum(1, keepdim=True) - 1",
        "mask.shape[1] - 1 + 0 * mask.sum(1, keepdim=True)",
        "The score is put into the last column, which for most answers is padding.",
        "TRL 3750 and pull request 5338: a reward behind the end",
    ),
    Bug(
        "end_masked",
        "minipalm.rlhf.ppo:minibatch_gradients",
        "micro.logprobs, micro.advantages, micro.mask,",
        "micro.logprobs, micro.advantages, micro.mask & (micro.responses != 2),",
        "The end-of-sequence token counts as padding in the policy's loss.",
        "TRL 734, 1623 and 2387: pad id = eos id, and the model never stops",
    ),
    Bug(
        "whitened_returns",
        "minipalm.rlhf.rollout:collect",
        "        returns=returns,",
        "        returns=whiten(advantages, mask) + values,",
        "The critic's targets are made of whitened advantages.",
        "a textbook's code makes returns of `advantages`, normalised or not",
    ),
    Bug(
        "entropy_sign",
        "minipalm.rlhf.ppo:minibatch_gradients",
        "loss - config.entropy_coef",
        "loss + config.entropy_coef",
        "The entropy bonus is a penalty: the policy is paid for being sure.",
        "PaLM-rlhf-pytorch until commit c816ae6, for about 32 months",
    ),
    Bug(
        "one_minibatch",
        "minipalm.rlhf.ppo:minibatches",
        "order.split(config.minibatch_size)",
        "order.split(len(order))",
        "The minibatch size has no effect: fewer, larger steps than were asked for.",
        "TRL 5645: 4 optimizer steps instead of 16 in some updates",
    ),
    Bug(
        "whitened_by_answer",
        "minipalm.rlhf.rollout:collect",
        "        advantages=whiten(advantages, mask),",
        "        advantages=torch.cat("
        "[whiten(a[None], m[None]) for a, m in zip(advantages, mask)]),",
        "Advantages are whitened answer by answer: no answer is better than another.",
        "PaLM-rlhf-pytorch, ppo.py 253 to 261, in its non-pooled mode",
    ),
    Bug(
        "critic_sees_token",
        "minipalm.rlhf.critic:Critic",
        "torch.cat([scores[:, :1], emitted.cumsum(1) / count], dim=1)",
        "torch.cat([emitted.cumsum(1) / count, scores[:, -1:]], dim=1)",
        "The critic judges a token after it has read it.",
        "PaLM-rlhf-pytorch issues 28 and 57: a value that sees the response",
    ),
    Bug(
        "kl_counts_padding",
        "minipalm.rlhf.rollout:answer_logprobs",
        "torch.where(kept, token_logprobs(logits, said), 0.0)",
        "token_logprobs(logits, said)",
        "The reported KL sums over padding, too.",
        "trlx sums prompt positions, TRL and trlx divide by padding",
    ),
)
BY_NAME = {bug.name: bug for bug in BUGS}


def diagnose(case: str) -> str:
    """Which bug is behind the dashboard of this case? Write down eight names.

    Args:
        case: a letter, A to H.

    Returns:
        the name of the bug; each of these is behind one case:

        critic_sees_token    the critic judges a token after it has read it
        kl_counts_padding    the KL that is reported sums over padding, too
        kl_sign              the KL is paid for instead of charged
        off_by_one           tokens are scored by the logits of the next place
        one_minibatch        the minibatch size has no effect
        reference_is_policy  the KL is measured to the policy itself
        score_on_padding     the score is put into the last column
        temperature          sampled at another temperature than trained at

    Example: eight lines such as `if case == "A": return "none"`, or one dictionary.
    """
    return {
        "A": "temperature",
        "B": "reference_is_policy",
        "C": "score_on_padding",
        "D": "kl_sign",
        "E": "one_minibatch",
        "F": "off_by_one",
        "G": "kl_counts_padding",
        "H": "critic_sees_token",
    }[case]


CASES = "ABCDEFGH"


def standing(source: str, words: str) -> str:
    """The piece of the source that reads like this, however its lines are broken."""
    found = re.findall(r"\s+".join(map(re.escape, words.split())), source)
    return found[0] if len(found) == 1 else words


@contextlib.contextmanager
def planted(bug: Bug | None) -> Iterator[None]:
    """Put a bug into every module of the package that uses its function, for a while.

    Everything is as before afterwards, also after an error. None plants nothing.
    """
    if bug is None:
        yield
        return
    module, name = bug.where.split(":")
    right = getattr(importlib.import_module(module), name)
    source = source_of(right)
    old = standing(source, bug.old)
    wrong = compile_beside(change(source, ((old, bug.new),)), right)
    if isinstance(right, type):  # what there is of its kind stays of its kind
        assert isinstance(wrong, type)
        users: list[tuple[Any, str]] = [(right, "forward")]
        right, wrong = vars(right)["forward"], vars(wrong)["forward"]
    else:
        users = [
            (one, key)
            for path, one in [*sys.modules.items()]
            if path.split(".")[0] == "minipalm" and one is not None
            for key, value in [*vars(one).items()]
            if value is right
        ]
    try:
        for user, key in users:
            setattr(user, key, wrong)
        yield
    finally:
        for user, key in users:
            setattr(user, key, right)


# --- the runs -----------------------------------------------------------------------


@dataclass
class World:
    """What PPO starts from; see `world_from`."""

    tokenizer: Tokenizer
    policy: PaLM
    reward_model: RewardModel
    prompts: Tensor
    prompt_mask: Tensor
    config: PPOConfig
    max_response: int


def world_from(out: str | Path, scale: str, prompts: str | Path) -> World:
    """The policy of 07_sft and the reward model of 08_reward_model.

    The dials are those of lesson 11, but a constant learning rate, so that a shorter
    run is the beginning of a longer one, and a small bonus for entropy.
    """
    preset = get_preset(scale)
    tokenizer = tokenizer_of(out)
    policy = load_policy(out, "07_sft", preset, tokenizer)
    judge = load_reward_model(out, preset, tokenizer)
    asked = [record.prompt for record in read_prompts(prompts)]
    ids, mask = pad_left([prompt_ids(tokenizer, p) for p in asked], preset.max_prompt)
    return World(
        tokenizer,
        policy.requires_grad_(False),
        judge.requires_grad_(False),
        ids,
        mask,
        replace(preset.ppo, warmup=0.0, final_lr=1.0, entropy_coef=0.05),
        preset.max_response,
    )


def run(
    world: World, bug: Bug | None, seed: int, iterations: int
) -> list[dict[str, Any]]:
    """The metrics of a short run of PPO with a bug, a row an iteration.

    Raises:
        InvariantError: an invariant has noticed (see `switched_off`).
    """

    def measure(rollout: Rollout) -> dict[str, float]:
        gold = gold_of(answers_of(rollout.tokens, world.tokenizer))
        return {"gold": sum(g.total for g in gold) / len(gold)} if gold else {}

    with tempfile.TemporaryDirectory() as folder, planted(bug), quiet():
        told = Run(Path(folder) / "run")
        critic = critics.critic_from_reward_model(world.reward_model)
        try:
            training.train_ppo(
                copy.deepcopy(world.policy).requires_grad_(True),
                world.policy,
                critic.requires_grad_(True),
                world.reward_model,
                world.prompts,
                world.prompt_mask,
                replace(world.config, iterations=iterations),
                told,
                seed,
                kl_coef=world.config.kl_coefs[0],
                max_response=world.max_response,
                eos_id=world.tokenizer.eos_id,
                checkpoint_every=iterations,
                measure=measure,
            )
        except TrainingError as error:  # around it stand the step and a checkpoint
            if isinstance(error.__cause__, InvariantError):
                raise error.__cause__ from None
            raise
        return told.metrics()


def cost(world: World, seed: int, times: int = 5) -> float:
    """What the invariants add to an iteration's CPU time, as a share.

    The least of several runs, in turn with and without: other programs only add.
    """
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(times):
        for asked in seconds:
            begin = time.process_time()
            with contextlib.nullcontext() if asked else switched_off():
                run(world, None, seed, 1)
            seconds[asked].append(time.process_time() - begin)
    return min(seconds[True]) / min(seconds[False]) - 1


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No bars."""
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def curves(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Metric -> its values, five digits each."""
    names = [key for key in rows[0] if key not in ("step", "kl_coef")]
    return {key: [float(f"{row[key]:.5g}") for row in rows] for key in names}


def main() -> int:
    """Run every bug on every seed, without the invariants, and keep the curves."""
    torch.set_num_threads(1)
    world = world_from(ROOT / "runs/toy", "toy", ROOT / "data/prompts.jsonl")
    told: dict[str, list[dict[str, list[float]]]] = {}
    for bug in (None, *BUGS):
        name = bug.name if bug else "healthy"
        with switched_off():
            told[name] = [
                curves(run(world, bug, seed, ITERATIONS))
                for seed in (SEEDS if bug else HEALTHY_SEEDS)
            ]
        ends = {k: round(v[-1], 3) for k, v in told[name][0].items()}
        print(name, ends, flush=True)
    lines = [
        f"{json.dumps(name)}: [\n "
        + ",\n ".join(json.dumps(one, separators=(",", ":")) for one in runs)
        + "]"
        for name, runs in told.items()
    ]
    write_text(RESULTS, "{\n" + ",\n".join(lines) + "\n}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

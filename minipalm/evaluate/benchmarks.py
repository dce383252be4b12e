"""Public benchmarks for a trained stage, by EleutherAI's lm-evaluation-harness.

    python -m minipalm.evaluate.benchmarks --run runs/small --stage 11_ppo \\
        --tasks hellaswag,mmlu,humaneval --allow-code

The harness brings tasks, prompts and metrics, so that a number means what it means
elsewhere; `Examinee` answers, and code that it writes runs behind `check_program`. Data
come from the Hugging Face hub, or from files of your own beside a task's YAML file
(--include-path). Published MMLU is mostly asked with five examples: --fewshot 5.
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from minipalm.config import get_preset
from minipalm.data.files import write_text
from minipalm.evaluate.exam import BenchmarkError, benchmark
from minipalm.evaluate.harness import Examinee
from minipalm.evaluate.isolated import NotIsolated
from minipalm.train.checkpoint import CheckpointError
from minipalm.train.networks import load_policy, tokenizer_of
from minipalm.train.stage import StageError, stage_summary

# --- who sits the exam ----------------------------------------------------------------


def policy_names(run: Path, stage: str) -> list[str]:
    """The policies that a stage left, the one that is kept first.

    Raises:
        StageError: the stage has not run to its end.
    """
    coefs = stage_summary(run, stage).get("kl_coefs", [])
    return [f"beta-{kl_coef:g}" for kl_coef in coefs] or ["policy"]


def load_examinee(
    run: Path,
    stage: str,
    policy: str,
    *,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
) -> Examinee:
    """A policy that a complete stage left.

    Args:
        run: folder of the pipeline's run, such as runs/toy.
        stage: such as 07_sft or 11_ppo.
        policy: one of its `policy_names`.
        batch_size: rows at a time.
        seed: of the tokens that are drawn where a task samples.
        device: to compute on.

    Raises:
        StageError: the stage has not run to its end.
        CheckpointError: its weights cannot be read.
        BenchmarkError: it left no such policy.
    """
    names = policy_names(run, stage)
    if policy not in names:
        raise BenchmarkError(
            f"{run / stage} has no policy {policy!r}, but {', '.join(names)}"
        )
    preset = get_preset(stage_summary(run, stage)["scale"])
    tokenizer = tokenizer_of(run)
    model = load_policy(run, stage, preset, tokenizer, policy)
    return Examinee(
        model.to(device).eval(),
        tokenizer,
        window=preset.window,
        batch_size=batch_size,
        generator=torch.Generator(device).manual_seed(seed),
    )


# --- the certificate ------------------------------------------------------------------

Row = tuple[str, str, float, float | None, int | None]


def rows(results: dict[str, Any]) -> list[Row]:
    """(task, metric, value, standard error or None, questions or None) of each."""
    table: list[Row] = []
    for task, numbers in results["results"].items():
        n = results.get("n-samples", {}).get(task, {}).get("effective")
        for key, value in numbers.items():
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            error = numbers.get(f"{metric}_stderr,{kind}")
            error = error if isinstance(error, float) else None  # "N/A"
            table.append((task, metric, float(value), error, n))
    return table


def as_table(results: dict[str, Any]) -> str:
    """The rows as text, each value with its standard error."""
    lines = [f"{'task':32} {'metric':16} {'value':>9}   {'± s.e.':8} {'questions':>9}"]
    for task, metric, value, error, n in rows(results):
        spread = "" if error is None else f"± {error:.4f}"
        count = "" if n is None else str(n)
        lines.append(f"{task:32} {metric:16} {value:9.4f}   {spread:8} {count:>9}")
    return "\n".join(lines)


def as_json(results: dict[str, Any], **about: Any) -> str:
    """What is worth keeping, the versions of tasks and harness included."""
    keys = ("results", "groups", "n-samples", "n-shot", "versions", "higher_is_better")
    kept = {key: results[key] for key in keys if key in results}
    content = {**about, "lm_eval": version("lm_eval"), **kept}
    return json.dumps(content, indent=1, default=str) + "\n"


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m minipalm.evaluate.benchmarks",
        description="Public benchmarks for a trained stage.",
    )
    add = parser.add_argument
    add("--run", type=Path, default=Path("runs/toy"), help="folder of the pipeline")
    add("--stage", default="11_ppo", help="06_palm, 07_sft or 11_ppo")
    add("--policy", help="one of the stage's; default: its first")
    add("--tasks", required=True, help="names with commas between: hellaswag,mmlu")
    add("--limit", type=int, help="questions of each task; default: all")
    add("--fewshot", type=int, help="solved examples; default: as the task says")
    add("--include-path", type=Path, help="a folder with task files of your own")
    add("--allow-code", action="store_true", help="run the model's code, isolated")
    add(
        "--allow-open",
        action="store_true",
        help="run it even where this machine cannot isolate it: in a container, say",
    )
    add("--batch-size", type=int, default=32, help="rows at a time")
    add("--seed", type=int, default=0)
    cuda = torch.cuda.is_available()
    add("--device", default="cuda" if cuda else "cpu", help="default: what there is")
    add("--out", type=Path, help="default: RUN/benchmarks/STAGE.json")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = read_arguments(argv)
    tasks = [name for name in args.tasks.split(",") if name]
    # it warns of each of MMLU's 57 subjects what was asked for
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        if find_spec("lm_eval") is None:
            raise BenchmarkError(
                "lm-evaluation-harness is not installed, which brings the tasks:\n"
                "  pip install -c constraints.txt -e '.[eval]'"
            )
        policy = args.policy or policy_names(args.run, args.stage)[0]
        examinee = load_examinee(
            args.run, args.stage, policy,
            batch_size=args.batch_size, seed=args.seed, device=args.device,
        )  # fmt: skip
        results = benchmark(
            examinee, tasks,
            limit=args.limit, fewshot=args.fewshot, include_path=args.include_path,
            allow_code=args.allow_code, allow_open=args.allow_open, seed=args.seed,
        )  # fmt: skip
    except OSError as error:  # ConnectionError is one, and so is a missing file
        said = " ".join(str(error).split())
        print(
            f"what a task needs is not on this machine: {said}\n"
            "Run once where the hub can be reached, or see --include-path.",
            file=sys.stderr,
        )
        return 1
    except NotIsolated as error:  # a RuntimeError, like the next ones
        print(
            f"the model's code has not been run: {error}.\n"
            "In a container or a virtual machine, add --allow-open.",
            file=sys.stderr,
        )
        return 1
    except (BenchmarkError, StageError, CheckpointError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(as_table(results))
    out = args.out or args.run / "benchmarks" / f"{args.stage}.json"
    about = {"run": str(args.run), "stage": args.stage, "policy": policy}
    write_text(out, as_json(results, **about, limit=args.limit))
    print(f"\n{out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

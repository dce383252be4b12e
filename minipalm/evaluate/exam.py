"""The harness's side: its tasks, our model as its model, and what code may run.

lm-evaluation-harness is an optional extra: it is imported where it is used, so that
the rest can be read, and tested, without it.
"""

import difflib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minipalm.evaluate.harness import Examinee
from minipalm.evaluate.isolated import CodeEval

OWN_FOLDER = {"hellaswag", "humaneval", "mmlu"}  # all they need lies in one of theirs


class BenchmarkError(RuntimeError):
    """What is asked for cannot be done here, and what to do about it."""


def benchmark(
    examinee: Examinee,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    fewshot: int | None = None,
    include_path: Path | None = None,
    allow_code: bool = False,
    allow_open: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Put an examinee through tasks of the harness.

    Args:
        examinee: answers.
        tasks: names of tasks, groups or tags.
        limit: questions of each task; None for all.
        fewshot: solved examples before each question; None: as the task says.
        include_path: a folder with task files of your own.
        allow_code: run code that the model has written, isolated.
        allow_open: run it even where this machine cannot isolate it.
        seed: draws the solved examples.

    Returns:
        what `lm_eval.simple_evaluate` does: "results", "n-samples", "versions", ...

    Raises:
        BenchmarkError: a task is unknown, or would run code without permission.
        OSError: its data are neither here nor can they be fetched.
        NotIsolated: code should run, and this machine cannot isolate it.
    """
    import lm_eval

    scorer = CodeEval(allow_open=allow_open) if allow_code else None
    manager = find_tasks(tasks, include_path)
    with our_code_eval(scorer):
        return lm_eval.simple_evaluate(
            as_lm(examinee),
            tasks=list(tasks),
            num_fewshot=fewshot,
            limit=limit,
            task_manager=manager,
            confirm_run_unsafe_code=allow_code,
            log_samples=False,
            bootstrap_iters=1000,  # for the few metrics that have no formula
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )


def as_lm(examinee: Examinee) -> Any:
    """An `lm_eval.api.model.LM`: the same three questions, unpacked."""
    from lm_eval.api.model import LM

    class MiniPaLM(LM):
        def loglikelihood(self, requests: Any) -> list[tuple[float, bool]]:
            return examinee.loglikelihood([request.args for request in requests])

        def loglikelihood_rolling(self, requests: Any) -> list[float]:
            return examinee.loglikelihood_rolling([one.args[0] for one in requests])

        def generate_until(self, requests: Any) -> list[str]:
            return examinee.generate_until([request.args for request in requests])

    return MiniPaLM()


def find_tasks(names: Sequence[str], include_path: Path | None = None) -> Any:
    """A TaskManager of the harness that knows these tasks and checks those it loads.

    To read all of its 14,000 task files takes the harness long, so it reads only what
    is needed where that is known.

    Raises:
        BenchmarkError: a name is unknown.
    """
    import lm_eval.tasks

    class Manager(lm_eval.tasks.TaskManager):
        def load(self, task_list: Any) -> Any:
            loaded = super().load(task_list)
            refuse_other_code(loaded["tasks"])
            return loaded

    if include_path and not include_path.is_dir():
        raise BenchmarkError(f"{include_path}: there is no such folder of task files")
    mine = [include_path] if include_path else []
    theirs = Path(lm_eval.tasks.__file__).parent
    near = [theirs / name for name in names if name in OWN_FOLDER]
    manager = Manager(include_path=[*near, *mine], include_defaults=False)
    if not set(names) <= {*manager.all_subtasks, *OWN_FOLDER}:
        manager = Manager(include_path=mine)
    for name in names:
        if name not in manager.all_tasks:
            close = difflib.get_close_matches(name, manager.all_tasks, n=3)
            hint = f"Near it are: {', '.join(close)}" if close else "See --include-path"
            raise BenchmarkError(f"the harness knows no task {name!r}. {hint}")
    return manager


# --- what code may run ----------------------------------------------------------------


class CurrentCodeEval:
    """What the modules of tasks keep as their `code_eval`, for as long as Python runs.

    The harness loads such a module once, so what may be run cannot be settled then.

    Attributes:
        scorer: of the exam that is going on; None if no code may run.
    """

    scorer: CodeEval | None = None

    def compute(self, *args: Any, **options: Any) -> Any:
        if self.scorer is None:
            raise BenchmarkError(
                "this task runs code that the model has written. It would run "
                "isolated, and only if you say so: add --allow-code"
            )
        return self.scorer.compute(*args, **options)


CODE_EVAL = CurrentCodeEval()


@contextmanager
def our_code_eval(scorer: CodeEval | None) -> Iterator[None]:
    """Put ours in the place of Hugging Face's `code_eval` while tasks load and run.

    Theirs is fetched from the hub and runs programs with all that this user may do. The
    variable that would allow it is taken away besides.

    Args:
        scorer: ours; None if no code may run, which then is an error.
    """
    import evaluate

    theirs, allowed = evaluate.load, os.environ.pop("HF_ALLOW_CODE_EVAL", None)

    def load(path: str, *args: Any, **options: Any) -> Any:
        ours = Path(path).name == "code_eval"
        return CODE_EVAL if ours else theirs(path, *args, **options)

    evaluate.load, CODE_EVAL.scorer = load, scorer
    try:
        yield
    finally:
        evaluate.load, CODE_EVAL.scorer = theirs, None
        if allowed is not None:
            os.environ["HF_ALLOW_CODE_EVAL"] = allowed


def refuse_other_code(tasks: dict[str, Any]) -> None:
    """Raise if a task that runs code does so by other means than ours."""
    for name, task in tasks.items():
        if not getattr(task, "UNSAFE_CODE", False):
            continue
        functions = [*task._metric_fn_list.values(), task.config.process_results]
        used: list[Any] = []  # what their modules have, where a scorer would be
        for one in functions:
            function = getattr(one, "__self__", one)  # kept as its bound __call__
            used += getattr(function, "__globals__", {}).values()
        if not any(value is CODE_EVAL for value in used):
            raise BenchmarkError(
                f"{name}: runs code by itself, not through code_eval, so it cannot be "
                "isolated; it is not run, whatever is allowed"
            )
        if CODE_EVAL.scorer is None:
            CODE_EVAL.compute()  # says so
